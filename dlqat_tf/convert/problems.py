"""What stands in the way: layers without a quantized form, and those without any in a file."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import tensorflow as tf

from dlqat_tf._progress import steps
from dlqat_tf.canonical import IN_TRAINING, is_plain_transposed
from dlqat_tf.convert.kinds import (
    activation_name,
    is_linear,
    is_quantized,
    is_weighted,
)
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.float_part import UNTRACED, FloatPart, NoFloatForm, computation_of
from dlqat_tf.graph import (
    can_be_made_again,
    named_leaves,
    reads_mask,
    spreads_tensors,
    tensors_of,
)

_layers = tf.keras.layers

_GATES = ("sigmoid", "hard_sigmoid", "softmax")  # a ReLU would be no replacement
_RELU = "ReLU and ReLU6 have: put one there and train the float model on"
_PREPARE = (
    "files hold a scale, an offset and an order of the channels directly after the input; prepare "
    "images otherwise outside of the model"
)
_MASKS = "build those without, mask_zero=False and no Masking layer"
_ON_GRIDS = (
    "its calls read codes of several grids, or end on several, and its biases fit one; share the "
    "activation in front of all calls and the one behind, or build it with use_bias=False"
)
_SIZES = (
    "it computes with sizes, which files have as numbers; those that are known are x.shape[1:3], "
    "and -1 in a shape stands for the images"
)
_IN_PARTS = "with block.call(x) in place of block(x) its layers are those of the network"
_ADVICE = {
    _layers.LayerNormalization: "BatchNormalization has",
    _layers.GroupNormalization: "BatchNormalization has",
}
_SHOWN_GROUPS, _SHOWN_NAMES, _SHOWN_OVERRIDES = 10, 3, 12


class Problem(NamedTuple):
    """Why a layer has no quantized form, and what would have one ("" if nothing is known).

    It lasts where the layer cannot stay float either.
    """

    reason: str
    advice: str = ""
    is_lasting: bool = False

    @property
    def text(self) -> str:
        """Both as sentences, the last one without its full stop."""
        parts = (self.reason, self.advice)
        return ". ".join(part[0].upper() + part[1:] for part in parts if part)


def no_form(network, call) -> Problem | None:
    """Return why a call has no quantized form in a network, None where it has one."""
    layer, kind = call.layer, type(call.layer)
    if is_quantized(layer):
        return Problem("quantized already", is_lasting=True)
    if call.role == "unknown":
        if reads_mask(call.node):
            return Problem("it reads a mask of the layers before it", _MASKS, is_lasting=True)
        if isinstance(layer, tf.keras.Model):
            return Problem("subclassed models have no list of layers", _IN_PARTS, is_lasting=True)
        if kind is _layers.Activation:
            return _no_form_of_activation(layer.activation)
        return _no_form_of(*_described(network, call))
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return Problem("its data_format is not channels_last", "rebuild it with channels last")
    if kind is _layers.Conv2DTranspose and not is_plain_transposed(layer):
        return Problem(
            "no int8 kernel computes this transposed convolution exactly",
            "those without output_padding and dilation_rate have one, with windows larger than the "
            "strides in both directions or in none",
        )
    activation = getattr(layer, "activation", None)
    is_hidden = call.role == "weighted" and layer not in network.ends
    if is_hidden and network.fused(call) is None and not is_linear(activation):
        return _no_form_of_activation(activation)
    if call.role == "softmax" and call.readers and call not in network.dropped:
        return Problem("a softmax that is not the end of the model has no quantized form")
    if call.role == "rescaling" and call.affine is None:
        return Problem("it rescales something else than an input", "BatchNormalization has a form")
    if call.role == "norm" or kind is _layers.Concatenate:
        rank = len(layer.get_output_shape_at(0))
        axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
        if axis not in (-1, rank - 1):
            return Problem(f"its axis is {axis}, not the channels")
    return None


def _no_form_of(what: str, advice: str) -> Problem:
    return Problem(f"{what!r} has no quantized form", advice)


def _no_form_of_activation(activation) -> Problem:
    name = activation_name(activation)
    return _no_form_of(name, "" if name in _GATES else _RELU)


def _described(network, call) -> tuple[str, str]:
    """Return the name of what an unknown layer computes, and the advice for it."""
    name = type(call.layer).__name__
    operator = getattr(call.layer, "symbol", None)  # of the layers that Keras makes of operators
    if operator:
        name = str(operator).removeprefix("__operators__.")
    if not _is_of_keras(call.layer) and any(map(is_weighted, call.layer.submodules)):
        return name, _IN_PARTS
    is_image = all(len(tensor.shape) == 4 for tensor in tensors_of(call.node))
    if is_image and not call.layer.weights and network.from_input(call.inputs):
        return name, _PREPARE
    return name, _ADVICE.get(type(call.layer), "")


def _is_of_keras(layer) -> bool:
    return type(layer).__module__.startswith("tf_keras.")


def check_losses(model: tf.keras.Model) -> None:
    """Raise where a model adds losses or metrics, which are no part of what it computes."""
    names = [
        name
        for name, layer in named_leaves(model)
        if type(layer).__name__ in ("AddLoss", "AddMetric")
    ]
    if names:
        raise ConversionError(
            f"Expected a model that adds no losses or metrics. Received: one with {some(names)}. "
            "Convert tf.keras.Model(model.input, model.output), and add them to the result, whose "
            "layers have the same names: result.add_loss(loss_of(result.get_layer(name).output))."
        )


def refusal(problems: dict[str, tuple], count: int) -> ConversionError:
    """Return the error about layers that have neither form, grouped by reason.

    Args:
        problems: By name of a layer, the layer and its :class:`Problem`.
        count: Layers of the model.
    """
    groups: dict[Problem, list[str]] = defaultdict(list)
    kinds: dict[Problem, dict[str, None]] = defaultdict(dict)
    for name, (layer, problem) in problems.items():
        groups[problem].append(name)
        kinds[problem][type(layer).__name__] = None
    # First what somebody can do something about, and then what concerns most layers.
    ordered = sorted(groups, key=lambda problem: (not problem.advice, -len(groups[problem])))
    lines = []
    for problem in ordered[:_SHOWN_GROUPS]:
        text = problem.text
        lines.append(f"- {some(groups[problem])} ({', '.join(kinds[problem])}): {text}.")
    if len(ordered) > _SHOWN_GROUPS:
        rest = sum(len(groups[problem]) for problem in ordered[_SHOWN_GROUPS:])
        lines.append(f"- {rest} more, of {len(ordered) - _SHOWN_GROUPS} other kinds.")
    overrides = dict.fromkeys(problems, "float")
    lines.append(
        "To train with them in float, without a file of the result (export will refuse them): "
        f"{shown_overrides(overrides)}."
    )
    head = f"{len(problems)} of {count} layers can neither be quantized nor stored in float."
    return ConversionError("\n".join([head, *lines]), overrides)


def shown_overrides(overrides: dict) -> str:
    """Return overrides as an argument that can be copied, or where to find those of an error."""
    if len(overrides) > _SHOWN_OVERRIDES:
        return "overrides=error.overrides, where error is this ConversionError"
    rules = ", ".join(f'{name!r}: "{rule}"' for name, rule in overrides.items())
    return f"overrides={{{rules}}}"


def some(names: list[str]) -> str:
    """Return the first few names and how many there are beyond them."""
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES]))
    rest = len(names) - _SHOWN_NAMES
    return f"{shown} and {rest} more" if rest > 0 else shown


def in_float(network) -> str:
    """Return what is said of a model about the layers that stay float of themselves, "" if none."""
    groups: dict[Problem, dict[str, None]] = defaultdict(dict)
    for call, problem in network.in_float.items():
        groups[problem][call.name] = None
    if not groups:
        return ""
    ordered = sorted(groups, key=lambda problem: (not problem.advice, -len(groups[problem])))
    count = len({call.layer for call in network.in_float})
    lines = [
        f"{count} of {len(network.of)} layers stay float, for want of a quantized form: files hold "
        "them as operations on float32, slower than those on int8."
    ]
    for problem in ordered[:_SHOWN_GROUPS]:
        text = problem.text
        lines.append(f"- {some(list(groups[problem]))}: {text}.")
    if len(ordered) > _SHOWN_GROUPS:
        lines.append(f"- layers of {len(ordered) - _SHOWN_GROUPS} other kinds.")
    return "\n".join(lines)


def unexportable(network) -> dict[str, str]:
    """Return why export will refuse the result of a conversion, by the name of what it refuses."""
    found = {}
    for call in network.calls:
        if call.training and isinstance(call.layer, IN_TRAINING):
            found[call.name] = "it drops values in inference too; call it without training=True"
    found |= {calls[0].name: _ON_GRIDS for calls in network.of.values() if network.on_grids(calls)}
    return found | unstored([call for call in network.calls if call.role == "kept"])


def unstored(calls: list) -> dict[str, str]:
    """Return why files cannot hold layers that stay float, by name, for those that they cannot.

    TensorFlow's converter is asked about all of them at once, and about each one where it says no.
    """
    found, asked, sizes = {}, [], set()
    for call in calls:
        is_size = str(getattr(call.layer, "symbol", "")).endswith(".shape")
        reads = [source in sizes for source, _ in call.inputs]
        if is_size or any(reads):
            found[call.name] = _SIZES
            if is_size or all(reads):
                sizes.add(call)
            continue
        if isinstance(call.layer, tf.keras.Model) and hasattr(call.layer, "_nodes_by_depth"):
            continue  # flattened by export, which keeps apart what has an integer form
        if call.training and call.layer._expects_training_arg:
            found[call.name] = "it is called with training=True; call it without"
        elif not (_is_of_keras(call.layer) or can_be_made_again(call.layer)):
            found[call.name] = (
                "it cannot be made again from its settings, as Keras does to load a model; let its "
                "get_config give what its __init__ takes, and super().get_config(), with its name"
            )
        elif spreads_tensors(call.layer):
            found[call.name] = (
                "Keras saves operators of any number of arguments, and cannot load them; put it "
                "into a Lambda layer"
            )
        elif not is_quantized(call.layer) and all(
            None not in tensor.shape[1:] for tensor in tensors_of(call.node)
        ):
            asked.append(call)
    if _refused(asked):
        each = {call.name: _refused_alone(call) for call in steps("asks TFLite for layer", asked)}
        found |= {name: reason for name, reason in each.items() if reason}
    return found


def _refused_alone(call) -> str | None:
    """Return why TFLite has no form of a call, None where it has one."""
    reason = _refused([call])
    source = call
    while source.inputs:
        (source, _) = source.inputs[0]
    count = source.layer.output.shape[0] if source.role == "input" else None
    if count in (None, 1) or not (reason and reason.startswith(UNTRACED)):
        return reason
    return (
        f"it takes {count} images at once, as the model's Input says, and files take one; put -1 "
        f"in place of {count} where a shape has it"
    )


def _refused(calls: list) -> str | None:
    """Return why TFLite has no form of calls, each on inputs of its own; None where it has one."""
    functions = [(computation_of(call.node), len(tensors_of(call.node))) for call in calls]

    def function(tensors):
        rest, outputs = list(tensors), []
        for compute, count in functions:
            outputs += compute(rest[:count])
            del rest[:count]
        return outputs

    shapes = [tuple(each.shape[1:]) for call in calls for each in tensors_of(call.node)]
    try:
        if calls:
            _ = FloatPart(function, shapes, [call.layer for call in calls]).data
    except NoFloatForm as error:
        return str(error)
    return None
