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
    if len(part.inputs) != 1:
        return None
    (free, known), (free_before, known_before) = map(_sizes, (part.shape, part.inputs[0].shape[1:]))
    # Other values mix the images of a batch; standard layers find out one free size.
    if known != known_before or free != free_before or free > 1:
        return None
    return part.add(_layers.Reshape, *part.inputs, target_shape=part.shape)


def _sizes(shape) -> tuple[int, int]:
    """Return how many sizes of a shape are free, and the product of the others."""
    known = [size for size in shape if size is not None]
    return len(shape) - len(known), math.prod(known)


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


def _cropped(part: Part, ends: list[tuple[int, int]], shape: tuple[int, ...], suffix: str = ""):
    """Return a tensor without values at its ends, in a shape.

    Args:
        part: Of the call.
        ends: How many values to leave out before and after, by axis without the batch.
        shape: Of what is left, axes of one value apart.
        suffix: Of the layer that gives it its shape.
    """
    (x,) = part.inputs
    sizes = list(x.shape[1:])
    if len(sizes) == 3 and not any(ends[2]):
        x = part.add(_layers.Cropping2D, x, f"{suffix}crop", cropping=tuple(ends[:2]))
        sizes, ends = list(x.shape[1:]), []
    for axis, amounts in enumerate(ends):
        if any(amounts):
            # The axis as the columns of an image.
            image = (math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :]))
            name = f"{suffix}axis{axis + 1}"
            x = part.add(_layers.Reshape, x, f"{name}_image", target_shape=image)
            x = part.add(_layers.Cropping2D, x, f"{name}_crop", cropping=((0, 0), amounts))
            sizes[axis] -= sum(amounts)
    return part.add(_layers.Reshape, x, suffix, target_shape=shape)


def _sliced(part: Part):
    spec = part.arguments["slice_spec"]
    spec = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    if len(part.inputs) != 1 or None in part.inputs[0].shape[1:]:
        return None
    spec = [each for each in spec if each is not None]  # new axes, which the shape has
    rank = part.inputs[0].shape.rank
    rest = [slice(None)] * (rank + (Ellipsis in spec) - len(spec))
    position = spec.index(Ellipsis) if Ellipsis in spec else len(spec)
    spec = spec[:position] + rest + spec[position + 1 :]
    ends = []
    for each, size in zip(spec[1:], part.inputs[0].shape[1:], strict=True):
        if isinstance(each, int):
            start, stop, step = each % size, each % size + 1, 1
        elif isinstance(each, dict):  # as Keras keeps slices
            start, stop, step = slice(*(each[k] for k in ("start", "stop", "step"))).indices(size)
        else:
            start, stop, step = each.indices(size)
        if step != 1 or stop <= start:
            return None
        ends.append((start, size - stop))
    batch = spec[0]
    batch = slice(*batch.values()) if isinstance(batch, dict) else batch
    return _cropped(part, ends, part.shape) if batch == slice(None) else None


def _split(part: Part):
    arguments, (x, *others) = part.arguments, part.inputs
    axis, sizes = arguments.get("axis", 0), arguments["num_or_size_splits"]
    rank = x.shape.rank
    if others or not isinstance(axis, int) or axis % rank == 0 or None in x.shape[1:]:
        return None
    axis = axis % rank - 1
    if isinstance(sizes, int):
        sizes = [x.shape[axis + 1] // sizes] * sizes
    if not all(isinstance(each, int) and each > 0 for each in sizes):
        return None
    parts, start = [], 0
    for i, size in enumerate(sizes):
        ends = [(0, 0)] * (rank - 1)
        ends[axis] = (start, x.shape[axis + 1] - start - size)
        shape = (*x.shape[1 : axis + 1], size, *x.shape[axis + 2 :])
        parts.append(_cropped(part, ends, shape, f"part{i + 1}" if i else ""))
        start += size
    return parts


def _resized(part: Part):
    (x, *others), method = part.inputs, str(part.arguments.get("method", "bilinear")).lower()
    if others or x.shape.rank != 4 or None in x.shape[1:] or method not in ("nearest", "bilinear"):
        return None
    if part.arguments.get("antialias"):
        return None
    sizes = list(zip(part.shape[:2], x.shape[1:3], strict=True))
    if any(after % before for after, before in sizes):
        return None
    size = tuple(after // before for after, before in sizes)
    return part.add(_layers.UpSampling2D, x, size=size, interpolation=method)


def _is_no_image(x, part: Part) -> bool:
    """Return whether a tensor is no image of known sizes, its channels last."""
    if x.shape.rank != 4 or None in x.shape[1:]:
        return True
    return part.arguments.get("data_format", "NHWC") != "NHWC"


def _depth_to_space(part: Part):
    (x,), size = part.inputs, part.arguments["block_size"]
    if _is_no_image(x, part):
        return None
    rows, columns, channels = x.shape[1:]
    blocks = (rows, columns, size, size, channels // size**2)
    x = part.add(_layers.Reshape, x, "blocks", target_shape=blocks)
    x = part.add(_layers.Permute, x, "turned", dims=(1, 3, 2, 4, 5))
    return part.add(_layers.Reshape, x, target_shape=part.shape)


def _space_to_depth(part: Part):
    (x,), size = part.inputs, part.arguments["block_size"]
    if _is_no_image(x, part):
        return None
    rows, columns, channels = x.shape[1:]
    blocks = (rows // size, size, columns // size, size, channels)
    x = part.add(_layers.Reshape, x, "blocks", target_shape=blocks)
    x = part.add(_layers.Permute, x, "turned", dims=(1, 3, 2, 4, 5))
    return part.add(_layers.Reshape, x, target_shape=part.shape)


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
    "getitem": _sliced,
    "split": _split,
    "resize": _resized,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
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
