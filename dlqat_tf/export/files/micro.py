"""TFLite Micro, the interpreter of microcontrollers, on this host: the one module that imports it.

Its Python package, ``tflite-micro``, has development releases only, so it is an extra of this one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._stderr import diverted
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.verify import BITS, elements
from dlqat_tf.export.integer.errors import ExportError

_SLACK = 1 << 20  # bytes


class MicroInterpreter:
    """Runs a file as a microcontroller does, on the reference kernels.

    Args:
        data: Content of the file.
        path: What errors call it.

    Raises:
        ExportError: tflite-micro is not installed, the file has operations of Larq Compute Engine
            or takes any number of images at once, or TFLite Micro has no kernel for an operation of
            it.
    """

    def __init__(self, data: bytes, path="the file"):
        model = suitable(data, path)
        runtime = _runtime()
        graph = model.subgraphs[0]
        self._outputs = len(graph.outputs)
        inputs = [graph.tensors[int(i)] for i in graph.inputs]
        # TFLite Micro says there, and nowhere else, which operation it does not know.
        with diverted() as said:
            try:
                self._interpreter = runtime.Interpreter.from_bytes(data, arena_size=_room(model))
                self.run([np.zeros(each.shape, _DTYPES[each.type]) for each in inputs])
            except RuntimeError as error:
                raise ExportError(_refusal(path, f"{_text(said())} {error}")) from None

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for an array of each input."""
        for i, array in enumerate(arrays):
            self._interpreter.set_input(np.ascontiguousarray(array), i)
        self._interpreter.invoke()
        return [np.array(self._interpreter.get_output(i)) for i in range(self._outputs)]


def arena_bytes(data: bytes, path="the file") -> int:
    """Return the bytes of RAM that TFLite Micro needs for a file: the least arena that will do.

    Its recording allocator says how much of an arena is taken in the end, which may be less than
    what planning the memory takes in between; so arenas are tried. It is counted on this host: on
    32-bit processors pointers are half as long, and the arena a little smaller.

    Args:
        data: Content of the file.
        path: What errors call it.

    Raises:
        ExportError: As for :class:`MicroInterpreter`.
    """
    model = suitable(data, path)
    _runtime()
    # In a process of its own: nothing but this package verifies files, and kernels trust theirs.
    done = subprocess.run(
        [sys.executable, "-c", _LEAST, str(_room(model))],
        input=data,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        said = _text(done.stderr) or f"it ends the process, {done.returncode}"
        raise ExportError(_refusal(path, said))
    return int(done.stdout)


_ALIGNMENT = 16  # bytes, of the arena
_LEAST = f"""
import sys
from tflite_micro.python.tflite_micro import runtime

data, enough = sys.stdin.buffer.read(), int(sys.argv[1]) // {_ALIGNMENT}


def open_in(units):
    runtime.Interpreter.from_bytes(data, arena_size={_ALIGNMENT} * units)


try:
    open_in(enough)
except RuntimeError as error:
    sys.exit(str(error))
scarce = 0
while enough - scarce > 1:
    units = (scarce + enough) // 2
    try:
        open_in(units)
        enough = units
    except RuntimeError:
        scarce = units
print({_ALIGNMENT} * enough)
"""
_DTYPES = {number: dtype for dtype, number in flatbuffer.TYPES.items()}


def suitable(data: bytes, path) -> schema.ModelT:
    """Return the graph of a file that TFLite Micro may run.

    Raises:
        ExportError: It has operations of Larq Compute Engine or takes any number of images at once.
    """
    model = flatbuffer.parsed(data, path)
    _check_graph(model, path)
    return model


def check(model: schema.ModelT, path) -> None:
    """Say before the long work what :class:`MicroInterpreter` would of a file's graph."""
    _check_graph(model, path)
    _runtime()


def _check_graph(model: schema.ModelT, path) -> None:
    if flatbuffer.is_binarized(model):
        raise ExportError(
            f"{path} has operations of Larq Compute Engine, which no microcontroller runs: export "
            "with to_tflite."
        )
    if flatbuffer.batch_size_of(model) is None:
        raise ExportError(
            f"{path} takes any number of images at once, and TFLite Micro runs files of a fixed "
            "size only: export it with batch_size=1."
        )


def _room(model: schema.ModelT) -> int:
    """Return bytes of an arena that is large enough: tensors, and what is allocated beside them."""
    tensors = model.subgraphs[0].tensors
    return 2 * sum(-(-elements(each) * BITS[each.type] // 8) for each in tensors) + _SLACK


def _refusal(path, said: str) -> str:
    return f"TFLite Micro refuses {path}: {' '.join(said.split())}"


def _text(written: bytes) -> str:
    return written.decode(errors="replace")


def _runtime():
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise ExportError(
            f"TFLite Micro cannot be imported ({error}): run `pip install 'dlqat_tf[micro]'`."
        ) from None
    return runtime


def is_installed() -> bool:
    """Return whether TFLite Micro can be imported."""
    with contextlib.suppress(ExportError):
        return bool(_runtime())
    return False
