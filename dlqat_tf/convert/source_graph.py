"""The source as a list of calls, each with its role: what converts it asks who reads whom."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import function_of
from dlqat_tf.convert import inputs as taking
from dlqat_tf.convert.calls import Call, Calls, Value
from dlqat_tf.convert.ends import End, find_end, kinds_of
from dlqat_tf.convert.kinds import (
    GATES,
    QUANTIZED,
    ceiling_of,
    is_linear,
    is_quantized,
    is_weighted,
    unready,
)
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.convert.problems import (
    Problem,
    no_form,
    refusal,
    shown_overrides,
    some,
    unstored,
)
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.models.resnet import edge_bits
from dlqat_tf.preprocessing import is_unit

_layers = tf.keras.layers


class SourceGraph:
    """The source as a list of calls, each with its role, and who reads whom.

    Attributes:
        calls: In the order of computation, nested models flattened.
        outputs: What the model returns.
        heads: The calls that become heads.
        dropped: Calls that are left out.
        in_float: Calls that stay float without an override, and why.
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
        self.calls, self.of, self.names = source.every, source.of, source.names
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

    def first(self, call: Call) -> bool:
        """Return whether any call of this call's layer reads an input, no kernel in between."""
        return any(
            self._before_kernels(value) for each in self.of[call.layer] for value in each.inputs
        )

    def weight_bits(self, call: Call) -> int:
        """Return the width of a weighted layer."""
        at_end = self.first(call) or call.layer in self.ends
        bits = self.widths["weight_bits"]
        return self.width_given(call, "weight_bits", edge_bits(bits) if at_end else bits)

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

    # Who reads whom.

    def reached(self, call: Call, through: Iterable[str] | None = None) -> set[Call]:
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
            for after in self.reached(call)
        )

    def at_end(self, call: Call) -> bool:
        """Return whether the last layer reads this, or no weighted layer comes after it."""
        if any(r.layer in self.ends for r in self.reached(call, ("moving", "pool"))):
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

    def _norms(self, layer) -> list[tf.keras.layers.Layer]:
        """Return the batch norms that alone read a weighted layer, and nothing else."""
        found = []
        for call in self.of[layer]:
            alone = len(call.readers) == 1 and (call, 0) not in self.outputs
            if not alone or call.readers[0].role != "norm" or not is_linear(layer.activation):
                return []
            if call.readers[0].layer not in found:
                found.append(call.readers[0].layer)
        every = [call for norm in found for call in self.of[norm]]
        return found if all(call.inputs[0][0].layer is layer for call in every) else []

    # Heads and problems.

    def _check_float(self) -> None:
        """Raise for layers that are quantized already and not to be kept."""
        for call in self.calls:
            if what := unready(call.layer):
                raise ConversionError(
                    f"Expected a float model. Received: one with {call.name!r}, which {what}."
                )
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

    def width_given(self, call: Call, width: str, default: int | None) -> int | None:
        """Return the width that an override gives a call, or else the default."""
        rule = self.overrides.of(call.name)
        return default if rule == "float" else rule.get(width, default)
