"""The source as a list of calls, and where its quantizers belong."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import AUGMENTATIONS, StandardLayers, function_of
from dlqat_tf.convert import inputs as taking
from dlqat_tf.convert.ends import End, find_end, kinds_of
from dlqat_tf.convert.kinds import (
    FIXED_RANGES,
    GATES,
    NEVER_NEGATIVE,
    QUANTIZED,
    ceiling_of,
    is_linear,
    is_quantized,
    is_weighted,
    role_of,
)
from dlqat_tf.convert.overrides import WIDTHS, Overrides
from dlqat_tf.convert.problems import (
    Problem,
    no_form,
    refusal,
    shown_overrides,
    some,
    unstored,
)
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.graph import apply, follow, training_of, unique
from dlqat_tf.models.resnet import edge_bits
from dlqat_tf.preprocessing import Affine, Preprocessing
from dlqat_tf.quantizers import CGPACT, InputQuantizer
from dlqat_tf.quantizers.input import range_of

_layers = tf.keras.layers

Value = tuple["Call", int]  # an output of a call


@dataclass(eq=False, repr=False)
class Call:
    """One call of a source layer.

    Attributes:
        training: What it, or the call of a model around it, was told; None: what the whole model is
            told.
        trainable: Whether neither the layer nor a model around it is frozen.
        affine: The arithmetic that it prepares an input by, of the role "rescaling"; or None.
    """

    layer: tf.keras.layers.Layer
    name: str
    role: str
    node: object = None
    inputs: list[Value] = field(default_factory=list)
    training: bool | None = None
    trainable: bool = True
    readers: list[Call] = field(default_factory=list)
    affine: Affine | None = None

    @property
    def mode(self) -> dict[str, bool]:
        """Arguments that run a layer in this call's mode."""
        return {} if self.training is None else {"training": self.training}

    def apply(self, layer, tensors: list):
        """Call ``layer`` as the source was called, on other tensors."""
        told = layer._expects_training_arg and training_of(self.node) is None
        mode = self.mode
        if isinstance(layer, AUGMENTATIONS) and not tf.keras.backend.is_keras_tensor(tensors[0]):
            mode = {"training": False, **mode}  # outside of a model they augment by default
        return apply(self.node, layer, tensors, **(mode if told else {}))


@dataclass(eq=False, repr=False)
class Place:
    """A quantizer of activations: where it stands for which calls, and what it is.

    Attributes:
        is_input: Whether it rounds what the model takes.
        preprocessing: Of the pixels that an input stands for; None for other values.
        range: Where all values that there may be are known.
    """

    name: str
    bits: int
    signed: bool
    ceiling: float
    trainable: bool
    is_input: bool = False
    preprocessing: Preprocessing | None = None
    range: float | None = None

    def make(self):
        if self.is_input:
            # A range that clips none of all values is not to be trained.
            return InputQuantizer(
                self.bits,
                self.range or 8.0,
                self.signed,
                self.preprocessing,
                trainable=self.trainable and self.range is None,
                name=self.name,
            )
        if self.bits == 32 and self.ceiling < math.inf:
            return _layers.ReLU(self.ceiling, name=self.name)
        alpha = self.range or min(8.0, self.ceiling)
        trainable = self.trainable and self.range is None
        return CGPACT(self.bits, alpha, self.signed, trainable=trainable, name=self.name)


@dataclass(frozen=True)
class _Around:
    """What the calls of a model pass on to the layers in it."""

    name: str = ""
    training: bool | None = None
    trainable: bool = True


class Network:
    """The source as a list of calls, and where its quantizers belong.

    Attributes:
        calls: In the order of computation, nested models flattened.
        outputs: What the model returns.
        heads: The calls that become heads.
        dropped: Calls that are left out.
        in_float: Calls that stay float without an override, and why.
        places: The quantizer after each call that has one.
        norms: By weighted layer, the batch norms that take its scale; empty where one is inserted.
        ends: Weighted layers that no other weighted layer follows.

    Args:
        model: The source.
        overrides: The user's exceptions.
        head: As in ``quantize``.
        widths: Of hidden layers, as in ``quantize``.
        preprocessing: As in ``quantize``.
        images: An array for each input, or None.
        partial: Whether layers without a quantized form, or quantized already, may stand between
            others; else they are errors.
    """

    def __init__(
        self,
        model,
        overrides: Overrides,
        head: str | dict[str, str | None] | None,
        widths: dict[str, int | None],
        *,
        preprocessing=None,
        images: list[np.ndarray] | None = None,
        partial: bool = False,
    ):
        self.overrides = overrides
        self.widths = widths
        self.calls: list[Call] = []
        self._names: dict[tf.keras.layers.Layer, str] = {}
        self._standard = None if partial else StandardLayers()
        sources = []
        for tensor in model.inputs:
            layer = tensor.node.layer
            self.calls.append(Call(layer, self._name(layer, _Around()), "input"))
            sources.append((self.calls[-1], 0))
        self.inputs = [call for call, _ in sources]
        self.outputs = self._flatten(model, sources, _Around(trainable=model.trainable))
        if self._standard is not None:
            self._leave_out_detours()
        self.of: dict[tf.keras.layers.Layer, list[Call]] = defaultdict(list)
        for call in self.calls:
            self.of[call.layer].append(call)
            for source, _ in call.inputs:
                source.readers.append(call)
        self.ends = {
            call.layer
            for call in self.calls
            if is_weighted(call.layer) and not self._weighted_after(call.layer)
        }
        if not partial:
            self._check_float()
        self.in_float: dict[Call, Problem] = {}
        self.heads: dict[Call, End] = {}
        self.dropped: set[Call] = set()
        for i, kind in enumerate(kinds_of(head, model.output_names)):
            call, dropped = (None, set()) if kind is None else find_end(self, i, kind)
            if call is not None:
                self.heads[call] = End(kind, i)
                self.dropped |= dropped
        if not partial:
            self._settle_roles()
        names = [call.name for call in self.inputs]
        settings = taking.settings_of(preprocessing, names)
        self.taken = {
            call: taking.taken(call, settings[call.name], values)
            for call, values in zip(self.inputs, images or [None] * len(names), strict=True)
        }
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
        return ceiling_of(getattr(call.layer, "activation", None))

    def width_of(self, call: Call) -> str:
        """Return the name of the width that the quantizer of a call's output has."""
        if call.role == "function":
            return "residual_bits" if function_of(call.layer) in GATES else "activation_bits"
        is_relu = call.role == "relu" or self.fused(call) is not None
        return "activation_bits" if is_relu else "residual_bits"

    def trainable(self, layer) -> bool:
        """Return whether any call of a layer is outside of what is frozen."""
        return any(call.trainable for call in self.of[layer])

    def image_of(self, call: Call) -> Call | None:
        """Return the input whose values a call prepares, or that it is; None for other calls."""
        if call.role != "input" and call.affine is None:
            return None
        return call if call.role == "input" else self.image_of(call.inputs[0][0])

    def is_rounded(self, call: Call) -> bool:
        """Return whether an input quantizer belongs behind a call, if anything reads it as codes.

        Pixels / 255 are codes as they are.
        """
        image = self.image_of(call)
        if image is None:
            return False
        taken = self.taken[image]
        return not taken.is_known or not taking.is_unit(taking.prepared(call, taken.examples))

    def _measurement(self, call: Call) -> bool:
        """Return whether a call is a batch norm that brings the channels of values to one scale."""
        if call.role != "norm":
            return False
        (source, _) = call.inputs[0]
        while source.role == "moving" and len(source.inputs) == 1:
            (source, _) = source.inputs[0]
        image = self.image_of(source)
        return image is not None and not self.taken[image].is_known

    @property
    def notes(self) -> list[str]:
        """What the user should know of the inputs."""
        found = [each.note for each in self.taken.values()]
        free = [call.name for call in self.inputs if None in call.layer.output.shape[1:]]
        if free:
            found.append(f"{some(free)} may have any size: export asks for one size.")
        shared: dict[Place, dict[str, np.ndarray]] = defaultdict(dict)
        for call, place in self.places.items():
            image = self.image_of(call)
            if image and not self.taken[image].is_known and self.taken[image].examples is not None:
                examples = taking.prepared(call, self.taken[image].examples)
                shared[place][image.name] = examples
        found += [taking.too_narrow(each) for each in shared.values()]
        return [note for note in found if note]

    # Reading the model.

    def _name(self, layer, around: _Around) -> str:
        if layer not in self._names:
            taken, parent = self._names.values(), around.name
            name = f"{parent}_{layer.name}" if parent and layer.name in taken else layer.name
            self._names[layer] = unique(name, taken)
        return self._names[layer]

    def _flatten(self, model, sources: list[Value], around: _Around) -> list[Value]:
        return follow(model, sources, lambda node, inputs: self._read(node, inputs, around))

    def _read(self, node, inputs: list[Value], around: _Around) -> list[Value]:
        layer, name = node.layer, self._name(node.layer, around)
        training = training_of(node, around.training)
        trainable = layer.trainable and around.trainable
        if hasattr(layer, "_nodes_by_depth") and self.overrides.of(name) != "float":
            return self._flatten(layer, inputs, _Around(name, training, trainable))
        call = Call(layer, name, role_of(layer), node, inputs, training, trainable)
        call.affine = taking.arithmetic_of(call)
        part = self._in_standard_layers(call)
        if part is not None:
            return self._flatten(part, inputs, replace(around, training=training))
        if call.affine is not None:
            call.role = "rescaling"
        self.calls.append(call)
        return [(call, i) for i in range(len(tf.nest.flatten(node.outputs)))]

    def _in_standard_layers(self, call: Call):
        """Return the standard layers that compute what a call does, as a model, or None."""
        is_kept = call.affine is not None or self.overrides.of(call.name) == "float"
        if self._standard is None or is_kept:
            return None
        in_rows = all(self._standard.makes_sequence(source.layer) for source, _ in call.inputs)
        part = self._standard.of(call.node, in_rows)
        if part is not None:
            self._names[self._standard.made[call.layer, ""]] = call.name
        return part

    def _leave_out_detours(self) -> None:
        """Leave out sequences made of images of one row, where only such images are made of them.

        What computes on sequences then reads the image that it would make again.
        """
        standard = self._standard
        for call in self.calls:
            for i, (source, _) in enumerate(call.inputs):
                if standard.makes_row(source.layer):
                    (before, _) = source.inputs[0]
                    if standard.makes_sequence(before.layer):
                        call.inputs[i] = before.inputs[0]
        made = (standard.makes_sequence, standard.makes_row)
        for detour in made[::-1]:
            used = {source for call in self.calls for source, _ in call.inputs}
            used |= {source for source, _ in self.outputs}
            self.calls = [each for each in self.calls if each in used or not detour(each.layer)]

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
            is_weighted(after.layer) or (after.role in ("unknown", "kept") and after.layer.weights)
            for call in self.of[layer]
            for after in self._reached(call)
        )

    def _at_end(self, call: Call) -> bool:
        """Return whether the last layer reads this, or no weighted layer comes after it."""
        if any(r.layer in self.ends for r in self._reached(call, ("moving", "pool"))):
            return True
        return not self._weighted_after(call.layer)

    def from_input(self, inputs: list[Value]) -> bool:
        """Return whether one of the values is an input, or one that was only moved or rescaled."""
        return any(
            source.role == "input"
            or (source.role in ("moving", "rescaling") and self.from_input(source.inputs))
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
        image = self.image_of(call)
        if image is not None:
            examples = self.taken[image].examples
            return examples is not None and not taking.prepared(call, examples).min() < 0
        # As the source computes it, also where it stays float and at the end of the model.
        role, layer = role_of(call.layer), call.layer
        if role == "function":
            return function_of(layer) in NEVER_NEGATIVE
        of = getattr(layer, "activation", None) if role == "weighted" else layer
        return role in ("weighted", "relu") and ceiling_of(of) is not None

    def _norms(self, layer) -> list[tf.keras.layers.Layer]:
        """Return the batch norms that alone read a weighted layer, and nothing else."""
        found = []
        for call in self.of[layer]:
            alone = len(call.readers) == 1 and (call, 0) not in self.outputs
            if not alone or call.readers[0].role != "norm" or not is_linear(layer.activation):
                return []
            found.append(call.readers[0].layer)
        every = [call for norm in found for call in self.of[norm]]
        return found if all(call.inputs[0][0].layer is layer for call in every) else []

    # Head, problems, quantizers.

    def _check_float(self) -> None:
        """Raise for layers that are quantized already and not to be kept."""
        names = [
            call.name
            for call in self.calls
            if is_quantized(call.layer) and self.overrides.of(call.name) != "float"
        ]
        if not names:
            return
        overrides = {}
        advice = "Train or export it as it is; for other widths, quantize the float model again."
        if any(type(call.layer) in QUANTIZED for call in self.calls):
            overrides = dict.fromkeys(names, "float")
            advice += f" To keep these layers and quantize the rest: {shown_overrides(overrides)}."
        raise ConversionError(
            f"Expected a float model. Received: one with layers that are quantized already, "
            f"{some(names)}. {advice}",
            overrides,
        )

    def _settle_roles(self) -> None:
        """Give what stays float the role "kept", or say what cannot be converted."""
        lasting: dict[str, tuple] = {}
        for call in self.calls:
            if call.role == "norm" and call.training:
                raise ConversionError(
                    f"Expected batch norms that use their averages in inference. Received: "
                    f"{call.name!r}, called with training=True. Call it without."
                )
            problem = no_form(self, call)
            is_kept = self.overrides.of(call.name) == "float" and call not in self.dropped
            is_output = call.role == "relu" and not call.readers
            if is_output or (
                is_kept and (problem or call.role in ("weighted", "relu", "function", "add"))
            ):
                call.role = "kept"
            elif problem and problem.is_lasting:
                lasting[call.name] = call.layer, problem
            elif problem:
                call.role = "kept"
                self.in_float[call] = problem
        reasons = unstored(list(self.in_float))
        for call, problem in self.in_float.items():
            if call.name in reasons:
                without = Problem(f"{reasons[call.name]}", problem.advice)
                lasting[call.name] = call.layer, without
        if lasting:
            raise refusal(lasting, len(self.of))

    def _find_places(self) -> None:
        groups: dict[tuple, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call in self.heads or call in self.dropped:
                continue
            if call.role == "relu":
                # One per place, and the same where the same shared layer comes before.
                groups["activation_bits", call.layer, call.inputs[0][0].layer].append(call)
            elif self.fused(call) is not None:
                groups["activation_bits", call.layer].append(call)
            elif call.role == "function" and self._wanted(call):
                groups[self.width_of(call), self._meeting(call.layer)].append(call)
            elif call.role in ("weighted", "norm", "add", "pool", "kept") and self._wanted(call):
                groups["residual_bits", self._meeting(call.layer)].append(call)
            elif self.is_rounded(call) and self._wanted(call):
                is_known = self.taken[self.image_of(call)].is_known
                meeting = call if is_known else self._meeting(call.layer)
                groups["residual_bits", meeting].append(call)
        taken = set(self._names.values())
        for (width, *_), calls in groups.items():
            call = calls[0]
            default = self.widths[width]
            if any(map(self._at_end, calls)):
                default = edge_bits(default)
            images = [each for each in map(self.image_of, calls) if each]
            if images:
                default = edge_bits(default) or edge_bits(8)
            bits = self._width(call, width, default)
            if bits is None:
                continue
            name = call.name
            if images:
                name, ceiling = f"{images[0].name}_codes", math.inf
            elif call.role == "function":
                name, ceiling = f"{name}_act", math.inf
            elif width == "residual_bits":
                name, ceiling = f"{name}_residual", math.inf
            elif call.role == "relu":
                ceiling = ceiling_of(call.layer)
            else:
                name, ceiling = f"{name}_act", self.fused(call)
            is_new = call.role == "relu" and not any(name == p.name for p in self.places.values())
            name = name if is_new else unique(name, taken)
            taken.add(name)
            is_signed = width == "residual_bits" or call.role == "function"
            signed = is_signed and not all(map(self._never_negative, calls))
            if call.role == "function":
                bits = max(bits, 2) if signed else bits  # there are no signed codes of one bit
            trainable = any(call.trainable for call in calls)
            is_input = bool(images) or any(map(self._measurement, calls))
            place = Place(name, bits, signed, ceiling, trainable, is_input)
            if images and self.taken[images[0]].is_known:
                taken_by = self.taken[images[0]]
                place.preprocessing = taken_by.preprocessing
                place.range, _ = range_of(taking.prepared(call, taken_by.examples))
            functions = {function_of(each.layer) for each in calls if each.role == "function"}
            if bits == 8 and len(functions) == 1:
                place.range = FIXED_RANGES.get(*functions)
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
        image = self.image_of(origin)
        if reader.role == "norm" and image and not self.taken[image].is_known:
            return False  # measurements are brought to one scale before they are rounded
        if reader.role == "function":
            return self._wanted(reader)  # a table of codes, between two grids
        if reader.role == "kept":
            # It takes float values; kernels on integers end on a grid wherever one follows, and
            # pixels that are prepared are looked up.
            is_kernel = origin.role in ("weighted", "norm") and self._rounded_after(reader)
            return is_kernel or self.image_of(origin) is not None
        if reader.role == "norm":
            folds = is_weighted(call.layer) or call.role == "norm"
            return not (folds and len(call.readers) == 1)
        return reader.role in ("add", "pool")

    def _rounded_after(self, call: Call) -> bool:
        """Return whether a quantizer may come after a call."""
        rounding = ("weighted", "relu", "function", "add", "pool", "norm")
        return any(after.role in rounding for after in self._reached(call))

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
