"""Where the quantizers of a model belong, whose layers are read as a list of calls."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import function_of
from dlqat_tf.convert import inputs as taking
from dlqat_tf.convert.calls import Call, Calls, Value
from dlqat_tf.convert.ends import End, find_end, kinds_of
from dlqat_tf.convert.kinds import (
    FIXED_RANGES,
    GATES,
    MEETINGS,
    NEVER_NEGATIVE,
    QUANTIZED,
    ceiling_of,
    is_linear,
    is_quantized,
    is_weighted,
    role_of,
    takes_integers,
)
from dlqat_tf.convert.overrides import WIDTHS, Overrides
from dlqat_tf.convert.place import Place
from dlqat_tf.convert.problems import (
    Problem,
    no_form,
    refusal,
    shown_overrides,
    some,
    unstored,
)
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.graph import unique
from dlqat_tf.models.resnet import edge_bits
from dlqat_tf.preprocessing import is_unit
from dlqat_tf.quantizers.input import range_of

_layers = tf.keras.layers
_ENDS = (6.0, math.inf)  # of ReLUs that files have in front of a quantizer


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
        source = Calls(model, overrides, partial)
        self.calls, self.of, self._names = source.every, source.of, source.names
        self.inputs, self.outputs = source.inputs, source.outputs
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
        if partial:
            self._keep_what_has_no_form()
        else:
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
        self._check_integers()
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

    def inserts_norm(self, call: Call) -> bool:
        """Return whether a batch norm is to follow that the source has not."""
        is_hidden = call.role == "weighted" and call not in self.heads
        return is_hidden and not self.keeps_scale(call) and not self.norms[call.layer]

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
        return not taken.is_known or not is_unit(taking.prepared(call, taken.examples))

    def grids_of(self, value: Value) -> list[Place]:
        """Return the quantizers on whose grids a value lies, which may have been moved since."""
        call, _ = value
        if call in self.places:
            return [self.places[call]]
        if call.role != "moving" and call not in self.dropped:
            return []
        return [place for each in call.inputs for place in self.grids_of(each)]

    def _measurement(self, call: Call) -> bool:
        """Return whether a call is a batch norm that brings the channels of values to one scale."""
        if call.role != "norm":
            return False
        (source, _) = call.inputs[0]
        while source.role == "moving" and len(source.inputs) == 1:
            (source, _) = source.inputs[0]
        image = self.image_of(source)
        return image is not None and not self.taken[image].is_known

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
        if call.role in ("moving", "pool", "merge") and type(call.layer) is not _layers.Subtract:
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

    def _keep_what_has_no_form(self) -> None:
        for call in self.calls:
            problem = None if is_quantized(call.layer) else no_form(self, call)
            if problem:
                call.role = "kept"
                self.in_float[call] = problem

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
                is_kept and (problem or call.role in ("weighted", "relu", "function", "merge"))
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
                reason, _, advice = reasons[call.name].partition("; ")
                without = Problem(reason, advice or problem.advice)
                lasting[call.name] = call.layer, without
        if lasting:
            raise refusal(lasting, len(self.of))

    def _find_places(self) -> None:
        groups = self._grouped()
        self._join(groups)
        names = set(self._names.values())
        for (width, *_), calls in groups.items():
            bits = self._bits(width, calls)
            if bits is not None:
                place = self._place(width, calls, bits, names)
                names.add(place.name)
                self.places.update(dict.fromkeys(calls, place))

    def _grouped(self) -> dict[tuple, list[Call]]:
        """Return the calls that a quantizer belongs behind, by its width and what shares it."""
        groups: dict[tuple, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call in self.heads or call in self.dropped:
                continue
            if call.role == "relu" or self.fused(call) is not None:
                groups[("activation_bits", *self._sharing(call))].append(call)
            elif call.role == "function" and self._wanted(call):
                groups[self.width_of(call), self._meeting(call.layer)].append(call)
            elif call.role in ("weighted", "norm", "merge", "pool", "kept") and self._wanted(call):
                groups["residual_bits", self._meeting(call.layer)].append(call)
            elif self.is_rounded(call) and self._wanted(call):
                is_known = self.taken[self.image_of(call)].is_known
                meeting = call if is_known else self._meeting(call.layer)
                groups["residual_bits", meeting].append(call)
        return groups

    def _bits(self, width: str, calls: list[Call]) -> int | None:
        """Return the width of the quantizer that calls share, None where they stay float."""
        default = self.widths[width]
        if any(map(self._at_end, calls)):
            default = edge_bits(default)
        if any(map(self.image_of, calls)):
            default = edge_bits(default) or edge_bits(8)
        return self._width(calls[0], width, default)

    def _place(self, width: str, calls: list[Call], bits: int, names: set[str]) -> Place:
        """Return the quantizer that calls share.

        Args:
            width: The name of its width.
            calls: What it follows.
            bits: Its width.
            names: Those that layers and other quantizers have.
        """
        call = calls[0]
        image = next(filter(None, map(self.image_of, calls)), None)
        is_function = call.role == "function"
        is_relu = width == "activation_bits" and not is_function
        signed = not is_relu and not all(map(self._never_negative, calls))
        is_input = image is not None or any(map(self._measurement, calls))
        place = Place(
            self._place_name(width, call, image, names),
            max(bits, 2) if is_function and signed else bits,  # no signed codes have one bit
            signed,
            max(map(self._ceiling, calls)) if is_relu else math.inf,
            any(each.trainable for each in calls),
            is_relu and not is_input,
            is_function and not is_input,
            is_input,
        )
        if image is not None and self.taken[image].is_known:
            taken = self.taken[image]
            place.preprocessing = taken.preprocessing
            place.range, _ = range_of(taking.prepared(call, taken.examples))
        functions = {function_of(each.layer) for each in calls if each.role == "function"}
        if place.bits == 8 and len(functions) == 1:
            place.range = FIXED_RANGES.get(*functions)
        return place

    def _place_name(self, width: str, call: Call, image: Call | None, names: set[str]) -> str:
        """Return the name of a quantizer: that of the ReLU in whose place it is, or a new one."""
        if call.role == "relu":
            is_new = all(call.name != place.name for place in self.places.values())
            return call.name if is_new else unique(call.name, names)
        if image is not None:
            return unique(f"{image.name}_codes", names)
        is_residual = width == "residual_bits" and call.role != "function"
        return unique(f"{call.name}_residual" if is_residual else f"{call.name}_act", names)

    def _check_integers(self) -> None:
        """Raise where what looks integers up reads them from what is rounded for others."""
        for call in self.calls:
            places = [each for value in call.inputs for each in self.grids_of(value)]
            if call.role == "kept" and takes_integers(call) and any(p.is_input for p in places):
                raise ConversionError(
                    f"Expected an input of its own for {call.name!r} "
                    f"({type(call.layer).__name__}), which takes integers. Received: a model "
                    "whose other layers read that input too, rounded to 8 bits. Give the float "
                    "model one tf.keras.Input for the integers and one for the other values."
                )

    def _join(self, groups: dict[tuple, list[Call]]) -> None:
        """Let ReLUs of 8 bits share the quantizer of other values that they come together with.

        As behind the stem of DenseNet: a file has one grid there, and with signed values on it
        there is no room for 255 levels above zero. They stay layers of their own, in front of it.
        """
        for key in [key for key in groups if key[0] == "activation_bits"]:
            calls, others = groups[key], groups.get(("residual_bits", *key[1:]), [])
            every = [*others, *calls]
            if (
                others
                and all(call.role == "relu" and ceiling_of(call.layer) in _ENDS for call in calls)
                and not any(self.image_of(call) or self.overrides.of(call.name) for call in every)
                and self._default(others[0], "residual_bits") == 8
            ):
                others += groups.pop(key)
                for call in calls:
                    call.role = "rectified"

    def _default(self, call: Call, width: str) -> int | None:
        """Return the width of a quantizer behind a call, where no override says another."""
        bits = self.widths[width]
        return edge_bits(bits) if self._at_end(call) else bits

    def _sharing(self, call: Call) -> tuple[tf.keras.layers.Layer, ...]:
        """Return what the calls have in common that share the quantizer of this ReLU."""
        meeting = self._meeting(call.layer)
        bits = self._width(call, "activation_bits", self._default(call, "activation_bits"))
        # Of fewer bits each has a range, which export brings together; float needs no one grid.
        if meeting is not call.layer and bits == 8 and self._rounds_after(self.of[meeting][0]):
            return (meeting,)
        if call.role == "relu":
            # One per place, and the same where the same shared layer comes before.
            return call.layer, call.inputs[0][0].layer
        return (call.layer,)

    def _ceiling(self, call: Call) -> float:
        """Return where the ReLU of a call ends."""
        return ceiling_of(call.layer) if call.role == "relu" else self.fused(call)

    def _meeting(self, layer) -> tf.keras.layers.Layer:
        """Return the last Concatenate or such that a layer's outputs come to, or the layer itself.

        What comes together goes on one grid: files would round it once more to bring it there.
        """
        readers = self._reached(self.of[layer][0], ("moving",))
        meetings = [reader for reader in readers if type(reader.layer) in MEETINGS]
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
        if reader.role == "relu":
            # An operation of the file ends on one grid, and each of several ReLUs has its own.
            return len({each.layer for each in call.readers if each.role == "relu"}) > 1
        image = self.image_of(origin)
        if reader.role == "norm" and image and not self.taken[image].is_known:
            return False  # measurements are brought to one scale before they are rounded
        if reader.role == "function" and self._wanted(reader):
            return True  # a table of codes, between two grids
        if reader.role in ("function", "kept"):
            # It takes float values; kernels on integers end on a grid wherever one follows, and
            # pixels that are prepared are looked up. Numbers of words are none of 256 codes.
            is_kernel = origin.role in ("weighted", "norm") and self._rounded_after(reader)
            is_image = self.image_of(origin) is not None
            return is_kernel or (is_image and not takes_integers(reader))
        if reader.role == "norm":
            folds = is_weighted(call.layer) or call.role == "norm"
            return not (folds and len(call.readers) == 1)
        return reader.role in ("merge", "pool")

    def _rounded_after(self, call: Call) -> bool:
        """Return whether a quantizer may come after a call."""
        rounding = ("weighted", "relu", "function", "merge", "pool", "norm")
        return any(after.role in rounding for after in self._reached(call))

    def _rounds_after(self, call: Call) -> bool:
        """Return whether a quantizer does come after a call; else what follows it is float."""
        return any(
            after.role in ("relu", "function")
            or (after.role == "weighted" and after.layer not in self.ends)
            or (after.role in ("weighted", "norm", "merge", "pool", "kept") and self._wanted(after))
            for after in self._reached(call)
        )

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
