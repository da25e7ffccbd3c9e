"""Runs files on LiteRT's CompiledModel, which is to replace interpreters, on this host's CPU."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable

import numpy as np

from dlqat_tf._stderr import silenced
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.verify import elements
from dlqat_tf.export.integer.errors import ExportError

_DTYPES = {number: dtype for dtype, number in flatbuffer.TYPES.items()}


def opened(data: bytes, path="the file") -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """Return a function from an array of each input to an array of each output.

    Args:
        data: Content of the file.
        path: What errors call it.

    Raises:
        ExportError: ai-edge-litert is not installed, or it refuses the file.
    """
    environment = _environment()
    from ai_edge_litert.compiled_model import CompiledModel

    model = flatbuffer.parsed(data, path)
    graph = model.subgraphs[0]
    model.signatureDefs = []  # which may not name the outputs that there are
    outputs = [graph.tensors[int(i)] for i in graph.outputs]
    try:
        with silenced():
            compiled = CompiledModel.from_buffer(flatbuffer.packed(model), environment=environment)
            taken, given = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
    except RuntimeError as error:
        raise ExportError(f"LiteRT refuses {path}: {' '.join(str(error).split())}") from None

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with silenced():  # the first run tells which accelerators there are
            for buffer, array in zip(taken, arrays, strict=True):
                buffer.write(np.ascontiguousarray(array))
            compiled.run_by_index(0, taken, given)
            return [
                buffer.read(elements(each), _DTYPES[each.type]).reshape(each.shape)
                for buffer, each in zip(given, outputs, strict=True)
            ]

    return run


@functools.cache
def _environment():
    """Return what all models share: made anew for each, it would write about itself each time."""
    try:
        from ai_edge_litert.environment import Environment
    except ImportError as error:
        raise ExportError(
            f"LiteRT cannot be imported ({error}): run `pip install 'dlqat_tf[litert]'`."
        ) from None
    with silenced():
        environment = Environment.create()

    @atexit.register
    def close() -> None:
        with silenced():
            environment.close()

    return environment


def check() -> None:
    """Say before the long work that LiteRT cannot be imported."""
    _environment()


def is_installed() -> bool:
    """Return whether LiteRT can be imported."""
    try:
        _environment()
    except ExportError:
        return False
    return True
