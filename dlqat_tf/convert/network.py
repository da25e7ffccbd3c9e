"""The source as a list of calls, and where its quantizers belong."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import larq as lq
import tensorflow as tf

from dlqat_tf.convert.report import ConversionError
from dlqat_tf.graph import follow, tensors_of, unique
from dlqat_tf.heads import Head
from dlqat_tf.models.resnet import edge_bits
from dlqat_tf.quantizers import CGPACT
from dlqat_tf.quantizers.base import check_bits

_layers = tf.keras.layers

QUANTIZED = {
    _layers.Conv2D: lq.layers.QuantConv2D,
    _layers.DepthwiseConv2D: lq.layers.QuantDepthwiseConv2D,
    _layers.Dense: lq.layers.QuantDense,
}
POOLS = (_layers.AveragePooling2D, _layers.GlobalAveragePooling2D)
# What moves values and changes none: codes in, codes out.
MOVING = (
    _layers.Concatenate,
    _layers.Dropout,
    _layers.Flatten,
    _layers.MaxPool2D,
    _layers.SpatialDropout2D,
    _layers.ZeroPadding2D,
)
WIDTHS = {"weight_bits": 1, "activation_bits": 1, "residual_bits": 2}  # and the lowest of each


class Overrides:
    """The user's exceptions, by layer name."""

    def __init__(self, rules: dict[str, dict[str, int] | str]):
        if not isinstance(rules, dict) or not all(isinstance(name, str) for name in rules):
            raise ConversionError(
                "Expected overrides to be a dict by layer name or pattern. Received: "
                f"overrides={rules!r}."
            )
        for pattern, rule in rules.items():
            if rule == "float":
                continue
            if not isinstance(rule, dict) or not rule or not set(rule) <= set(WIDTHS):
                raise ConversionError(
                    f'Expected the override of {pattern!r} to be "float" or a dict of '
                    f"{', '.join(WIDTHS)}. Received: {rule!r}."
                )
            for name, bits in rule.items():
                check_bits(bits, lowest=WIDTHS[name])
        self.rules = rules

    def of(self, name: str) -> dict[str, int] | str:
        """Return what holds for a layer: later matches win, width by width."""
        found: dict[str, int] | str = {}
        for pattern, rule in self.rules.items():
            if fnmatch.fnmatchcase(name, pattern):
                found = rule if rule == "float" or found == "float" else {**found, **rule}
        return found

    def check(self, names: Iterable[str], having: dict[str, set[str]]) -> None:
        """Raise for rules without effect.

        Args:
            names: All layers.
            having: By width, the layers that have it.
        """
        names = list(names)
        for pattern, rule in self.rules.items():
            matched = fnmatch.filter(names, pattern)
            if not matched:
                close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                advice = f" Close names: {', '.join(map(repr, close))}." if close else ""
                raise ConversionError(f"The override {pattern!r} matches no layer.{advice}")
            for width in [] if rule == "float" else rule:
                if not having[width].intersection(matched):
                    raise ConversionError(
                        f"The override {pattern!r} sets {width}, which none of the layers that it "
                        f"matches has: {', '.join(matched)}."
                    )


Value = tuple["Call", int]  # an output of a call


@dataclass(eq=False, repr=False)
class Call:
    """One call of a source layer."""

    layer: tf.keras.layers.Layer
    name: str
    role: str
    node: object = None
    inputs: list[Value] = field(default_factory=list)
    readers: list[Call] = field(default_factory=list)

    def apply(self, layer, tensors: list):
        """Call ``layer`` as the source was called, on other tensors."""
        by_id = defaultdict(list)
        for source, tensor in zip(tensors_of(self.node), tensors, strict=True):
            by_id[str(id(source))].append(tensor)
        arguments, keywords = self.node.map_arguments(by_id)
        return tf.nest.flatten(layer(*arguments, **keywords))


@dataclass(eq=False, repr=False)
class Place:
    """A quantizer of activations: where it stands for which calls, and what it is."""

    name: str
    bits: int
    signed: bool
    ceiling: float

    def make(self):
        if self.bits == 32 and self.ceiling < math.inf:
            return _layers.ReLU(self.ceiling, name=self.name)
        return CGPACT(self.bits, min(8.0, self.ceiling), self.signed, name=self.name)


def _ceiling(activation) -> float | None:
    """Return the upper end of a ReLU, which may be infinite, or None if it is something else."""
    if type(activation) is _layers.Activation:
        activation = activation.activation
    if type(activation) is _layers.ReLU:
        plain = not activation.negative_slope and not activation.threshold
        maximum = activation.max_value
        return (math.inf if maximum is None else float(maximum)) if plain else None
    if activation in (tf.keras.activations.relu, tf.nn.relu):
        return math.inf
    return 6.0 if activation is tf.nn.relu6 else None


def _is_linear(activation) -> bool:
    return activation in (None, tf.keras.activations.linear)


def _activation_name(activation) -> str:
    return getattr(activation, "__name__", type(activation).__name__)


def is_softmax(activation) -> bool:
    """Return whether an activation is Keras's or TensorFlow's softmax."""
    return activation in (tf.keras.activations.softmax, tf.nn.softmax)


def _is_weighted(layer) -> bool:
    return type(layer) in (*QUANTIZED, *QUANTIZED.values()) or isinstance(layer, Head)


def _role(layer) -> str:
    """Return the part that a layer plays; "unknown" where it has no quantized form."""
    kind = type(layer)
    if _is_weighted(layer):
        return "weighted"
    if isinstance(layer, lq.quantizers.Quantizer):
        return "quantizer"
    if kind in POOLS:
        return "pool"
    if kind in MOVING or (kind is _layers.Activation and _is_linear(layer.activation)):
        return "moving"
    if kind is _layers.ReLU or _ceiling(layer) is not None:
        return "relu"
    if kind is _layers.Softmax or (kind is _layers.Activation and is_softmax(layer.activation)):
        return "softmax"
    names = {
        _layers.Add: "add",
        _layers.BatchNormalization: "norm",
        _layers.Rescaling: "rescaling",
    }
    return names.get(kind, "unknown")


class Network:
    """The source as a list of calls, and where its quantizers belong.

    Attributes:
        calls: In the order of computation, nested models flattened.
        outputs: What the model returns.
        head: The call that becomes the head, or None.
        head_kind: Its name in ``HEADS``.
        dropped: Calls that are left out.
        places: The quantizer after each call that has one.
        norms: By weighted layer, the batch norms that take its scale; empty where one is inserted.
        ends: Weighted layers that no other weighted layer follows.

    Args:
        model: The source.
        overrides: The user's exceptions.
        head: Name of the head that the last layer becomes, or None.
        widths: Of hidden layers, as in ``quantize``.
        partial: Whether layers without a quantized form, or quantized already, may stand between
            others; else they are errors.
    """

    def __init__(
        self,
        model,
        overrides: Overrides,
        head: str | None,
        widths: dict[str, int | None],
        *,
        partial: bool = False,
    ):
        self.overrides = overrides
        self.widths = widths
        self.calls: list[Call] = []
        self._names: dict[tf.keras.layers.Layer, str] = {}
        sources = []
        for tensor in model.inputs:
            layer = tensor.node.layer
            self.calls.append(Call(layer, self._name(layer, ""), "input"))
            sources.append((self.calls[-1], 0))
        self.inputs = [call for call, _ in sources]
        self.outputs = self._flatten(model, sources, "")
        self.of: dict[tf.keras.layers.Layer, list[Call]] = defaultdict(list)
        for call in self.calls:
            self.of[call.layer].append(call)
            for source, _ in call.inputs:
                source.readers.append(call)
        self.ends = {
            call.layer
            for call in self.calls
            if _is_weighted(call.layer) and not self._weighted_after(call.layer)
        }
        self.head, self.head_kind, self.dropped = None, head, set()
        if head is not None:
            self._find_head()
        if not partial:
            self._settle_roles()
        self.norms = {
            layer: self._norms(layer)
            for layer, calls in self.of.items()
            if calls[0].role == "weighted"
        }
        self.places: dict[Call, Place] = {}
        self._find_places()
        self._check_overrides()

    def first(self, call: Call) -> bool:
        """Return whether any call of this call's layer reads an input, no kernel in between."""
        return any(
            self._before_kernels(value) for each in self.of[call.layer] for value in each.inputs
        )

    def weight_bits(self, call: Call) -> int:
        """Return the width of a weighted layer."""
        at_end = self.first(call) or call.layer in self.ends
        bits = self.widths["weight_bits"]
        return self._width(call, "weight_bits", edge_bits(bits) if at_end else bits)

    def keeps_scale(self, call: Call) -> bool:
        """Return whether no batch norm may follow: what the model returns keeps its scale."""
        return call.layer in self.ends and not self.norms[call.layer]

    def fused(self, call: Call) -> float | None:
        """Return the ceiling of the ReLU inside a hidden weighted layer, None without one."""
        if call.role != "weighted" or call.layer in self.ends:
            return None
        return _ceiling(getattr(call.layer, "activation", None))

    def width_of(self, call: Call) -> str:
        """Return the name of the width that the quantizer of a call's output has."""
        is_relu = call.role == "relu" or self.fused(call) is not None
        return "activation_bits" if is_relu else "residual_bits"

    # Reading the model.

    def _name(self, layer, parent: str) -> str:
        if layer not in self._names:
            taken = self._names.values()
            name = f"{parent}_{layer.name}" if parent and layer.name in taken else layer.name
            self._names[layer] = unique(name, taken)
        return self._names[layer]

    def _flatten(self, model, sources: list[Value], parent: str) -> list[Value]:
        return follow(model, sources, lambda node, inputs: self._read(node, inputs, parent))

    def _read(self, node, inputs: list[Value], parent: str) -> list[Value]:
        layer, name = node.layer, self._name(node.layer, parent)
        if hasattr(layer, "_nodes_by_depth") and self.overrides.of(name) != "float":
            return self._flatten(layer, inputs, name)
        call = Call(layer, name, _role(layer), node, inputs)
        self.calls.append(call)
        return [(call, i) for i in range(len(tf.nest.flatten(node.outputs)))]

    # Who reads whom.

    def _reached(self, call: Call, through: Iterable[str] | None = None) -> set[Call]:
        """Return the calls downstream, not beyond those whose role is not in ``through``."""
        found: set[Call] = set()
        rest = list(call.readers)
        while rest:
            reader = rest.pop()
            if reader not in found:
                found.add(reader)
                if through is None or reader.role in through:
                    rest.extend(reader.readers)
        return found

    def _weighted_after(self, layer) -> bool:
        return any(
            _is_weighted(after.layer) or (after.role == "unknown" and after.layer.weights)
            for call in self.of[layer]
            for after in self._reached(call)
        )

    def _feeds_end(self, call: Call) -> bool:
        return any(r.layer in self.ends for r in self._reached(call, ("moving", "pool")))

    def _from_input(self, inputs: list[Value]) -> bool:
        return any(
            source.role == "input"
            or (source.role in ("moving", "rescaling") and self._from_input(source.inputs))
            for source, _ in inputs
        )

    def _before_kernels(self, value: Value) -> bool:
        source, _ = value
        if source.role == "input":
            return True
        if any(weight.shape.rank > 1 for weight in source.layer.weights):
            return False
        some = any if type(source.layer) is _layers.Concatenate else all
        return bool(source.inputs) and some(map(self._before_kernels, source.inputs))

    def _never_negative(self, call: Call) -> bool:
        if call.role in ("moving", "pool", "add"):
            return all(self._never_negative(source) for source, _ in call.inputs)
        return call.role == "relu" or self.fused(call) is not None

    def _norms(self, layer) -> list[tf.keras.layers.Layer]:
        """Return the batch norms that alone read a weighted layer, and nothing else."""
        found = []
        for call in self.of[layer]:
            alone = len(call.readers) == 1 and (call, 0) not in self.outputs
            if not alone or call.readers[0].role != "norm" or not _is_linear(layer.activation):
                return []
            found.append(call.readers[0].layer)
        every = [call for norm in found for call in self.of[norm]]
        return found if all(call.inputs[0][0].layer is layer for call in every) else []

    # Head, problems, quantizers.

    def _find_head(self) -> None:
        if len(self.outputs) != 1:
            raise ConversionError(
                f"Expected a model with one output, the class scores. Received: "
                f"{len(self.outputs)}. Pass head=None to keep them as they are."
            )
        call, dropped = self.outputs[0][0], set()
        while call.role == "softmax" or (
            call.role == "moving" and type(call.layer) is _layers.Activation
        ):
            dropped.add(call)
            call = call.inputs[0][0]
        if self.overrides.of(call.name) == "float":
            return
        layer = call.layer
        if (
            type(layer) is not _layers.Dense
            or len(self.of[layer]) > 1
            or len(call.node.outputs.shape) != 2
            or not (_is_linear(layer.activation) or is_softmax(layer.activation))
        ):
            activation = getattr(layer, "activation", None)
            ending = "" if _is_linear(activation) else f", {_activation_name(activation)}"
            raise ConversionError(
                "Expected a model that ends in a Dense layer of class scores, with or without a "
                f"softmax, for head={self.head_kind!r} to replace. Received: a model that ends in "
                f"{call.name!r} ({type(layer).__name__}{ending}). Pass head=None to keep its "
                "output."
            )
        self.head, self.dropped = call, dropped

    def _reason(self, call: Call) -> str | None:
        """Return why a layer has no quantized form, None where it has one."""
        layer, kind = call.layer, type(call.layer)
        shape = layer.get_output_shape_at(0) if call.node else None
        if call.role == "quantizer" or (call.role == "weighted" and kind not in QUANTIZED):
            return "it is quantized already"
        if call.role == "unknown":
            if isinstance(layer, tf.keras.Model):
                return "subclassed models have no list of layers"
            if kind is _layers.Activation:
                return f"{_activation_name(layer.activation)!r} has no quantized form here"
            return f"{kind.__name__} layers have no quantized form here"
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            return "its data_format is not channels_last"
        activation = getattr(layer, "activation", None)
        is_hidden = call.role == "weighted" and layer not in self.ends
        if is_hidden and self.fused(call) is None and not _is_linear(activation):
            name = _activation_name(activation)
            return f"its activation is {name!r}; ReLU and ReLU6 have quantizers"
        if call.role == "relu" and _ceiling(layer) is None:
            return "it has a slope or a threshold; ReLU and ReLU6 have quantizers"
        if call.role == "softmax" and call.readers and call not in self.dropped:
            return "a softmax that is not the end of the model has no quantized form here"
        if call.role == "rescaling" and not self._from_input(call.inputs):
            return "it rescales something else than an input"
        if call.role == "norm" or kind is _layers.Concatenate:
            axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
            if axis not in (-1, len(shape) - 1):
                return f"its axis is {axis}, not the channels"
        return None

    def _settle_roles(self) -> None:
        """Give what stays float the role "kept", or say what cannot be converted."""
        problems: dict[str, str] = {}
        for call in self.calls:
            reason = self._reason(call)
            is_kept = self.overrides.of(call.name) == "float" and call not in self.dropped
            is_output = call.role == "relu" and not call.readers
            if is_output or (is_kept and (reason or call.role in ("weighted", "relu", "add"))):
                call.role = "kept"
            elif reason:
                problems[call.name] = f"{call.name!r} ({type(call.layer).__name__}): {reason}"
        if problems:
            skipping = ", ".join(f'{name!r}: "float"' for name in problems)
            raise ConversionError(
                f"{len(problems)} of {len(self.of)} layers cannot be quantized.\n- "
                + "\n- ".join(problems.values())
                + f"\nTo keep them as they are, in float: overrides={{{skipping}}}."
            )

    def _find_places(self) -> None:
        groups: dict[tuple, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call is self.head or call in self.dropped:
                continue
            if call.role == "relu":
                # One per place, and the same where the same shared layer comes before.
                groups["activation_bits", call.layer, call.inputs[0][0].layer].append(call)
            elif self.fused(call) is not None:
                groups["activation_bits", call.layer].append(call)
            elif call.role in ("weighted", "norm", "add", "pool", "kept") and self._wanted(call):
                groups["residual_bits", self._meeting(call.layer)].append(call)
        taken = set(self._names.values())
        for (width, *_), calls in groups.items():
            call = calls[0]
            default = self.widths[width]
            if any(map(self._feeds_end, calls)):
                default = edge_bits(default)
            bits = self._width(call, width, default)
            if bits is None:
                continue
            name = call.name
            if width == "residual_bits":
                name, ceiling = f"{name}_residual", math.inf
            elif call.role == "relu":
                ceiling = _ceiling(call.layer)
            else:
                name, ceiling = f"{name}_act", self.fused(call)
            is_new = call.role == "relu" and not any(name == p.name for p in self.places.values())
            name = name if is_new else unique(name, taken)
            taken.add(name)
            signed = width == "residual_bits" and not all(map(self._never_negative, calls))
            place = Place(name, bits, signed, ceiling)
            self.places.update(dict.fromkeys(calls, place))

    def _meeting(self, layer) -> tf.keras.layers.Layer:
        """Return the last Concatenate that a layer's outputs come to, or the layer itself.

        What comes together goes on one grid: files would round it once more to bring it there.
        """
        readers = self._reached(self.of[layer][0], ("moving",))
        meetings = [reader for reader in readers if type(reader.layer) is _layers.Concatenate]
        return max(meetings, key=self.calls.index).layer if meetings else layer

    def _wanted(self, call: Call, origin: Call | None = None) -> bool:
        """Return whether anything reads the output of ``origin``, through ``call``, as codes."""
        origin = origin or call
        return any(self._wants_codes(reader, call, origin) for reader in call.readers)

    def _wants_codes(self, reader: Call, call: Call, origin: Call) -> bool:
        if reader.role == "moving":
            return self._wanted(reader, origin)
        if reader.role == "weighted":
            # What follows the last quantizer runs in float.
            return not (origin.role == "pool" and reader.layer in self.ends)
        if reader.role == "norm":
            folds = _is_weighted(call.layer) or call.role == "norm"
            return not (folds and len(call.readers) == 1)
        return reader.role in ("add", "pool")

    def _width(self, call: Call, width: str, default: int | None) -> int | None:
        rule = self.overrides.of(call.name)
        return default if rule == "float" else rule.get(width, default)

    def _check_overrides(self) -> None:
        having: dict[str, set[str]] = {width: set() for width in WIDTHS}
        for call in self.calls:
            if call.role == "weighted":
                having["weight_bits"].add(call.name)
            if call in self.places:
                having[self.width_of(call)].add(call.name)
        self.overrides.check(self._names.values(), having)
