"""Operations of files that turn pixels into codes, by tables."""

from __future__ import annotations

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.files.flatbuffer import TYPES
from dlqat_tf.export.files.inputs import zero_point
from dlqat_tf.export.integer.nodes import Lookup


def add_lookup(
    file: FileBuilder,
    node: Lookup,
    pixels: int,
    output: int,
    shape: tuple[int, ...],
    *,
    signed: bool,
) -> None:
    """Add what turns pixels into codes: a table of 256 for each channel.

    A table holds whatever Keras computes, ties included. An integer convolution by gain and
    offset would be faster (0.3 ms for 224x224x3 where this takes 0.7), and float arithmetic as
    fast, but both round near ties otherwise; LCE's interpreter takes 8 ms for the latter.

    Args:
        file: Where to add it.
        node: The tables.
        pixels: uint8 tensor.
        output: int8 tensor.
        shape: Of both, without the batch.
        signed: Whether to make the pixels int8 first: TFLite Micro counts and gathers no uint8.
    """
    value, dtype, lowest = pixels, np.uint8, 0
    if signed:
        dtype, lowest = np.int8, -128
        value = file.tensor(f"{node.name}/signed", shape, dtype, scale=1.0, zero_point=lowest)
        file.operator("QUANTIZE", [pixels], value, schema.QuantizeOptionsT())
    if node.order != tuple(range(len(node.order))):
        ordered = file.tensor(f"{node.name}/ordered", shape, dtype, scale=1.0, zero_point=lowest)
        order = file.constant(f"{node.name}/order", np.array(node.order, np.int32))
        _gather(file, value, order, ordered, axis=len(shape))
        value = ordered
    index = file.tensor(f"{node.name}/pixels", shape, np.int32)
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = TYPES[np.dtype(dtype)], schema.TensorType.INT32
    file.operator("CAST", [value], index, options)
    codes = node.codes + zero_point(node.grid)
    if np.all(codes == codes[:, :1]):
        codes = codes[:, :1]
    start = np.arange(codes.shape[1], dtype=np.int32) * len(codes) - lowest
    if np.any(start):
        starts = file.constant(f"{node.name}/starts", start)
        entry = file.tensor(f"{node.name}/entries", shape, np.int32)
        file.operator("ADD", [index, starts], entry, schema.AddOptionsT())
        index = entry
    table = file.constant(
        f"{node.name}/table",
        codes.T.ravel().astype(np.int8),
        scale=node.grid.step,
        zero_point=zero_point(node.grid),
    )
    _gather(file, table, index, output, axis=0)


def _gather(file: FileBuilder, values: int, indices: int, output: int, axis: int) -> None:
    options = schema.GatherOptionsT()
    options.axis = axis
    file.operator("GATHER", [values, indices], output, options)
