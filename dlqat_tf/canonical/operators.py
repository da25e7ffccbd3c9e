"""Operators on tensors, as the standard layers that compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from dlqat_tf.canonical.part import Part

_layers = tf.keras.layers


def _merged(kind) -> Callable:
    def rule(part: Part):
        # An operator on one tensor and a constant has one input.
        ranks = {x.shape.rank for x in part.inputs}
        return part.add(kind, part.inputs) if len(part.inputs) > 1 and len(ranks) == 1 else None

    return rule


def _activated(name: str) -> Callable:
    return lambda part: part.add(_layers.Activation, *part.inputs, activation=name)


def _relu(part: Part, highest: float | None = None):
    return part.add(_layers.ReLU, *part.inputs, max_value=highest)


def _clipped(part: Part):
    lowest, highest = (part.arguments[f"clip_value_{end}"] for end in ("min", "max"))
    if not isinstance(highest, (int, float)) or lowest != 0 or highest <= 0:
        return None
    return _relu(part, float(highest))


def _leaky_relu(part: Part):
    return part.add(_layers.LeakyReLU, *part.inputs, alpha=part.arguments.get("alpha", 0.2))


def _gelu(part: Part):
    # Keras's default is the exact one, as TensorFlow's.
    return None if part.arguments.get("approximate") else _activated("gelu")(part)


def _softmax(part: Part):
    axis = part.arguments.get("axis")
    return part.add(_layers.Softmax, *part.inputs, axis=-1 if axis is None else axis)


def _concatenated(part: Part):
    axis = part.arguments.get("axis")
    if len(part.inputs) < 2 or not isinstance(axis, int):
        return None
    return part.add(_layers.Concatenate, part.inputs, axis=axis)


def _pooled(kind) -> Callable:
    def rule(part: Part):
        (x,), arguments = part.inputs, part.arguments
        axes = arguments.get("axis")
        is_image = x.shape.rank == 4 and isinstance(axes, (list, tuple))
        if not is_image or sorted(axis % 4 for axis in axes) != [1, 2]:
            return None
        return part.add(kind, x, keepdims=bool(arguments.get("keepdims")))

    return rule


def _reshaped(part: Part):
    if len(part.inputs) != 1 or math.prod(part.shape) != math.prod(part.inputs[0].shape[1:]):
        return None  # which mixes the images of a batch
    return part.add(_layers.Reshape, *part.inputs, target_shape=part.shape)


def _transposed(part: Part):
    order = part.arguments.get("perm")
    if not isinstance(order, (list, tuple)) or order[0] != 0:
        return None
    return part.add(_layers.Permute, *part.inputs, dims=tuple(order[1:]))


def _padded(part: Part):
    arguments = part.arguments
    amounts, mode = arguments["paddings"], str(arguments.get("mode", "CONSTANT"))
    if not isinstance(amounts, (list, tuple)) or len(amounts) != 4 or mode.upper() != "CONSTANT":
        return None
    amounts = [tuple(map(int, each)) for each in amounts]
    if any(amounts[0] + amounts[3]) or arguments.get("constant_values", 0) != 0:
        return None
    return part.add(_layers.ZeroPadding2D, *part.inputs, padding=tuple(amounts[1:3]))


def _same(part: Part):
    (x,) = part.inputs
    if x.dtype != part.node.outputs.dtype:
        return None
    return part.add(_layers.Activation, x, activation="linear")


OPERATORS: dict[str, Callable] = {
    "add": _merged(_layers.Add),
    "add_n": _merged(_layers.Add),
    "subtract": _merged(_layers.Subtract),
    "multiply": _merged(_layers.Multiply),
    "maximum": _merged(_layers.Maximum),
    "minimum": _merged(_layers.Minimum),
    "relu": _relu,
    "relu6": lambda part: _relu(part, 6.0),
    "clip_by_value": _clipped,
    "leaky_relu": _leaky_relu,
    "gelu": _gelu,
    "silu": _activated("swish"),
    **{name: _activated(name) for name in ("sigmoid", "tanh", "elu", "selu", "softplus")},
    "softmax": _softmax,
    "concat": _concatenated,
    "reduce_mean": _pooled(_layers.GlobalAveragePooling2D),
    "reduce_max": _pooled(_layers.GlobalMaxPooling2D),
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": _transposed,
    "pad": _padded,
    "identity": _same,
    "cast": _same,
}
