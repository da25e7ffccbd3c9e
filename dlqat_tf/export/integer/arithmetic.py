"""What nodes compute of arrays, before anything is rounded."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from dlqat_tf.export.integer.grids import code_of
from dlqat_tf.export.integer.nodes import (
    Add,
    Affine,
    AveragePool,
    Concatenate,
    Convolution,
    Crop,
    Dense,
    GlobalAveragePool,
    Maximum,
    MaxPool,
    Merge,
    Minimum,
    Multiply,
    Node,
    Pad,
    Pool,
    ReLU,
    Reshape,
    Sign,
    Subtract,
    Transpose,
    TransposedConvolution,
    Upsample,
    Weighted,
)
from dlqat_tf.export.integer.shapes import output_shape, paddings
from dlqat_tf.quantizers import ActivationGrid

_EXACT = 2**24  # float32 holds every integer up to here, so sums below it are exact


def padded(node: Node, x: np.ndarray, value: float) -> np.ndarray:
    """Return ``x`` with what a "same" convolution puts around it."""
    if not isinstance(node, Convolution) or node.padding == "valid":
        return x
    amounts = paddings(node, x.shape[1:3])
    return np.pad(x, ((0, 0), *amounts, (0, 0)), constant_values=value)


def exact_product(node: Weighted, x: np.ndarray, weights: np.ndarray, grid) -> np.ndarray:
    """Return int64 sums of integer products, by float32 kernels that stay below 2^24."""
    flat = np.abs(weights.astype(np.int64))
    reach = int(flat.sum(axis=(0, 1) if node.depthwise else tuple(range(flat.ndim - 1))).max())
    bits = max((_EXACT // max(reach, 1)).bit_length() - 1, 1)
    weights = weights.astype(np.float32)
    rest, total, factor = x.astype(np.int64), 0, 1
    span = max(grid.highest, -grid.lowest)
    while True:
        if span < 2**bits:
            part = product(node, rest.astype(np.float32), weights)
            return total + factor * np.rint(part).astype(np.int64)
        digit = rest & (2**bits - 1)
        part = product(node, digit.astype(np.float32), weights)
        total = total + factor * np.rint(part).astype(np.int64)
        rest, span, factor = rest >> bits, (span >> bits) + 1, factor << bits


def product(node: Weighted, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the convolution (valid padding) or matrix product, without bias."""
    if isinstance(node, Dense):
        return x.astype(np.float64) @ weights.astype(np.float64)
    if isinstance(node, TransposedConvolution):
        kernel = weights.transpose(0, 1, 3, 2)
        shape = (len(x), *output_shape(node, [x.shape[1:]]))
        return tf.nn.conv2d_transpose(x, kernel, shape, node.strides, node.padding.upper()).numpy()
    if node.depthwise:
        strides = (1, *node.strides, 1)
        # TensorFlow wants square strides here; the rest of a larger stride is dropped afterwards.
        if node.strides[0] != node.strides[1]:
            y = tf.nn.depthwise_conv2d(x, weights, (1, 1, 1, 1), "VALID", dilations=node.dilation)
            return y.numpy()[:, :: node.strides[0], :: node.strides[1]]
        return tf.nn.depthwise_conv2d(x, weights, strides, "VALID", dilations=node.dilation).numpy()
    parts = zip(np.split(x, node.groups, -1), np.split(weights, node.groups, -1), strict=True)
    outputs = [
        tf.nn.conv2d(part, kernel, node.strides, "VALID", dilations=node.dilation).numpy()
        for part, kernel in parts
    ]
    return np.concatenate(outputs, -1) if len(outputs) > 1 else outputs[0]


def moved(node: Node, inputs: list[np.ndarray], grid: ActivationGrid) -> np.ndarray:
    """Return the output of an operation that moves codes and changes none."""
    if isinstance(node, MaxPool):
        return _pooled(node, inputs[0].astype(np.float32), "MAX").astype(np.int32)
    if isinstance(node, Merge):
        return _merged(node, inputs)
    is_set = isinstance(node, Pad) and not node.mirrored
    value = code_of(node.value, grid) if is_set else 0
    return _rearranged(node, inputs, value)


def _rearranged(node: Node, inputs: list[np.ndarray], value: float) -> np.ndarray:
    """Return the inputs in another order; ``value`` is what a Pad puts around."""
    x = inputs[0]
    match node:
        case Reshape():
            return x.reshape(len(x), *node.shape)
        case Concatenate():
            return np.concatenate(inputs, -1)
        case Pad() if node.mirrored:
            return np.pad(x, ((0, 0), *node.amounts, (0, 0)), "symmetric")
        case Pad():
            return np.pad(x, ((0, 0), *node.amounts, (0, 0)), constant_values=value)
        case Crop():
            rows, columns = (
                slice(low, n - high)
                for n, (low, high) in zip(x.shape[1:3], node.amounts, strict=True)
            )
            return x[:, rows, columns]
        case Upsample():
            return x.repeat(node.size[0], 1).repeat(node.size[1], 2)
        case Transpose():
            return x.transpose(0, *(axis + 1 for axis in node.order))
    raise TypeError(node)


def _pooled(node: Pool, x: np.ndarray, kind: str) -> np.ndarray:
    pool = tf.nn.max_pool2d if kind == "MAX" else tf.nn.avg_pool2d
    return pool(x, node.size, node.strides, node.padding.upper()).numpy()


# What each operation computes of two inputs.
_FUNCTIONS = {
    Add: np.add,
    Subtract: np.subtract,
    Multiply: np.multiply,
    Maximum: np.maximum,
    Minimum: np.minimum,
}


def _merged(node: Merge, inputs: list[np.ndarray]) -> np.ndarray:
    return functools.reduce(_FUNCTIONS[type(node)], inputs)


def on_floats(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the output of an operation on float32 values that has no weights."""
    match node:
        case Merge():
            return _merged(node, inputs)
        case Affine():
            return inputs[0] * node.gain + node.offset
        case Sign():
            return np.where(inputs[0] >= 0, np.float32(1), np.float32(-1))
        case ReLU():
            return np.clip(inputs[0], np.float32(0), np.float32(node.highest))
        case MaxPool():
            return _pooled(node, inputs[0], "MAX")
        case AveragePool():
            return _pooled(node, inputs[0], "AVG")
        case GlobalAveragePool():
            return (
                inputs[0]
                .mean(axis=(1, 2), keepdims=node.keepdims, dtype=np.float64)
                .astype(np.float32)
            )
    return _rearranged(node, inputs, getattr(node, "value", 0.0))
