"""Operations of files that multiply by weights: convolutions and dense layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.integer.nodes import Convolution, Dense, TransposedConvolution, Weighted
from dlqat_tf.export.integer.shapes import missing_rows


def add_weighted(
    file: FileBuilder,
    node: Weighted,
    inputs: list[int],
    output: int,
    fused: int,
    *,
    padding: str,
    shape: tuple[int | None, ...],
    version: int | None = None,
):
    """Add a convolution or dense layer, of codes or floats, and return its options.

    Args:
        file: Where to add it.
        node: What it computes.
        inputs: The tensors of values, weights (see :func:`file_layout`) and bias.
        output: The tensor that it writes.
        fused: The activation that it ends with; transposed convolutions have none.
        padding: What :func:`padding_of` returns.
        shape: Of the output, with the batch.
        version: Of the operation; that of int8 and float by default.
    """
    if isinstance(node, TransposedConvolution):
        return _add_transposed(file, node, inputs, output, shape)
    if isinstance(node, Dense):
        code, options = "FULLY_CONNECTED", schema.FullyConnectedOptionsT()
    else:
        if node.depthwise:
            code, options = "DEPTHWISE_CONV_2D", schema.DepthwiseConv2DOptionsT()
            options.depthMultiplier = node.weights.shape[3]
        else:
            code, options = "CONV_2D", schema.Conv2DOptionsT()
        options.padding = schema.Padding.SAME if padding == "same" else schema.Padding.VALID
        options.strideH, options.strideW = node.strides
        options.dilationHFactor, options.dilationWFactor = node.dilation
    options.fusedActivationFunction = fused
    file.operator(code, inputs, output, options, version=version)
    return options


def _add_transposed(file: FileBuilder, node: TransposedConvolution, inputs, output: int, shape):
    options = schema.TransposeConvOptionsT()
    # Where no window reaches beyond the output, XNNPACK wants the one name for it.
    reaches = any(k > s for k, s in zip(node.weights.shape, node.strides, strict=False))
    same = node.padding == "same" and reaches
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH, options.strideW = node.strides
    value, weights, bias = inputs
    sizes = file.constant(f"{node.name}/shape", np.array(shape, np.int32))
    file.operator("TRANSPOSE_CONV", [sizes, weights, value, bias], output, options)
    return options


def file_layout(node: Weighted, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Return weights in TFLite's order and the axis of their output channels."""
    if isinstance(node, Dense):
        return np.ascontiguousarray(weights.T), 0
    if node.depthwise:
        return weights.reshape(1, *weights.shape[:2], -1), 3
    return np.ascontiguousarray(weights.transpose(3, 0, 1, 2)), 0


def padding_of(node: Weighted, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return how the file pads: "valid", "same", or "explicit" by an operation before.

    Args:
        node: What may be padded.
        shapes: Of the network's values, without the batch, by name. What a file adds between them
            has none there, and needs none: it is not padded.
    """
    if not isinstance(node, Convolution) or node.padding == "valid":
        return "valid"
    shape = shapes[node.inputs[0]]
    amounts = [
        missing_rows(*each)
        for each in zip(shape, node.weights.shape, node.strides, node.dilation, strict=False)
    ]
    if max(amounts) <= 0:
        return "valid"
    # XNNPACK computes wrong outputs for "same" where windows leave rows or columns over in one
    # direction (a stride beyond the window) and are padded in the other.
    return "explicit" if node.pad_value or min(amounts) < 0 else "same"
