"""Reads .tflite flatbuffers and packs them, by the schema that ships in TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._host import check_name, check_readable, clear_partial, replacing, target_of
from dlqat_tf._litert import tflite_interpreter
from dlqat_tf.export.files.verify import number_of, problems
from dlqat_tf.export.integer.errors import ExportError

IDENTIFIER = b"TFL3"
TYPES = {
    np.dtype("float32"): schema.TensorType.FLOAT32,
    np.dtype("int32"): schema.TensorType.INT32,
    np.dtype("int8"): schema.TensorType.INT8,
    np.dtype("uint8"): schema.TensorType.UINT8,
    np.dtype("bool"): schema.TensorType.BOOL,
}


class _Buffer(schema.BufferT):
    """A buffer whose content starts at a multiple of 16 bytes, as the schema demands."""

    def Pack(self, builder):
        offset = None
        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), 16)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = bytes(self.data)
            offset = builder.EndVector()
        schema.BufferStart(builder)
        if offset is not None:
            schema.BufferAddData(builder, offset)
        return schema.BufferEnd(builder)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors and strings once: layers of one shape have the same options and shapes.

    A flatbuffer's tables refer to their vectors by offset, so that several may refer to one.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self._offsets: dict[tuple, int] = {}

    def CreateString(self, s, encoding="utf-8", errors="strict"):
        return self._once((str, s), lambda: super(_SharingBuilder, self).CreateString(s))

    def CreateNumpyVector(self, x):
        key = (x.dtype.str, x.tobytes())
        return self._once(key, lambda: super(_SharingBuilder, self).CreateNumpyVector(x))

    def _once(self, key: tuple, create) -> int:
        if key not in self._offsets:
            self._offsets[key] = create()
        return self._offsets[key]


def packed(model: schema.ModelT) -> bytes:
    """Return the flatbuffer of a model."""
    for buffer in model.buffers:
        buffer.__class__ = _Buffer  # files that were read have the generated class
    builder = _SharingBuilder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def with_batch(model: schema.ModelT, size: int) -> bytes:
    """Return the flatbuffer of a model for ``size`` images at once, where it takes any number."""
    tensors = model.subgraphs[0].tensors
    shapes = [tensor.shape for tensor in tensors]
    for tensor in tensors:
        if takes_any_number(tensor):
            tensor.shape = np.array([size, *tensor.shape[1:]], np.int32)
    data = packed(model)
    for tensor, shape in zip(tensors, shapes, strict=True):
        tensor.shape = shape
    return data


def is_binarized(model: schema.ModelT) -> bool:
    """Return whether a file has operations of Larq Compute Engine."""
    return any((code.customCode or b"").startswith(b"Lce") for code in model.operatorCodes or [])


def batch_size_of(model: schema.ModelT) -> int | None:
    """Return how many images a file takes at once, None where it takes any number."""
    graph = model.subgraphs[0]
    inputs = [graph.tensors[int(i)] for i in graph.inputs]
    if any(map(takes_any_number, inputs)):
        return None
    return next((int(each.shape[0]) for each in inputs if each.shape is not None), 1)


def takes_any_number(tensor: schema.TensorT) -> bool:
    """Return whether the batch of a tensor may have any size."""
    signature = tensor.shapeSignature
    return signature is not None and len(signature) > 0 and signature[0] == -1


def checked_path(path) -> Path:
    """Return a path; raise ExportError where it is none, as where arguments changed places."""
    try:
        return Path(path)
    except TypeError:
        raise ExportError(
            "Expected the path of a .tflite file, a string or a pathlib.Path. Received: "
            f"{type(path).__name__}."
        ) from None


def content(path: str | Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        ExportError: There is no such file.
    """
    path = checked_path(path)
    try:
        check_name(path)
        check_readable(path)
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"Expected a .tflite file at {path}: {error.strerror or error}") from None


def read(path: str | Path) -> schema.ModelT:
    """Return the graph in a .tflite file.

    Raises:
        ExportError: There is no such file, or :func:`parsed` refuses it.
    """
    return parsed(content(path), path)


def parsed(data: bytes, path: str | Path) -> schema.ModelT:
    """Return the graph in the bytes of a .tflite file; errors name ``path``.

    Whatever reads or runs a file comes by here, since a damaged one may end the process: TFLite's
    verifier has been through it, and :mod:`dlqat_tf.export.files.verify`.

    Raises:
        ExportError: They are not a whole .tflite file.
    """
    if data[4:8] != IDENTIFIER:
        raise ExportError(
            f"Expected a .tflite file. Received: {path}, which is not one but something else."
        )
    try:
        # The constructor verifies all offsets, and only that: custom ops are resolved later.
        tflite_interpreter(data, allocate=False)
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        problem = next(problems(model), None)
    except (ValueError, RuntimeError) as error:
        problem = str(error).strip().splitlines()[0].rstrip(".")
    if problem:
        raise ExportError(
            f"Expected a whole .tflite file. Received: {path}, which is damaged or cut short "
            f"({problem}): copy or export it again."
        )
    return model


def form(model: schema.ModelT) -> list:
    """Return all of a file's graph but the names, values and scales of its constants.

    Two files of equal form run the same operations on the same shapes.
    """
    graph = model.subgraphs[0]

    def shapes(indices) -> list:
        chosen = [graph.tensors[i] if i >= 0 else None for i in map(int, indices)]
        return [
            each and (each.type, _plain(each.shape), _plain(each.shapeSignature)) for each in chosen
        ]

    def names(indices) -> list:
        return [graph.tensors[i].name for i in indices]

    operations = []
    for each in graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        options = {} if each.builtinOptions is None else vars(each.builtinOptions)
        operations.append(
            (
                (number_of(code), code.customCode, _plain(each.customOptions)),
                {name: _plain(value) for name, value in options.items()},
                shapes([*each.inputs, *each.outputs]),
                names(each.outputs),
            )
        )
    return [*operations, *((shapes(ends), names(ends)) for ends in (graph.inputs, graph.outputs))]


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def metadata(model: schema.ModelT, name: str) -> bytes | None:
    """Return an entry of the file's metadata, or None."""
    for entry in model.metadata or []:
        if (entry.name or b"").decode() == name:
            data = model.buffers[entry.buffer].data
            return b"" if data is None else bytes(data)
    return None


@contextlib.contextmanager
def writing(*paths: Path) -> Iterator[list[Path]]:
    """Give temporary names beside files, which take their places when all of them are written.

    Their folders are made; what a killed process left of the same files is removed.

    Raises:
        ExportError: A folder cannot be made or written to, or a file cannot take its place. The
            files are as they were.
    """
    try:
        for path in map(target_of, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_partial(path)
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(replacing(path)) for path in paths]
    except OSError as error:
        where = f"Cannot write to the folder {paths[0].parent}: {error.strerror}."
        raise ExportError(where if error.strerror else str(error)) from None
