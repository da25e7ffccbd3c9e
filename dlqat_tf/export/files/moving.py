"""Operations of files that move values, or make one of two."""

from __future__ import annotations

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.integer.nodes import (
    Add,
    AveragePool,
    Concatenate,
    Crop,
    Maximum,
    MaxPool,
    Merge,
    Minimum,
    Multiply,
    Node,
    Pad,
    Pool,
    Reshape,
    Subtract,
    Transpose,
    Upsample,
)

_MERGES = {
    Add: ("ADD", schema.AddOptionsT),
    Subtract: ("SUB", schema.SubOptionsT),
    Multiply: ("MUL", schema.MulOptionsT),
    Maximum: ("MAXIMUM", schema.MaximumMinimumOptionsT),
    Minimum: ("MINIMUM", schema.MaximumMinimumOptionsT),
}


def add_merge(
    file: FileBuilder, kind: type[Merge], inputs: list[int], output: int, fused: int | None = None
):
    """Add an operation on two tensors, codes or floats, and return its options.

    Args:
        file: Where to add it.
        kind: Of the node that it computes.
        inputs: The two tensors.
        output: The tensor that it writes.
        fused: The activation that it ends with; none by default.
    """
    code, options_of = _MERGES[kind]
    options = options_of()
    if fused is not None:
        options.fusedActivationFunction = fused
    file.operator(code, inputs, output, options)
    return options


def add_moving(
    file: FileBuilder, node: Node, inputs: list[int], output: int, shape: tuple[int, ...]
) -> None:
    """Add an operation on codes or floats that moves them, or takes the mean of windows.

    Args:
        file: Where to add it.
        node: Of the operation.
        inputs: Tensors that it reads.
        output: The tensor that it writes.
        shape: Of that, without the batch.
    """
    if isinstance(node, Merge):
        add_merge(file, type(node), inputs, output)
    elif isinstance(node, Pool):
        options = schema.Pool2DOptionsT()
        options.padding = getattr(schema.Padding, node.padding.upper())
        options.filterHeight, options.filterWidth = node.size
        options.strideH, options.strideW = node.strides
        code = {MaxPool: "MAX_POOL_2D", AveragePool: "AVERAGE_POOL_2D"}[type(node)]
        file.operator(code, inputs, output, options)
    elif isinstance(node, Concatenate):
        options = schema.ConcatenationOptionsT()
        options.axis = len(shape)
        file.operator("CONCATENATION", inputs, output, options)
    elif isinstance(node, Reshape):
        add_reshape(file, f"{node.name}/shape", *inputs, output, shape)
    elif isinstance(node, Crop):
        # Not SLICE, whose outputs LCE's interpreter takes for dynamic: it then runs nothing on
        # XNNPACK, and rounds twice.
        rows, columns, _ = shape
        (top, _), (left, _) = node.amounts
        corners = dict(begin=[0, top, left, 0], end=[0, top + rows, left + columns, 0])
        inputs += [
            file.constant(f"{node.name}/{name}", np.array(each, np.int32))
            for name, each in (*corners.items(), ("strides", [1, 1, 1, 1]))
        ]
        options = schema.StridedSliceOptionsT()
        options.beginMask = options.endMask = 0b1001  # all images and channels
        file.operator("STRIDED_SLICE", inputs, output, options)
    elif isinstance(node, Upsample):
        size = np.array(shape[:2], np.int32)
        inputs.append(file.constant(f"{node.name}/size", size))
        options = schema.ResizeNearestNeighborOptionsT()
        file.operator("RESIZE_NEAREST_NEIGHBOR", inputs, output, options)
    elif isinstance(node, Pad):
        amounts = np.array([(0, 0), *node.amounts, (0, 0)], np.int32)
        options = schema.MirrorPadOptionsT()
        options.mode = schema.MirrorPadMode.SYMMETRIC
        inputs.append(file.constant(f"{node.name}/amounts", amounts))
        file.operator("MIRROR_PAD", inputs, output, options)
    elif isinstance(node, Transpose):
        order = np.array([0, *(axis + 1 for axis in node.order)], np.int32)
        inputs.append(file.constant(f"{node.name}/order", order))
        file.operator("TRANSPOSE", inputs, output, schema.TransposeOptionsT())
    else:
        raise TypeError(node)


def add_reshape(
    file: FileBuilder, name: str, value: int, output: int, shape: tuple[int, ...]
) -> None:
    """Add what gives a tensor another shape, which ``name`` will hold."""
    target = np.array([-1, *shape], np.int32)
    options = schema.ReshapeOptionsT()
    options.newShape = target
    constant = file.constant(name, target)
    file.operator("RESHAPE", [value, constant], output, options)
