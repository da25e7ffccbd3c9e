"""Builds the graph of a .tflite file.

Written directly, not through a converter: every code, scale and bias in the file is the one that
was decided here, and equal constants share one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.flatbuffer import TYPES, packed, takes_any_number
from dlqat_tf.export.files.verify import number_of

# The lowest version of each operation that has what is used of it here.
_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "GATHER": 2,
    "MAX_POOL_2D": 2,
    "MAXIMUM": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "SUB": 2,
    "TRANSPOSE_CONV": 3,
}


class FileBuilder:
    """Collects tensors and operations of one graph."""

    def __init__(self):
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self._codes: dict[tuple[int, str | None, int], int] = {}
        self._buffers: dict[bytes, int] = {b"": 0}
        self._constants: dict[tuple, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype,
        *,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        """Add a tensor that is computed; ``shape`` without the batch. Returns its index."""
        tensor = _tensor(name, (1, *shape), TYPES[np.dtype(dtype)])
        tensor.shapeSignature = np.array([-1, *shape], np.int32)
        if scale is not None:
            tensor.quantization = _quantization([scale], [zero_point], 0)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(
        self,
        name: str,
        values: np.ndarray,
        *,
        scale: np.ndarray | None = None,
        zero_point: int = 0,
        axis: int = 0,
        int4: bool = False,
    ) -> int:
        """Add a constant, or return the one that holds the same. ``int4`` packs two to a byte."""
        data = packed_int4(values) if int4 else np.ascontiguousarray(values).tobytes()
        scales = b"" if scale is None else np.asarray(scale, np.float32).tobytes()
        key = (data, values.dtype.str, values.shape, scales, zero_point, axis, int4)
        if key not in self._constants:
            kind = schema.TensorType.INT4 if int4 else TYPES[values.dtype]
            tensor = _tensor(name, values.shape, kind)
            tensor.buffer = self._buffer(data)
            if scale is not None:
                scale = np.atleast_1d(np.asarray(scale, np.float32))
                tensor.quantization = _quantization(scale, [zero_point] * scale.size, axis)
            self.tensors.append(tensor)
            self._constants[key] = len(self.tensors) - 1
        return self._constants[key]

    def operator(
        self,
        code: str,
        inputs: Sequence[int],
        output: int,
        options=None,
        *,
        version: int | None = None,
        custom: bytes | None = None,
    ) -> schema.OperatorT:
        """Add an operation: a name of the schema's ``BuiltinOperator``, or a custom one's name."""
        number = schema.BuiltinOperator.CUSTOM
        if custom is None:
            number = getattr(schema.BuiltinOperator, code)
        name = None if custom is None else code
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(number, name, version or _VERSIONS.get(code, 1))
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([output], np.int32)
        if custom is not None:
            operator.customOptions = np.frombuffer(custom, np.uint8)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.operators.append(operator)
        return operator

    def splice(self, model: schema.ModelT, inputs: Sequence[int], prefix: str) -> list[int]:
        """Add the operations of another file, of one graph, on tensors of this one.

        Args:
            model: The other file.
            inputs: Tensors that stand for its inputs.
            prefix: What the names of its tensors start with; their number follows.

        Returns:
            The tensors that are its outputs.
        """
        (graph,) = model.subgraphs
        tensors = dict(zip(map(int, graph.inputs), inputs, strict=True))
        for index, tensor in enumerate(graph.tensors):
            if index in tensors:
                continue
            data = model.buffers[tensor.buffer].data
            tensor.buffer = self._buffer(b"" if data is None else bytes(data))
            tensor.name = f"{prefix}/{index}"
            tensors[index] = len(self.tensors)
            self.tensors.append(tensor)
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            custom = None if code.customCode is None else code.customCode.decode()
            operator.opcodeIndex = self._code(number_of(code), custom, code.version)
            for name in ("inputs", "outputs"):
                old = map(int, getattr(operator, name))
                setattr(operator, name, np.array([tensors.get(i, i) for i in old], np.int32))
            self.operators.append(operator)
        return [tensors[int(i)] for i in graph.outputs]

    def fix_batch(self, size: int) -> None:
        """Let the file take ``size`` images at once, and no other number."""
        for tensor in self.tensors:
            if takes_any_number(tensor):
                tensor.shape = np.array([size, *tensor.shape[1:]], np.int32)
            tensor.shapeSignature = None

    def number_of(self, operator: schema.OperatorT) -> int:
        """Return the number of an operation in the schema's ``BuiltinOperator``."""
        number, _, _ = list(self._codes)[operator.opcodeIndex]
        return number

    def _code(self, number: int, custom: str | None, version: int) -> int:
        return self._codes.setdefault((number, custom, version), len(self._codes))

    def _buffer(self, data: bytes) -> int:
        return self._buffers.setdefault(data, len(self._buffers))

    def finish(
        self, inputs: list[int], named: list[tuple[str, int]], metadata: dict[str, bytes]
    ) -> bytes:
        """Return the file's content; ``named`` is its outputs with their names."""
        outputs = [index for _, index in named]
        model = schema.ModelT()
        model.version = 3
        model.description = "dlqat_tf"
        model.operatorCodes = []
        for number, custom, version in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = number
            code.deprecatedBuiltinCode = min(number, 127)
            code.customCode = custom
            code.version = version
            model.operatorCodes.append(code)
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        graph.name = "main"
        model.subgraphs = [graph]
        model.signatureDefs = [self._signature(inputs, named)]
        model.metadata = []
        for name, data in metadata.items():
            entry = schema.MetadataT()
            entry.name = name
            entry.buffer = self._buffer(data)
            model.metadata.append(entry)
        model.buffers = []
        for data in self._buffers:
            buffer = schema.BufferT()
            buffer.data = data
            model.buffers.append(buffer)
        return packed(model)

    def _signature(self, inputs: list[int], outputs: list[tuple[str, int]]) -> schema.SignatureDefT:
        """Return what ``get_signature_runner`` and Android's ``runSignature`` look names up in."""
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_tensor_map(self.tensors[i].name, i) for i in inputs]
        signature.outputs = [_tensor_map(*each) for each in outputs]
        return signature


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def _tensor(name: str, shape, kind: int) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), kind
    tensor.hasRank = True
    return tensor


def _quantization(scale, zero_point, axis: int) -> schema.QuantizationParametersT:
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.asarray(scale, np.float32)
    quantization.zeroPoint = np.asarray(zero_point, np.int64)
    quantization.quantizedDimension = axis
    return quantization


def packed_int4(values: np.ndarray) -> bytes:
    """Return int4 codes two to a byte, the first one in the low half."""
    nibbles = (values.astype(np.int8).ravel() & 0xF).astype(np.uint8)
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()
