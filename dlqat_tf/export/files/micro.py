"""TFLite Micro, the interpreter of microcontrollers, on this host: the one module that imports it.

Its Python package, ``tflite-micro``, has development releases only, so it is an extra of this one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

import numpy as np

from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.verify import BITS, elements
from dlqat_tf.export.integer.network import ExportError

_SLACK = 1 << 20  # bytes of the arena for what is allocated beside the tensors
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


class MicroInterpreter:
    """Runs a file as a microcontroller does, on the reference kernels.

    Args:
        data: Content of the file.
        path: What errors call it.

    Raises:
        ExportError: tflite-micro is not installed, the file takes any number of images at once, or
            TFLite Micro has no kernel for an operation of it.
    """

    def __init__(self, data: bytes, path="the file"):
        runtime = _runtime()
        model = flatbuffer.parsed(data, path)
        if flatbuffer.batch_size_of(model) is None:
            raise ExportError(
                f"{path} takes any number of images at once, and TFLite Micro runs files of a "
                "fixed size only: export it with batch_size=1."
            )
        graph = model.subgraphs[0]
        self._outputs = len(graph.outputs)
        room = sum(-(-elements(each) * BITS[each.type] // 8) for each in graph.tensors)
        inputs = [graph.tensors[int(i)] for i in graph.inputs]
        with _said() as said:
            try:
                self._interpreter = runtime.Interpreter.from_bytes(
                    data, arena_size=2 * room + _SLACK
                )
                self.run([np.zeros(each.shape, _DTYPES[each.type]) for each in inputs])
                self._interpreter.print_allocations()
            except RuntimeError as error:
                reason = " ".join([*said(), str(error)])
                raise ExportError(f"TFLite Micro refuses {path}: {reason}") from None
            self.arena_bytes = int(_TOTAL.search(" ".join(said())).group(1))
            """Bytes of RAM that it takes, as its recording allocator says."""

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for an array of each input."""
        for i, array in enumerate(arrays):
            self._interpreter.set_input(np.ascontiguousarray(array), i)
        self._interpreter.invoke()
        return [np.array(self._interpreter.get_output(i)) for i in range(self._outputs)]


_DTYPES = {number: dtype for dtype, number in flatbuffer.TYPES.items()}


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


@contextlib.contextmanager
def _said() -> Iterator:
    """Hold back what is written to the standard error, and give a function that returns its lines.

    TFLite Micro says there, and nowhere else, which operation it does not know and how much memory
    it takes.
    """
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)

        def lines() -> list[str]:
            held.seek(0)
            return [line.strip() for line in held.read().decode(errors="replace").splitlines()]

        try:
            yield lines
        finally:
            os.dup2(shown, 2)
            os.close(shown)
