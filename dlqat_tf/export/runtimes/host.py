"""Runs files on this host: TFLite's kernels, those of Larq Compute Engine, or TFLite Micro's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._litert import tflite_interpreter, tflite_version
from dlqat_tf.export.files import flatbuffer, lce
from dlqat_tf.export.files.micro import MicroInterpreter
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.simulate import batches
from dlqat_tf.export.runtimes import compiled_model


def kernels_of(content: schema.ModelT, runtime: str = "tflite") -> str:
    """Return what runs a file here."""
    if flatbuffer.is_binarized(content):
        return "Larq Compute Engine with XNNPACK, on this host's kernels"
    if runtime == "micro":
        return "TFLite Micro's reference kernels"
    if runtime == "compiled_model":
        return f"CompiledModel of {tflite_version()}"
    if runtime == "builtin":
        return f"{tflite_version()} without XNNPACK"
    types = {tensor.type for tensor in content.subgraphs[0].tensors}
    if schema.TensorType.INT4 in types:
        return f"{tflite_version()}: int4 convolutions built in, the rest XNNPACK"
    return f"{tflite_version()} with XNNPACK"


def runner(
    content: schema.ModelT,
    batch_size: int,
    feed=None,
    path="the file",
    runtime: str = "tflite",
    *,
    binarized: bool = False,
):
    """Return a function from lists of inputs to lists of outputs.

    Its inputs are arrays, one for each input, which ``feed`` turns into what the file takes
    (:func:`dlqat_tf.export.files.inputs.for_file`; None: they are that). ``batch_size`` of each run
    at once, or as many as the file is fixed to. ``runtime`` is as for
    :func:`dlqat_tf.export.parity`; ``binarized`` lets Larq Compute Engine run a file that has none
    of its operations.

    Raises:
        ExportError: The kernels refuse the file, which the message calls ``path``.
    """
    batch_size = flatbuffer.batch_size_of(content) or batch_size
    data = flatbuffer.with_batch(content, batch_size)
    if binarized or flatbuffer.is_binarized(content):
        # Its threads wait for each other at every operation, for long where the machine is busy.
        invoke = lce.open_interpreter(data, path, threads=1).predict
    elif runtime == "compiled_model":
        invoke = compiled_model.opened(data, path)
    elif runtime == "micro":
        invoke = MicroInterpreter(data, path).run
    else:
        invoke = _on_tflite(content, data, batch_size, path, xnnpack=runtime == "tflite")

    def filled(images: np.ndarray) -> np.ndarray:
        missing = np.zeros((batch_size - len(images), *images.shape[1:]), images.dtype)
        return np.concatenate([images, missing])

    def run(images: list[np.ndarray]) -> list[np.ndarray]:
        fed = images if feed is None else feed(images)
        outputs = [invoke([filled(each) for each in some]) for some in batches(fed, batch_size)]
        return [np.concatenate(each)[: len(images[0])] for each in zip(*outputs, strict=True)]

    return run


def _on_tflite(
    content: schema.ModelT, data: bytes, batch_size: int, path, *, xnnpack: bool
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    graph = content.subgraphs[0]
    inputs, outputs = (list(map(int, ends)) for ends in (graph.inputs, graph.outputs))
    with _refusals(path):
        interpreter = tflite_interpreter(data, num_threads=min(batch_size, 2), xnnpack=xnnpack)

    def invoke(images: list[np.ndarray]) -> list[np.ndarray]:
        for index, each in zip(inputs, images, strict=True):
            interpreter.set_tensor(index, each)
        with _refusals(path):
            interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return invoke


@contextlib.contextmanager
def _refusals(path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"TFLite refuses {path}: {error}") from None
