"""Breaks up chains of elementwise operations that XNNPACK would make tables of, one in another.

XNNPACK replaces up to ten such operations in a row, between 8-bit codes, by one table of 256 codes.
Until April 2026 it made another one of that table and what follows it, and freed the first one
twice, which ends the process (Chromium's issue 497456778). TensorFlow 2.21 and the applications of
its time have that version, so no file may hold a longer chain.
"""

from __future__ import annotations

import copy
import math

from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.files.moving import add_reshape

_LONGEST = 10
_UNARY = (
    "ABS CEIL COS DEQUANTIZE ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC NEG QUANTIZE "
    "RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SIGN SIN SQRT SQUARE TANH"
)
_BINARY = "ADD DIV MAXIMUM MINIMUM MUL POW PRELU SQUARED_DIFFERENCE SUB"  # by a number
_ELEMENTWISE = {getattr(schema.BuiltinOperator, name) for name in f"{_UNARY} {_BINARY}".split()}


def break_chains(file: FileBuilder) -> None:
    """Put a RESHAPE to the same shape, a copy, into each chain that is too long for XNNPACK."""
    operators, file.operators = file.operators, []
    lengths: dict[int, int] = {}  # of the chain that ends in a tensor
    for operator in operators:
        source = _source(file, operator)
        if source is not None:
            count = 2 if getattr(operator.builtinOptions, "fusedActivationFunction", 0) else 1
            if lengths.get(source, 0) + count > _LONGEST:
                copied = _copied(file, source)
                operator.inputs[list(operator.inputs).index(source)] = copied
                source = copied
            lengths[int(operator.outputs[0])] = lengths.get(source, 0) + count
        file.operators.append(operator)


def _source(file: FileBuilder, operator: schema.OperatorT) -> int | None:
    """Return the only tensor that an elementwise operation computes with, besides numbers."""
    if file.number_of(operator) not in _ELEMENTWISE:
        return None
    tensors = {int(index): file.tensors[index] for index in operator.inputs if index >= 0}
    computed = [index for index, tensor in tensors.items() if not tensor.buffer]
    constants = [tensor for tensor in tensors.values() if tensor.buffer]
    is_by_numbers = all(math.prod(tensor.shape) == 1 for tensor in constants)
    return computed[0] if len(computed) == 1 and is_by_numbers else None


def _copied(file: FileBuilder, index: int) -> int:
    """Add a copy of a tensor, and return it."""
    tensor, copied = copy.copy(file.tensors[index]), len(file.tensors)
    name, shape = tensor.name, tuple(map(int, tensor.shape[1:]))
    tensor.name = f"{name}/copied"
    file.tensors.append(tensor)
    add_reshape(file, f"{name}/shape", index, copied, shape)
    return copied
