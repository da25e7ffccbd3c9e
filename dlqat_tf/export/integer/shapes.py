"""Shapes of what an integer network's operations give."""

from __future__ import annotations

import numpy as np

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.nodes import (
    Concatenate,
    Convolution,
    Crop,
    Dense,
    FromIsland,
    GlobalAveragePool,
    Input,
    Island,
    Merge,
    Node,
    Pad,
    Pool,
    Reshape,
    Transpose,
    TransposedConvolution,
    Upsample,
)


def output_size(size: int, window: int, stride: int, dilation: int, padding: str) -> int:
    """Return the rows (or columns) that a window leaves of ``size``."""
    if padding == "same":
        return -(-size // stride)
    return (size - (window - 1) * dilation - 1) // stride + 1


def missing_rows(size: int, window: int, stride: int, dilation: int) -> int:
    """Return how many rows "same" windows reach beyond ``size``; negative where some are left."""
    reach = (window - 1) * dilation + 1
    return (output_size(size, window, stride, dilation, "same") - 1) * stride + reach - size


def same_padding(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return what TensorFlow's "same" puts before and after ``size`` rows."""
    total = max(missing_rows(size, window, stride, dilation), 0)
    return total // 2, total - total // 2


def paddings(node: Convolution, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the rows, and the columns, that "same" puts before and after an image of ``shape``."""
    return [
        same_padding(*each)
        for each in zip(shape, node.weights.shape, node.strides, node.dilation, strict=False)
    ]


def output_shape(node: Node, inputs: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a node's output without the batch, given those of its inputs."""
    match node:
        case Input() | Reshape() | FromIsland():
            return node.shape
        case Convolution():
            sizes = zip(
                inputs[0], node.weights.shape[:2], node.strides, node.dilation, strict=False
            )
            return (*(output_size(*each, node.padding) for each in sizes), len(node.bias))
        case TransposedConvolution():
            rows_and_columns = zip(inputs[0], node.weights.shape[:2], node.strides, strict=False)
            beyond = node.padding == "valid"
            sizes = (n * stride + beyond * max(k - stride, 0) for n, k, stride in rows_and_columns)
            return (*sizes, len(node.bias))
        case Dense():
            return (*inputs[0][:-1], len(node.bias))
        case Pool():
            sizes = zip(inputs[0], node.size, node.strides, strict=False)
            return (*(output_size(*each, 1, node.padding) for each in sizes), inputs[0][2])
        case GlobalAveragePool():
            return (1, 1, inputs[0][-1]) if node.keepdims else inputs[0][-1:]
        case Concatenate():
            return (*inputs[0][:-1], sum(shape[-1] for shape in inputs))
        case Pad():
            padded = (n + sum(amount) for n, amount in zip(inputs[0], node.amounts, strict=False))
            return (*padded, inputs[0][2])
        case Island():
            return ()
        case Crop():
            left = (n - sum(amount) for n, amount in zip(inputs[0], node.amounts, strict=False))
            return (*left, inputs[0][2])
        case Upsample():
            return (*(n * m for n, m in zip(inputs[0], node.size, strict=False)), inputs[0][2])
        case Transpose():
            return tuple(inputs[0][axis] for axis in node.order)
        case Merge() if len(set(inputs)) > 1:
            if len(set(map(len, inputs))) > 1:
                raise ExportError(
                    f"Layer {node.name!r} computes with outputs of shapes "
                    f"{', '.join(map(str, inputs))}: expected as many dimensions in each."
                )
            return np.broadcast_shapes(*inputs)
        case _:
            return inputs[0]
