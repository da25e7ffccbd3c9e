"""Bring your own model: a float Keras model in, a DL-QAT model out, weights carried over.

The source is read as a list of calls, nested models flattened. From it follows where codes are
needed, hence where quantizers stand; a second walk builds the new model.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import larq as lq
import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.export.report import Report
from dlqat_tf.heads import Head
from dlqat_tf.models.resnet import EDGE_BITS, HEADS
from dlqat_tf.quantizers import CGPACT, SATWeights, SymmetricWeights
from dlqat_tf.quantizers.base import check_bits
from dlqat_tf.quantizers.calibration import SAMPLE, set_range, subsample

_layers = tf.keras.layers

_QUANTIZED = {
    _layers.Conv2D: lq.layers.QuantConv2D,
    _layers.DepthwiseConv2D: lq.layers.QuantDepthwiseConv2D,
    _layers.Dense: lq.layers.QuantDense,
}
_POOLS = (_layers.AveragePooling2D, _layers.GlobalAveragePooling2D)
# What moves values and changes none: codes in, codes out.
_MOVING = (
    _layers.Concatenate,
    _layers.Dropout,
    _layers.Flatten,
    _layers.MaxPool2D,
    _layers.SpatialDropout2D,
    _layers.ZeroPadding2D,
)
_WIDTHS = {"weight_bits": 1, "activation_bits": 1, "residual_bits": 2}  # and the lowest of each
_REACH = 1.0  # largest latent weight: beyond it the slope of tanh is less than 0.42


class ConversionError(ValueError):
    """The model cannot be converted as asked; the message says what to do."""


@dataclass(frozen=True)
class Conversion:
    """What became of one layer.

    Attributes:
        layer: Name in the source; ``model_layer`` where two nested models use one name.
        was: Class in the source.
        became: Class in the result, or "dropped".
        weight_bits: Width of its weights, None where it has none or they stay float.
        activation_bits: Width of the quantizer of its output, None without one.
        note: What was inserted or moved, what stayed and why.
    """

    layer: str
    was: str
    became: str
    weight_bits: int | None
    activation_bits: int | None
    note: str


@dataclass(frozen=True)
class ConversionReport(Report):
    """What became of every layer of a model.

    Attributes:
        conversions: One entry per source layer, in the order of computation.
        ranges: Ranges that were measured on images, by quantizer.
        notes: What concerns the whole model.
    """

    conversions: list[Conversion]
    ranges: dict[str, float]
    notes: list[str]

    def tables(self):
        table = Table(title="Conversion", title_justify="left")
        for column in ("layer", "was", "became", "weights", "outputs", "note"):
            table.add_column(column, overflow="fold")
        for each in self.conversions:
            widths = (each.weight_bits, each.activation_bits)
            shown = ("" if bits is None else str(bits) for bits in widths)
            table.add_row(each.layer, each.was, each.became, *shown, each.note)
        return [table, *self.notes]


def quantize(
    model: tf.keras.Model,
    weight_bits: int = 1,
    activation_bits: int = 2,
    head: str | None = "gml",
    overrides: dict[str, dict[str, int] | str] | None = None,
    residual_bits: int | None = 8,
    *,
    images=None,
    labels=None,
    batch_size: int = 64,
) -> tuple[tf.keras.Model, ConversionReport]:
    r"""Turn a float model into a DL-QAT model that starts from its weights.

    Convolutions and dense layers get SAT weights, ReLU and ReLU6 become CG-PACT, and the last dense
    layer becomes the head that the loss asks for. A softmax after it is dropped: losses take
    logits. Nested models are flattened, a layer that is called twice stays one layer.

    Weights are carried over so that the quantized ones, Q, are the nearest up to a factor a per
    output channel, which goes into the batch norm that follows (one is inserted where none does):

    .. math:: L = \operatorname{artanh}\Big(t \frac{W}{\max|W|}\Big), \qquad
        a = \frac{\langle W, Q \rangle}{\langle Q, Q \rangle}, \qquad
        \mu' = \mu / a, \quad \sigma'^2 = \sigma^2 / a^2

    with the maximum per output channel and :math:`t = \tanh \min(\max|W|, 1)` over the tensor; at
    one bit a is that of BWN (Rastegari et al. 2016, arXiv 1603.05279, eq. 6).

    Int8 kernels need codes wherever they read, so outputs that no ReLU rounds (linear bottlenecks,
    residual branches, sums) get a quantizer of ``residual_bits`` where an add, a pool, a batch norm
    of its own or a weighted layer reads them; signed, unless they cannot be negative.

    Args:
        model: Functional or Sequential model; it is not changed.
        weight_bits: 1 to 8 for hidden layers, 32 for clamped float weights. Layers that read an
            input, and the last ones, have 8.
        activation_bits: 1 to 8 for hidden activations, 32 for none. What feeds the last layer has
            8.
        head: "linear" (cross-entropy), "cosine" (AMSLoss) or "gml" (GMLoss). None keeps the last
            layer's form, outputs and scale, with 8-bit weights.
        overrides: By layer name or pattern (``fnmatch``): ``"float"`` keeps the layer as it is;
            a dict sets its ``weight_bits``, the ``activation_bits`` of the ReLU that it is or has,
            the ``residual_bits`` of the quantizer after it. Of several that match, later ones win,
            width by width. Nested models match as a whole too.
        residual_bits: 2 to 8, or 32 for quantizers that do not round, or None for none of them.
        images: Training images as the model takes them, a few hundred (a list for several inputs).
            They set activation ranges, the statistics of batch norms, and the head. The outputs of
            a layer are held for all of them at once.
        labels: Classes of the images, integers (images,). For "gml" and "cosine".
        batch_size: Images that are run at once.

    Returns:
        The model, not compiled, whose layers have the source's names, and the report. A head
        outputs logits.

    Raises:
        ConversionError: A layer has no quantized form (the message names all of them, the reasons
            and the overrides that keep them float), an override fits nothing, or an argument is not
            as above.
        ValueError: A width is out of range.
    """
    widths = dict(
        weight_bits=weight_bits, activation_bits=activation_bits, residual_bits=residual_bits
    )
    for name, bits in widths.items():
        if name != "residual_bits" or bits is not None:
            check_bits(bits, lowest=_WIDTHS[name])
    if head is not None and head not in HEADS:
        raise ConversionError(
            f"Expected head to be one of {', '.join(HEADS)}, or None. Received: head={head!r}."
        )
    if not isinstance(model, tf.keras.Model) or not hasattr(model, "_nodes_by_depth"):
        raise ConversionError(
            "Expected a functional or Sequential Keras model with a known input shape. Received: "
            f"{type(model).__name__}. Subclassed models have no list of layers: rebuild the "
            "network with tf.keras.Model(inputs, outputs)."
        )
    data = None if images is None else _Data(model, images, labels, batch_size)
    if data is None and labels is not None:
        raise ConversionError("Expected images along with labels. Received: labels only.")
    network = _Network(model, _Overrides(overrides or {}), head, widths)
    if data is not None and network.head is not None:
        data.check_labels(network.head.layer.units)
    builder = _Builder(model, network)
    builder.carry_weights()
    measured = None if data is None else builder.measure(data)
    if network.head is not None:
        builder.fill_head(measured, None if data is None else data.labels)
    return builder.model, builder.report(measured)


class _Data:
    """Images, and labels where there are any, in batches."""

    def __init__(self, model, images, labels, batch_size):
        self.arrays = [np.asarray(array) for array in tf.nest.flatten(images)]
        expected = [tuple(tensor.shape) for tensor in model.inputs]
        received = [array.shape for array in self.arrays]
        fits = (
            len(expected) == len(received)
            and all(
                len(want) == len(have)
                and have[0] == received[0][0] > 0
                # A fixed batch size says nothing about how many images there are.
                and all(w in (None, h) for w, h in zip(want[1:], have[1:], strict=True))
                for want, have in zip(expected, received, strict=True)
            )
        )
        if not fits:
            raise ConversionError(
                f"Expected images of shapes {expected}, equally many for each input of the model. "
                f"Received: {received}."
            )
        count = received[0][0]
        self.labels = None if labels is None else np.asarray(labels)
        if labels is not None:
            is_integer = np.issubdtype(self.labels.dtype, np.integer)
            if self.labels.shape not in ((count,), (count, 1)) or not is_integer:
                raise ConversionError(
                    f"Expected one integer class per image, shape ({count},). Received: "
                    f"{self.labels.dtype} of shape {self.labels.shape}."
                )
            self.labels = self.labels.ravel()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConversionError(
                f"Expected batch_size to be a positive integer. Received: {batch_size!r}."
            )
        self.batch_size = batch_size

    def check_labels(self, classes: int) -> None:
        """Raise for a label that is none of the classes."""
        if self.labels is None or 0 <= self.labels.min() <= self.labels.max() < classes:
            return
        raise ConversionError(
            f"Expected labels from 0 to {classes - 1}. Received: {self.labels.min()} to "
            f"{self.labels.max()}."
        )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __iter__(self) -> Iterator[list[tf.Tensor]]:
        for start in range(0, len(self), self.batch_size):
            yield [tf.constant(array[start : start + self.batch_size]) for array in self.arrays]


class _Overrides:
    """The user's exceptions, by layer name."""

    def __init__(self, rules: dict[str, dict[str, int] | str]):
        for pattern, rule in rules.items():
            if rule == "float":
                continue
            if not isinstance(rule, dict) or not rule or not set(rule) <= set(_WIDTHS):
                raise ConversionError(
                    f'Expected the override of {pattern!r} to be "float" or a dict of '
                    f"{', '.join(_WIDTHS)}. Received: {rule!r}."
                )
            for name, bits in rule.items():
                check_bits(bits, lowest=_WIDTHS[name])
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


_Value = tuple["_Call", int]  # an output of a call


@dataclass(eq=False, repr=False)
class _Call:
    """One call of a source layer."""

    layer: tf.keras.layers.Layer
    name: str
    role: str
    node: object = None
    inputs: list[_Value] = field(default_factory=list)
    readers: list[_Call] = field(default_factory=list)

    def apply(self, layer, tensors: list):
        """Call ``layer`` as the source was called, on other tensors."""
        by_id = defaultdict(list)
        for source, tensor in zip(self.node.keras_inputs, tensors, strict=True):
            by_id[str(id(source))].append(tensor)
        arguments, keywords = self.node.map_arguments(by_id)
        return tf.nest.flatten(layer(*arguments, **keywords))


@dataclass(eq=False, repr=False)
class _Place:
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


def _is_softmax(activation) -> bool:
    return activation in (tf.keras.activations.softmax, tf.nn.softmax)


def _role(layer) -> str:
    """Return the part that a layer plays; "unknown" where it has no quantized form."""
    kind = type(layer)
    if kind in _QUANTIZED:
        return "weighted"
    if kind in _POOLS:
        return "pool"
    if kind in _MOVING or (kind is _layers.Activation and _is_linear(layer.activation)):
        return "moving"
    if kind is _layers.ReLU or _ceiling(layer) is not None:
        return "relu"
    if kind is _layers.Softmax or (kind is _layers.Activation and _is_softmax(layer.activation)):
        return "softmax"
    names = {
        _layers.Add: "add",
        _layers.BatchNormalization: "norm",
        _layers.Rescaling: "rescaling",
    }
    return names.get(kind, "unknown")


class _Network:
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
    """

    def __init__(self, model, overrides: _Overrides, head: str | None, widths: dict):
        self.overrides = overrides
        self.widths = widths
        self.calls: list[_Call] = []
        self._names: dict[tf.keras.layers.Layer, str] = {}
        sources = []
        for tensor in model.inputs:
            layer = tensor.node.layer
            self.calls.append(_Call(layer, self._name(layer, ""), "input"))
            sources.append((self.calls[-1], 0))
        self.inputs = [call for call, _ in sources]
        self.outputs = self._flatten(model, sources, "")
        self.of: dict[tf.keras.layers.Layer, list[_Call]] = defaultdict(list)
        for call in self.calls:
            self.of[call.layer].append(call)
            for source, _ in call.inputs:
                source.readers.append(call)
        self.ends = {
            call.layer
            for call in self.calls
            if type(call.layer) in _QUANTIZED and not self._weighted_after(call.layer)
        }
        self.head, self.head_kind, self.dropped = None, head, set()
        if head is not None:
            self._find_head()
        self._settle_roles()
        self.norms = {
            layer: self._norms(layer)
            for layer, calls in self.of.items()
            if calls[0].role == "weighted"
        }
        self.places: dict[_Call, _Place] = {}
        self._find_places()
        self._check_overrides()

    def first(self, call: _Call) -> bool:
        """Return whether any call of this call's layer reads an input of the model."""
        return any(self._from_input(each.inputs) for each in self.of[call.layer])

    def weight_bits(self, call: _Call) -> int:
        """Return the width of a weighted layer."""
        at_end = self.first(call) or call.layer in self.ends
        bits = self.widths["weight_bits"]
        default = EDGE_BITS if at_end and bits != 32 else bits
        return self._width(call, "weight_bits", default)

    def keeps_scale(self, call: _Call) -> bool:
        """Return whether no batch norm may follow: what the model returns keeps its scale."""
        return call.layer in self.ends and not self.norms[call.layer]

    def fused(self, call: _Call) -> float | None:
        """Return the ceiling of the ReLU inside a hidden weighted layer, None without one."""
        if call.role != "weighted" or call.layer in self.ends:
            return None
        return _ceiling(call.layer.activation)

    # Reading the model.

    def _name(self, layer, parent: str) -> str:
        if layer not in self._names:
            self._names[layer] = _unique(layer.name, parent, self._names.values())
        return self._names[layer]

    def _flatten(self, model, sources: list[_Value], parent: str) -> list[_Value]:
        values = {id(tensor): value for tensor, value in zip(model.inputs, sources, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                layer, inputs = node.layer, [values[id(tensor)] for tensor in node.keras_inputs]
                name, produced = self._name(layer, parent), tf.nest.flatten(node.outputs)
                if hasattr(layer, "_nodes_by_depth") and self.overrides.of(name) != "float":
                    outputs = self._flatten(layer, inputs, name)
                else:
                    self.calls.append(_Call(layer, name, _role(layer), node, inputs))
                    outputs = [(self.calls[-1], i) for i in range(len(produced))]
                for tensor, value in zip(produced, outputs, strict=True):
                    values[id(tensor)] = value
        return [values[id(tensor)] for tensor in model.outputs]

    # Who reads whom.

    def _reached(self, call: _Call, through: Iterable[str] | None = None) -> set[_Call]:
        """Return the calls downstream, not beyond those whose role is not in ``through``."""
        found: set[_Call] = set()
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
            type(after.layer) in _QUANTIZED or (after.role == "unknown" and after.layer.weights)
            for call in self.of[layer]
            for after in self._reached(call)
        )

    def _feeds_end(self, call: _Call) -> bool:
        return any(r.layer in self.ends for r in self._reached(call, ("moving", "pool")))

    def _from_input(self, inputs: list[_Value]) -> bool:
        return any(
            source.role == "input"
            or (source.role in ("moving", "rescaling") and self._from_input(source.inputs))
            for source, _ in inputs
        )

    def _never_negative(self, call: _Call) -> bool:
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
            or not (_is_linear(layer.activation) or _is_softmax(layer.activation))
        ):
            raise ConversionError(
                "Expected a model that ends in a Dense layer of class scores, with or without a "
                f"softmax, for head={self.head_kind!r} to replace. Received: a model that ends in "
                f"{call.name!r} ({type(layer).__name__}). Pass head=None to keep its output."
            )
        self.head, self.dropped = call, dropped

    def _reason(self, call: _Call) -> str | None:
        """Return why a layer has no quantized form, None where it has one."""
        layer, kind = call.layer, type(call.layer)
        shape = layer.get_output_shape_at(0) if call.node else None
        if call.role == "unknown":
            if isinstance(layer, tf.keras.Model):
                return "subclassed models have no list of layers"
            if kind in _QUANTIZED.values() or isinstance(layer, (Head, lq.quantizers.Quantizer)):
                return "it is quantized already"
            return f"{kind.__name__} layers have no quantized form here"
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            return "its data_format is not channels_last"
        activation = getattr(layer, "activation", None)
        is_hidden = call.role == "weighted" and layer not in self.ends
        if is_hidden and self.fused(call) is None and not _is_linear(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
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
        groups: dict[tuple, list[_Call]] = defaultdict(list)
        for call in self.calls:
            if call is self.head or call in self.dropped:
                continue
            if call.role == "relu":
                # One per place, and the same where the same shared layer comes before.
                groups["activation_bits", call.layer, call.inputs[0][0].layer].append(call)
            elif self.fused(call) is not None:
                groups["activation_bits", call.layer].append(call)
            elif call.role in ("weighted", "norm", "add", "pool", "kept") and self._wanted(call):
                groups["residual_bits", call.layer].append(call)
        taken = set(self._names.values())
        for (width, *_), calls in groups.items():
            call = calls[0]
            default = self.widths[width]
            if any(map(self._feeds_end, calls)) and default not in (None, 32):
                default = EDGE_BITS
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
            name = name if is_new else _unique(name, "", taken)
            taken.add(name)
            signed = width == "residual_bits" and not all(map(self._never_negative, calls))
            place = _Place(name, bits, signed, ceiling)
            self.places.update(dict.fromkeys(calls, place))

    def _wanted(self, call: _Call, origin: _Call | None = None) -> bool:
        """Return whether anything reads the output of ``origin``, through ``call``, as codes."""
        origin = origin or call
        return any(self._wants_codes(reader, call, origin) for reader in call.readers)

    def _wants_codes(self, reader: _Call, call: _Call, origin: _Call) -> bool:
        if reader.role == "moving":
            return self._wanted(reader, origin)
        if reader.role == "weighted":
            # What follows the last quantizer runs in float.
            return not (origin.role == "pool" and reader.layer in self.ends)
        if reader.role == "norm":
            folds = type(call.layer) in _QUANTIZED or call.role == "norm"
            return not (folds and len(call.readers) == 1)
        return reader.role in ("add", "pool")

    def _width(self, call: _Call, width: str, default: int | None) -> int | None:
        rule = self.overrides.of(call.name)
        return default if rule == "float" else rule.get(width, default)

    def _check_overrides(self) -> None:
        having: dict[str, set[str]] = {width: set() for width in _WIDTHS}
        for call in self.calls:
            if call.role == "weighted":
                having["weight_bits"].add(call.name)
            if call in self.places:
                is_relu = call.role == "relu" or self.fused(call) is not None
                having["activation_bits" if is_relu else "residual_bits"].add(call.name)
        self.overrides.check(self._names.values(), having)


def _unique(name: str, parent: str, taken: Iterable[str]) -> str:
    """Return a name that is not taken, with that of the parent before it where there is one."""
    if name in taken and parent:
        name = f"{parent}_{name}"
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


class _Builder:
    """Makes the new model, and gives it the source's weights.

    Attributes:
        model: The result.
    """

    def __init__(self, model, network: _Network):
        self._factors: dict[tf.keras.layers.Layer, tuple[np.ndarray, np.ndarray]] = {}
        self._network = network
        self._made: dict[object, tf.keras.layers.Layer] = {}
        self._taken = {call.name for call in network.calls}
        self._taken |= {place.name for place in network.places.values()}
        self._absorbing = {norm for norms in network.norms.values() for norm in norms}
        inputs = tf.nest.map_structure(
            lambda tensor: tf.keras.Input(
                tensor.shape[1:], tensor.shape[0], tensor.node.layer.name, tensor.dtype
            ),
            model.input,
        )
        values = {
            (call, 0): tensor
            for call, tensor in zip(network.inputs, tf.nest.flatten(inputs), strict=True)
        }
        for call in network.calls:
            if call.role != "input":
                tensors = [values[value] for value in call.inputs]
                for layer in self._steps(call):
                    tensors = self._step(call, layer, tensors)
                values |= {(call, i): tensor for i, tensor in enumerate(tensors)}
        outputs = tf.nest.pack_sequence_as(model.output, [values[v] for v in network.outputs])
        self.model = tf.keras.Model(inputs, outputs, name=model.name)

    def _step(self, call: _Call, layer, tensors: list) -> list:
        """Apply one of the layers that stand for a call, in a graph or eagerly."""
        if layer is self._made.get(call.layer):
            return call.apply(layer, tensors)
        return [layer(tensor) for tensor in tensors]

    def _steps(self, call: _Call) -> list[tf.keras.layers.Layer]:
        """Return the layers that stand for a call, one after the other."""
        network, steps = self._network, []
        if call is network.head:
            steps.append(self._once(call.layer, lambda: self._head(call)))
        elif call.role == "weighted":
            steps.append(self._once(call.layer, lambda: self._weighted(call)))
            if not network.keeps_scale(call) and not network.norms[call.layer]:
                steps.append(self._once((call.layer, "norm"), lambda: self._norm(call)))
        elif call.role != "relu" and call not in network.dropped:
            steps.append(self._once(call.layer, lambda: self._copy(call)))
        place = network.places.get(call)
        return steps if place is None else [*steps, self._once(place, place.make)]

    def _once(self, key, make):
        """Return the layer that stands for ``key``, made when first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _copy(self, call: _Call):
        layer = call.layer
        try:
            config = {**layer.get_config(), "name": call.name}
            if layer in self._absorbing:
                config |= {"scale": True, "center": True}
            return type(layer).from_config(config)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ConversionError(
                f"Layer {call.name!r} ({type(layer).__name__}) cannot be copied: {error} Give its "
                "class a get_config that returns the arguments of its __init__."
            ) from error

    def _head(self, call: _Call):
        return HEADS[self._network.head_kind](
            call.layer.units,
            self._network.weight_bits(call),
            kernel_regularizer=call.layer.kernel_regularizer,
            trainable=call.layer.trainable,
            name=call.name,
        )

    def _weighted(self, call: _Call):
        config = {**call.layer.get_config(), "name": call.name}
        bits = self._network.weight_bits(call)
        if self._network.keeps_scale(call):
            quantizer = SymmetricWeights(bits)
        else:
            quantizer = SATWeights(bits)
            config |= {"activation": None, "use_bias": False}
        return _QUANTIZED[type(call.layer)].from_config(
            {**config, _weight_names(call.layer)[1]: quantizer}
        )

    def _norm(self, call: _Call):
        name = _unique(f"{call.name}_bn", "", self._taken)
        self._taken.add(name)
        return _layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            trainable=call.layer.trainable,
            dtype=call.layer.dtype_policy,
            name=name,
        )

    def carry_weights(self) -> None:
        """Give every layer but the head the source's weights."""
        for layer, (call, *_) in self._network.of.items():
            made = self._made.get(layer)
            if made is None or layer in self._absorbing or call is self._network.head:
                continue
            if call.role != "weighted" or self._network.keeps_scale(call):
                made.set_weights(layer.get_weights())
                continue
            variable, quantizer = _weight_names(layer)
            kernel = np.float64(getattr(layer, variable))
            # A depthwise kernel's last two axes are the output channels.
            axes = tuple(range(kernel.ndim - (2 if "depthwise" in variable else 1)))
            latents = _latents(kernel, axes)
            getattr(made, variable).assign(latents)
            quantized = np.float64(getattr(made, quantizer)(latents))
            scale = np.ravel(_projection(kernel, quantized, axes))
            bias = np.float64(layer.bias) if layer.use_bias else np.zeros_like(scale)
            self._factors[layer] = scale, bias
            for norm in self._network.norms[layer]:
                _set_norm(self._made[norm], norm, scale, bias)
            if not self._network.norms[layer]:
                # Whatever the statistics, this norm computes scale * x + bias.
                norm = self._made[layer, "norm"]
                norm.gamma.assign(scale * np.sqrt(1 + norm.epsilon))
                norm.beta.assign(bias)

    def measure(self, data: _Data) -> _Measured:
        """Set ranges and the statistics of batch norms on images.

        Ranges start where they lose least on what the source computes. Statistics move by what
        quantization moves them, from the source's to those of the new model, on these images: with
        8 bits that is next to nothing, with few it is what keeps the network alive.
        """
        rounding = {
            place: made
            for place, made in self._made.items()
            if isinstance(made, CGPACT) and made.bits != 32
        }
        measured = self._run_source(data, rounding)
        for place, made in rounding.items():
            measured.ranges[made.name] = set_range(made, np.concatenate(measured.samples[place]))
        measured.features = self._run_result(data, measured.moments)
        return measured

    def _run_source(self, data: _Data, rounding) -> _Measured:
        """Run the source on the images, batch by batch."""
        network = self._network
        measured = _Measured({place: [] for place in rounding})
        generator = np.random.default_rng(0)
        for batch in data:
            share = -(-SAMPLE * len(batch[0]) // len(data))
            values = dict(zip(((call, 0) for call in network.inputs), batch, strict=True))
            for call in network.calls:
                if call.role == "input":
                    continue
                inputs = _take(values, call)
                outputs = call.apply(call.layer, inputs)
                values |= {(call, i): tensor for i, tensor in enumerate(outputs)}
                place = network.places.get(call)
                if place in rounding:
                    measured.samples[place] += [
                        subsample(x.numpy(), share, generator) for x in outputs
                    ]
                if call is network.head:
                    measured.predictions += list(np.argmax(outputs[0], axis=-1))
                if call is not network.of[call.layer][0]:
                    continue
                if call.role == "norm":
                    measured.moments[call.layer].add(inputs[0])
                elif (call.layer, "norm") in self._made:
                    measured.moments[call.layer].add(self._linear_output(call, inputs))
        return measured

    def _linear_output(self, call: _Call, inputs: list) -> tf.Tensor:
        """Return what a weighted layer of the source computes before its activation."""
        layer = call.layer

        def make():
            linear = type(layer).from_config({**layer.get_config(), "activation": None})
            linear.build(inputs[0].shape)
            linear.set_weights(layer.get_weights())
            return linear

        return self._once((layer, "linear"), make)(inputs[0])

    def _run_result(self, data: _Data, moments: dict) -> np.ndarray | None:
        """Run the new model layer by layer, correct its batch norms, and return the features."""
        network = self._network
        batches = list(zip(*data, strict=True))  # by input of the model
        values = {(call, 0): each for call, each in zip(network.inputs, batches, strict=True)}
        for call in network.calls:
            if call.role == "input":
                continue
            inputs = _take(values, call)
            if call is network.head:
                return np.concatenate(inputs[0])
            batches = list(zip(*inputs, strict=True))
            for layer in self._steps(call):
                if call.layer in moments and isinstance(layer, _layers.BatchNormalization):
                    self._correct(call, layer, moments.pop(call.layer), batches)
                batches = [self._step(call, layer, list(tensors)) for tensors in batches]
            outputs = zip(*batches, strict=True)
            values |= {(call, i): list(each) for i, each in enumerate(outputs)}
        return None

    def _correct(self, call: _Call, norm, source: _Moments, batches: list) -> None:
        """Move a norm's statistics by what quantization moved those of its inputs."""
        of = call.layer if call.role == "weighted" else call.inputs[0][0].layer
        is_scaled = call.role == "weighted" or call.layer in self._absorbing
        scale, bias = self._factors[of] if is_scaled else (np.ones(()), np.zeros(()))
        divisor = np.where(scale > 0, scale, 1.0)
        mean, variance = (source.mean - bias) / divisor, source.variance / divisor**2
        if call.role == "weighted":  # inserted: it has no statistics yet
            _set_norm(norm, norm, 1.0, 0.0, mean, variance)
        result = _Moments()
        for tensors in batches:
            result.add(tensors[0])
        alive = (scale > 0) & (variance > 0) & (result.variance > 0)
        shift = np.where(alive, result.mean - mean, 0.0)
        norm.moving_mean.assign_add(shift)
        ratio = np.where(alive, result.variance / np.where(alive, variance, 1.0), 1.0)
        norm.moving_variance.assign(np.float64(norm.moving_variance) * ratio)

    def fill_head(self, measured: _Measured | None, labels: np.ndarray | None) -> None:
        """Give the head its weights, from the classifier and from features of the images."""
        network = self._network
        source, made = network.head.layer, self._made[network.head.layer]
        kernel = np.float64(source.kernel)
        bias = np.float64(source.bias) if source.use_bias else np.zeros(source.units)
        if network.head_kind == "linear":
            made.kernel.assign(_latents(kernel, (0, 1)))
            quantized = np.float64(made.kernel_quantizer(made.kernel))
            made.bias.assign(bias / _projection(kernel, quantized, (0, 1)))
            return
        is_cosine = network.head_kind == "cosine"
        columns = kernel if is_cosine else _mixture_means(kernel, bias)
        if measured is not None and (labels is not None or is_cosine):
            features = np.float64(measured.features)
            labels = np.asarray(measured.predictions if labels is None else labels)
            if is_cosine:
                features = _unit(features, axis=1)
            for label in np.unique(labels):
                columns[:, label] = features[labels == label].mean(axis=0)
        # Cosines do not see the length of a class vector, but the clamp of all of them does.
        made.kernel.assign(_latents(_unit(columns, axis=0), (0, 1)) if is_cosine else columns)

    def report(self, measured: _Measured | None) -> ConversionReport:
        """Return what became of each layer."""
        network = self._network
        notes = []
        if measured is None:
            notes.append(
                "Without images: activation ranges are initial guesses, inserted batch norms have "
                "mean 0 and variance 1. Pass images, or expect the first steps to find both."
            )
        conversions = [
            self._conversion(layer, calls)
            for layer, calls in network.of.items()
            if calls[0].role != "input"
        ]
        return ConversionReport(conversions, {} if measured is None else measured.ranges, notes)

    def _conversion(self, layer, calls: list[_Call]) -> Conversion:
        network, call = self._network, calls[0]
        places = list(dict.fromkeys(network.places[c] for c in calls if c in network.places))
        made = self._made.get(layer)
        notes = []
        weight_bits = None
        if call.role == "weighted":
            weight_bits = network.weight_bits(call)
            if network.first(call):
                notes.append("reads an input")
            if layer in network.ends:
                notes.append("last layer")
            if call is network.head:
                if _is_softmax(layer.activation):
                    notes.append("its softmax is dropped: losses take logits")
            elif (layer, "norm") in self._made:
                notes.append(f"{self._made[layer, 'norm'].name} inserted for its scale and bias")
            elif not network.keeps_scale(call):
                names = ", ".join(self._made[norm].name for norm in network.norms[layer])
                notes.append(f"scale{' and bias' * layer.use_bias} moved into {names}")
        elif call.role == "kept":
            is_override = network.overrides.of(call.name) == "float"
            notes.append(f"stays float: {'override' if is_override else 'it is the output'}")
        elif call.role == "rescaling" and np.any(layer.offset):
            notes.append("int8 files cannot hold its offset")
        if call in network.dropped:
            notes.append("losses take logits")
        if call.role == "relu":
            made = self._made[places[0]]
            notes += [f"also {place.name}" for place in places[1:]]
        else:
            notes += [f"outputs rounded by {place.name}" for place in places]
        if not layer.trainable:
            notes.append("frozen")
        return Conversion(
            layer=call.name,
            was=type(layer).__name__,
            became="dropped" if call in network.dropped else type(made).__name__,
            weight_bits=weight_bits,
            activation_bits=places[0].bits if places else None,
            note="; ".join(notes),
        )


def _weight_names(layer) -> tuple[str, str]:
    """Return the names of a layer's kernel and of its quantizer."""
    part = "depthwise" if isinstance(layer, _layers.DepthwiseConv2D) else "kernel"
    return ("depthwise_kernel" if part == "depthwise" else "kernel", f"{part}_quantizer")


class _Moments:
    """Mean and variance per channel of values that come in batches."""

    def __init__(self):
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: tf.Tensor) -> None:
        values = np.float64(values).reshape(-1, values.shape[-1])
        self._count += len(values)
        self._sum = self._sum + values.sum(axis=0)
        self._squares = self._squares + np.square(values).sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self._count

    @property
    def variance(self) -> np.ndarray:
        return np.maximum(self._squares / self._count - self.mean**2, 0.0)


@dataclass
class _Measured:
    """What was seen on images.

    Attributes:
        samples: Values of the source where each quantizer will stand.
        moments: Of the inputs of the source's batch norms, and where one is inserted.
        predictions: Classes by the source's classifier.
        ranges: By quantizer.
        features: What the new head reads.
    """

    samples: dict[_Place, list[np.ndarray]]
    moments: dict[tf.keras.layers.Layer, _Moments] = field(
        default_factory=lambda: defaultdict(_Moments)
    )
    predictions: list[int] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)
    features: np.ndarray | None = None


def _take(values: dict[_Value, object], call: _Call) -> list:
    """Return the inputs of a call, and forget those that no later one reads."""
    inputs = [values[value] for value in call.inputs]
    for source, i in call.inputs:
        if source.readers[-1] is call:
            values.pop((source, i), None)
    return inputs


def _unit(vectors: np.ndarray, axis: int) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-12)


def _latents(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the latents that the SAT clamp turns into ``kernel`` over its maximum on ``axes``."""
    largest = np.abs(kernel).max(axis=axes, keepdims=True)
    reach = np.tanh(min(largest.max(), _REACH))
    return np.arctanh(kernel / np.where(largest > 0, largest, 1.0) * reach).astype(np.float32)


def _projection(kernel: np.ndarray, quantized: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the factors that bring ``quantized`` nearest to ``kernel``, one beyond ``axes``."""
    norms = np.square(quantized).sum(axis=axes)
    return (kernel * quantized).sum(axis=axes) / np.where(norms > 0, norms, 1.0)


def _set_norm(made, source, scale, bias, mean=None, variance=None) -> None:
    """Let a batch norm compute of x what ``source`` computes of ``scale * x + bias``.

    Args:
        made: Norm to set, with gamma and beta where the source has them.
        source: Norm to read.
        scale: Zero or more, per channel; where it is zero gamma is.
        bias: Per channel.
        mean: Statistics of x to use, by default those that the source's are of x.
        variance: The same.
    """
    source_mean, source_variance = map(np.float64, (source.moving_mean, source.moving_variance))
    gain = np.float64(source.gamma) if source.scale else 1.0
    gain = gain / np.sqrt(source_variance + source.epsilon)
    offset = (np.float64(source.beta) if source.center else 0.0) - source_mean * gain
    alive = np.broadcast_to(scale, gain.shape) > 0
    if mean is None:
        divisor = np.where(alive, scale, 1.0)
        mean = np.where(alive, (source_mean - bias) / divisor, 0.0)
        variance = np.where(alive, source_variance / divisor**2, 1.0)
    made.moving_mean.assign(mean)
    made.moving_variance.assign(variance)
    gain, offset = gain * scale, offset + gain * bias
    if made.scale:
        made.gamma.assign(gain * np.sqrt(variance + made.epsilon))
    if made.center:
        made.beta.assign(offset + gain * mean)


def _mixture_means(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    r"""Return means whose Gaussian mixture has the posterior of a softmax classifier.

    Scores :math:`f \cdot \mu_k - |\mu_k|^2 / 2` with :math:`\mu_k = w_k + c` differ from those of
    the classifier by a constant where :math:`w_k \cdot c + b_k + |w_k|^2 / 2` is the same for all
    classes: a linear system for c, solved exactly where the columns are independent, and in the
    sense of least squares elsewhere.
    """
    target = bias + np.square(kernel).sum(axis=0) / 2
    centred = kernel - kernel.mean(axis=1, keepdims=True)
    shift = np.linalg.lstsq(centred.T, target.mean() - target, rcond=None)[0]
    return kernel + shift[:, None]
