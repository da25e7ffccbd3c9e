"""What stands in the way: layers without a quantized form, and those that no file can hold."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import tensorflow as tf

from dlqat_tf.convert.kinds import (
    activation_name,
    ceiling_of,
    is_linear,
    is_quantized,
    role_of,
)
from dlqat_tf.convert.report import ConversionError

_layers = tf.keras.layers

_GATES = ("sigmoid", "hard_sigmoid", "softmax")  # a ReLU would be no replacement
_RELU = "ReLU and ReLU6 have: put one there and train the float model on"
_PREPARE = (
    "files hold a scale, an offset and an order of the channels directly after the input; prepare "
    "images otherwise outside of the model"
)
_ADVICE = {
    _layers.LeakyReLU: _RELU,
    _layers.PReLU: _RELU,
    _layers.ELU: _RELU,
    _layers.ThresholdedReLU: _RELU,
    _layers.SeparableConv2D: "DepthwiseConv2D and then Conv2D, with its two kernels, are the same",
    _layers.LayerNormalization: "BatchNormalization has",
    _layers.GroupNormalization: "BatchNormalization has",
    _layers.GlobalMaxPooling2D: "MaxPool2D over the whole image and Flatten are the same",
}
# What Keras makes layers of where a model computes with tensors, by the end of its name.
_OPERATORS = {
    "add": "tf.keras.layers.Add()([x, y])",
    "concat": "tf.keras.layers.Concatenate()",
    "reduce_mean": "tf.keras.layers.GlobalAveragePooling2D()",
    "relu": "tf.keras.layers.ReLU()",
    "relu6": "tf.keras.layers.ReLU(6.0)",
}
_UNKNOWN_BUT_STORED = (_layers.GlobalMaxPooling2D, _layers.Reshape)
_SHOWN_GROUPS, _SHOWN_NAMES, _SHOWN_OVERRIDES = 10, 3, 12


class Problem(NamedTuple):
    """Why a layer has no quantized form, and what would have one ("" if nothing is known)."""

    reason: str
    advice: str = ""


def no_form(network, call) -> Problem | None:
    """Return why a call has no quantized form in a network, None where it has one."""
    layer, kind = call.layer, type(call.layer)
    if is_quantized(layer):
        return Problem("quantized already")
    if call.role == "unknown":
        if isinstance(layer, tf.keras.Model):
            return Problem(
                "subclassed models have no list of layers",
                "rebuild them as tf.keras.Model(inputs, outputs)",
            )
        if kind is _layers.Activation:
            return _no_form_of_activation(layer.activation)
        return _no_form_of(*_described(network, call))
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return Problem("its data_format is not channels_last", "rebuild it with channels last")
    activation = getattr(layer, "activation", None)
    is_hidden = call.role == "weighted" and layer not in network.ends
    if is_hidden and network.fused(call) is None and not is_linear(activation):
        return _no_form_of_activation(activation)
    if call.role == "relu" and ceiling_of(layer) is None:
        return Problem("a ReLU with a slope or a threshold has no quantized form", _RELU)
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
    if call.inputs and network.from_input(call.inputs):
        return name, _PREPARE
    same = _OPERATORS.get(name.rsplit(".", 1)[-1]) if operator else None
    if same and not (name == "add" and len(call.inputs) == 1):  # to a constant
        return name, f"write it as {same}"
    return name, _ADVICE.get(type(call.layer), "")


def refusal(problems: dict[str, tuple], count: int) -> ConversionError:
    """Return the error about layers that cannot be quantized, grouped by reason.

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
        text = ". ".join(part[0].upper() + part[1:] for part in problem if part)
        lines.append(f"- {some(groups[problem])} ({', '.join(kinds[problem])}): {text}.")
    if len(ordered) > _SHOWN_GROUPS:
        rest = sum(len(groups[problem]) for problem in ordered[_SHOWN_GROUPS:])
        lines.append(f"- {rest} more, of {len(ordered) - _SHOWN_GROUPS} other kinds.")
    lost = [name for name, (layer, _) in problems.items() if no_file(layer)]
    refused = "them" if len(lost) == len(problems) else some(lost)
    warning = f" (export then refuses {refused})" if lost else ""
    overrides = dict.fromkeys(problems, "float")
    lines.append(f"To train with them in float{warning}: {shown_overrides(overrides)}.")
    head = f"{len(problems)} of {count} layers cannot be quantized."
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


def unexportable(network) -> dict[str, str]:
    """Return why export will refuse the result of a conversion, by the name of what it refuses."""
    found = {}
    for call in network.calls:
        replaced = call.role in ("input", "relu") or network.fused(call) is not None
        replaced = replaced or call.affine is not None
        if replaced or call is network.head or call in network.dropped:
            continue
        reason = no_file(call.layer)
        if call.training and isinstance(call.layer, _layers.Dropout):
            reason = "it drops values in inference too"
        if reason:
            found.setdefault(call.name, reason)
    if len(network.outputs) > 1:
        found["the outputs"] = "files have one output"
    return found


def no_file(layer) -> str | None:
    """Return why export refuses a layer that stays as it is, None where it does not.

    The same conditions as in :mod:`dlqat_tf.export.integer.lower`, which conversion comes before.
    """
    role, kind = role_of(layer), type(layer)
    if is_quantized(layer):
        return None
    if isinstance(layer, tf.keras.Model):
        if not hasattr(layer, "_nodes_by_depth"):
            return "it is a subclassed model"
        inner = ((each.name, no_file(each)) for each in layer.layers)
        return next((f"its layer {name!r}: {reason}" for name, reason in inner if reason), None)
    if role == "unknown" and kind not in _UNKNOWN_BUT_STORED and kind is not _layers.InputLayer:
        what = activation_name(layer.activation) if kind is _layers.Activation else kind.__name__
        return f"files hold no {what}"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "its data_format is not channels_last"
    activation = getattr(layer, "activation", None)
    if role == "weighted" and not is_linear(activation) and ceiling_of(activation) is None:
        name = activation_name(activation)
        advice = ", make it linear for export" if name in ("softmax", "sigmoid") else ""
        return f"files hold no {name}{advice}"
    if role == "relu" and ceiling_of(layer) not in (6.0, math.inf):
        return "files hold no ReLU but those without an end and ReLU6"
    if role == "softmax":
        return "files hold no softmax, export the model up to it"
    if role == "norm" or kind is _layers.Concatenate:
        axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
        if axis not in (-1, len(layer.get_output_shape_at(0)) - 1):
            return f"its axis is {axis}, not the channels"
    return None
