"""Functions of single values as int8 operations, where these give what float operations would."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._litert import tflite_interpreter
from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.files.inputs import zero_point
from dlqat_tf.export.integer.nodes import Island
from dlqat_tf.quantizers import ActivationGrid

_CODES = np.arange(-128, 128, dtype=np.int8)
# Steps of the outputs of operations that have no others.
_STEPS = {"LOGISTIC": 1 / 256, "TANH": 1 / 128}


def options_of(operator: str):
    """Return the options of an operation, or None."""
    return schema.GeluOptionsT() if operator == "GELU" else None


def has_integer_form(
    island: Island,
    source: ActivationGrid,
    target: ActivationGrid,
    run_part: Callable,
    run_file: Callable,
) -> bool:
    """Return whether an int8 operation gives the codes of the float ones, for each of 256.

    Where the grid does not begin with the lowest int8, that is after both have been clipped there.

    Args:
        island: The function.
        source: Grid of its input.
        target: Grid that rounds its output.
        run_part: Runs it in float.
        run_file: Returns the outputs of a file, given its content and int8 inputs (1, 256).
    """
    step = float(target.step)
    if not island.operator or _STEPS.get(island.operator, step) != step:
        return False
    integers = run_file(_file(island.operator, source, target), _CODES[None])
    values = np.float32(_CODES.astype(np.int32) - zero_point(source)) * source.step
    size = int(np.prod(island.part.shapes[0]))
    many = np.resize(values, (-(-len(values) // size), *island.part.shapes[0]))
    (outputs,) = run_part(island.part, [many])
    rounded = np.rint(outputs.ravel()[: len(values)] * (np.float32(1) / target.step))
    ends = zero_point(target) + target.lowest, 127
    rounded = np.clip(rounded + zero_point(target), *ends)
    return np.array_equal(rounded, np.clip(np.ravel(integers), *ends))


def _file(operator: str, source: ActivationGrid, target: ActivationGrid) -> bytes:
    file = FileBuilder()
    tensors = [
        file.tensor(
            name, _CODES.shape, np.int8, scale=float(grid.step), zero_point=zero_point(grid)
        )
        for name, grid in (("codes", source), ("rounded", target))
    ]
    file.operator(operator, tensors[:1], tensors[1], options_of(operator))
    return file.finish(tensors[:1], [("rounded", tensors[1])], {})


def run_on_tflite(data: bytes, codes: np.ndarray) -> np.ndarray:
    """Return the only output of a file with one input, of stock kernels."""
    interpreter = tflite_interpreter(data)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], codes)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
