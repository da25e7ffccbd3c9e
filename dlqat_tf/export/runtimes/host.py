"""Runs files on this host: TFLite's kernels, or those of Larq Compute Engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._compat import tflite_interpreter
from dlqat_tf.export.files import flatbuffer, lce
from dlqat_tf.export.files.census import operator_name
from dlqat_tf.export.integer.network import ExportError
from dlqat_tf.export.integer.simulate import batches


def is_binarized(content: schema.ModelT) -> bool:
    """Return whether a file has operations of Larq Compute Engine."""
    names = {operator_name(content, each) for each in content.subgraphs[0].operators}
    return any(name.startswith("Lce") for name in names)


def kernels_of(content: schema.ModelT) -> str:
    """Return what runs a file here."""
    if is_binarized(content):
        return "Larq Compute Engine with XNNPACK, on this host's kernels"
    types = {tensor.type for tensor in content.subgraphs[0].tensors}
    if schema.TensorType.INT4 in types:
        return f"TFLite {tf.__version__}: int4 convolutions built in, the rest XNNPACK"
    return f"TFLite {tf.__version__} with XNNPACK"


def runner(content: schema.ModelT, batch_size: int, feed=None, path="the file"):
    """Return a function from lists of inputs to lists of outputs.

    Its inputs are arrays, one for each input, which ``feed`` turns into what the file takes
    (:func:`dlqat_tf.export.files.inputs.for_file`; None: they are that). ``batch_size`` of each run
    at once, or as many as the file is fixed to.

    Raises:
        ExportError: The kernels refuse the file, which the message calls ``path``.
    """
    batch_size = flatbuffer.batch_size_of(content) or batch_size
    data = flatbuffer.with_batch(content, batch_size)
    if is_binarized(content):
        # Its threads wait for each other at every operation, for long where the machine is busy.
        interpreter = lce.open_interpreter(data, threads=1)

        def invoke(images):
            return interpreter.predict(images)

    else:
        with _refusals(path):
            interpreter = tflite_interpreter(data, num_threads=min(batch_size, 2))

        def invoke(images):
            for index, each in zip(content.subgraphs[0].inputs, images, strict=True):
                interpreter.set_tensor(int(index), each)
            with _refusals(path):
                interpreter.invoke()
            return [interpreter.get_tensor(int(i)) for i in content.subgraphs[0].outputs]

    def filled(images: np.ndarray) -> np.ndarray:
        missing = np.zeros((batch_size - len(images), *images.shape[1:]), images.dtype)
        return np.concatenate([images, missing])

    def run(images: list[np.ndarray]) -> list[np.ndarray]:
        fed = images if feed is None else feed(images)
        outputs = [invoke([filled(each) for each in some]) for some in batches(fed, batch_size)]
        return [np.concatenate(each)[: len(images[0])] for each in zip(*outputs, strict=True)]

    return run


@contextlib.contextmanager
def _refusals(path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"TFLite refuses {path}: {error}") from None
