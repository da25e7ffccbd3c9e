"""What has to hold in a .tflite graph before kernels may run it.

The flatbuffer verifier, which TFLite runs, knows that every offset lies inside the file. What the
numbers mean it does not ask, and kernels trust them: an index out of range, a stride of zero or a
zero point of 2^29 ends the process, or the reader, somewhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from flatbuffers import flexbuffers
from tensorflow.lite.python import schema_py_generated as schema

LARGEST = 2**31 - 1  # bytes of a tensor, and what any size in the options may reach
_OPTIONAL = -1  # an input that is not given
_ZERO_POINTS = {
    schema.TensorType.INT4: (-8, 7),
    schema.TensorType.INT8: (-128, 127),
    schema.TensorType.UINT8: (0, 255),
    schema.TensorType.INT16: (-(2**15), 2**15 - 1),
    schema.TensorType.INT32: (0, 0),
}
BITS = {
    schema.TensorType.FLOAT64: 64,
    schema.TensorType.FLOAT32: 32,
    schema.TensorType.FLOAT16: 16,
    schema.TensorType.BFLOAT16: 16,
    schema.TensorType.COMPLEX128: 128,
    schema.TensorType.COMPLEX64: 64,
    schema.TensorType.INT64: 64,
    schema.TensorType.UINT64: 64,
    schema.TensorType.INT32: 32,
    schema.TensorType.UINT32: 32,
    schema.TensorType.INT16: 16,
    schema.TensorType.UINT16: 16,
    schema.TensorType.INT8: 8,
    schema.TensorType.UINT8: 8,
    schema.TensorType.BOOL: 8,
    schema.TensorType.INT4: 4,
    schema.TensorType.UINT4: 4,
    schema.TensorType.INT2: 2,
    # Handles and texts, whose size is not in the file.
    schema.TensorType.STRING: 0,
    schema.TensorType.RESOURCE: 0,
    schema.TensorType.VARIANT: 0,
}
"""Bits of a value by tensor type."""
OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
"""Names of the built-in operations."""
# What a kernel divides by, or steps with.
_AT_LEAST_ONE = ("strideW", "strideH", "dilationWFactor", "dilationHFactor")
_AT_LEAST_ONE += ("filterWidth", "filterHeight", "blockSize", "channels")
_CHOICES = {
    "padding": vars(schema.Padding).values(),
    "fusedActivationFunction": vars(schema.ActivationFunctionType).values(),
    "weightsFormat": vars(schema.FullyConnectedOptionsWeightsFormat).values(),
}
# The operations that this package reads more of than their name: without options of their own type
# a kernel's strides would be 0, and without weights there is nothing to count.
_OPTIONS = {
    schema.BuiltinOperator.CONV_2D: schema.Conv2DOptionsT,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: schema.DepthwiseConv2DOptionsT,
    schema.BuiltinOperator.FULLY_CONNECTED: schema.FullyConnectedOptionsT,
    schema.BuiltinOperator.MAX_POOL_2D: schema.Pool2DOptionsT,
    schema.BuiltinOperator.AVERAGE_POOL_2D: schema.Pool2DOptionsT,
    schema.BuiltinOperator.TRANSPOSE_CONV: schema.TransposeConvOptionsT,
}
_BINARY = "LceBconv2d"
_CONVOLUTIONS = {
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    _BINARY,
}
_WEIGHTED = _CONVOLUTIONS | {schema.BuiltinOperator.FULLY_CONNECTED}
_WINDOWED = _CONVOLUTIONS | {
    schema.BuiltinOperator.MAX_POOL_2D,
    schema.BuiltinOperator.AVERAGE_POOL_2D,
}
# Their kernels end the process where a scale is 0, which it is where a file has none.
_SUMS = {schema.BuiltinOperator.ADD, schema.BuiltinOperator.SUB}
_CODES = {schema.TensorType.INT8, schema.TensorType.UINT8}
_LCE_OPTIONS = {
    "padding": "padding",
    "fusedActivationFunction": "fused_activation_function",
    "channels": "channels_in",
    "strideH": "stride_height",
    "strideW": "stride_width",
    "dilationHFactor": "dilation_height_factor",
    "dilationWFactor": "dilation_width_factor",
}


def problems(model: schema.ModelT) -> Iterator[str]:
    """Yield what is wrong with a graph, nothing where all is well.

    Args:
        model: A graph whose flatbuffer was verified.
    """
    if not model.subgraphs or not model.buffers:
        yield "it has no graph"
        return
    if not model.subgraphs[0].operators:
        yield "its graph computes nothing"
    for code in model.operatorCodes or []:
        yield from _of_code(code)
    for entry in model.metadata or []:
        if not _is_text(entry.name) or not 0 <= entry.buffer < len(model.buffers):
            yield "its metadata point nowhere"
    for signature in model.signatureDefs or []:
        yield from _of_signature(model, signature)
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors or []):
            yield from (f"tensor {index} {each}" for each in _of_tensor(model, tensor))
        yield from _of_order(model, graph)
        for index, operator in enumerate(graph.operators or []):
            yield from (f"operation {index} {each}" for each in _of_options(model, graph, operator))
            if number_of(model.operatorCodes[operator.opcodeIndex]) in _SUMS:
                yield from (f"operation {index} {each}" for each in _of_scales(graph, operator))


def _of_signature(model: schema.ModelT, signature: schema.SignatureDefT) -> Iterator[str]:
    if not 0 <= signature.subgraphIndex < len(model.subgraphs):
        yield "a signature is of no graph"
        return
    count = len(model.subgraphs[signature.subgraphIndex].tensors or [])
    for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
        if not _is_text(entry.name) or not 0 <= entry.tensorIndex < count:
            yield "a signature points nowhere"


def _integers(values) -> list[int]:
    return [] if values is None else [int(i) for i in values]


def _is_text(name: bytes | None) -> bool:
    try:
        return name is None or bool(name.decode() or True)
    except UnicodeDecodeError:
        return False


def number_of(code: schema.OperatorCodeT) -> int:
    """Return an operation's number; the byte for it was too small once and is kept for readers."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def elements(tensor: schema.TensorT) -> int:
    """Return how many values a tensor has; one without a shape is a scalar."""
    return math.prod(_integers(tensor.shape))


def _of_code(code: schema.OperatorCodeT) -> Iterator[str]:
    number = number_of(code)
    if number not in OPERATORS:
        yield f"no operation has the number {number}"
    custom = code.customCode
    if number == schema.BuiltinOperator.CUSTOM and not (custom and _is_text(custom)):
        yield "a custom operation has no name"


def _of_tensor(model: schema.ModelT, tensor: schema.TensorT) -> Iterator[str]:
    shape = _integers(tensor.shape)
    if not _is_text(tensor.name):
        yield "has a name that is no text"
    if tensor.type not in BITS or not 0 <= tensor.buffer < len(model.buffers):
        yield "has a type or a buffer that does not exist"
        return
    needed = -(-elements(tensor) * BITS[tensor.type] // 8)
    if min(shape, default=0) < 0 or needed > LARGEST:
        yield f"has the shape {shape}"
        return
    signature = tensor.shapeSignature
    if signature is not None and len(signature) != len(shape):
        yield f"has the shape {shape} and the signature {list(signature)}"
    data = model.buffers[tensor.buffer].data
    size = 0 if data is None or tensor.sparsity else len(data)
    if size and needed and size != needed:
        yield f"has {size} bytes where its shape needs {needed}"
    if tensor.quantization is not None:
        yield from _of_quantization(tensor.quantization, tensor.type, shape)


def _of_quantization(quantization, kind: int, shape: list[int]) -> Iterator[str]:
    scales, points = (
        np.zeros(0) if each is None else np.asarray(each)
        for each in (quantization.scale, quantization.zeroPoint)
    )
    if not scales.size and not points.size:
        return
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        yield f"has a scale of {scales.min()}"
    lowest, highest = _ZERO_POINTS.get(kind, (0, 0))
    if points.size and not lowest <= points.min() <= points.max() <= highest:
        yield f"has zero points from {points.min()} to {points.max()}"
    if points.size not in (0, 1, scales.size):
        yield f"has {scales.size} scales and {points.size} zero points"
    if scales.size > 1:
        axis = quantization.quantizedDimension
        if not 0 <= axis < len(shape) or shape[axis] != scales.size:
            yield f"has {scales.size} scales for axis {axis} of the shape {shape}"


def _of_order(model: schema.ModelT, graph: schema.SubGraphT) -> Iterator[str]:
    """Every operation reads what is there by then, and nothing is written twice."""
    tensors = graph.tensors or []
    lists = [(_integers(op.inputs), _integers(op.outputs)) for op in graph.operators or []]
    inputs, outputs = _integers(graph.inputs), _integers(graph.outputs)
    used = [*inputs, *outputs, *(i for both in lists for i in both[1])]
    used += [i for both in lists for i in both[0] if i != _OPTIONAL]
    if not all(0 <= i < len(tensors) for i in used):
        yield "an operation reads or writes a tensor that does not exist"
        return
    codes = len(model.operatorCodes or [])
    if not all(0 <= operator.opcodeIndex < codes for operator in graph.operators or []):
        yield "an operation has no name"
        return
    empty = {i for i, tensor in enumerate(tensors) if 0 in _integers(tensor.shape)}
    ready = empty | {
        i
        for i, tensor in enumerate(tensors)
        if i in inputs or tensor.isVariable or _is_constant(model, tensor)
    }
    for number, (read, written) in enumerate(lists):
        if not ready >= {*read} - {_OPTIONAL}:
            yield f"operation {number} reads a tensor before it is written"
        if (ready - empty) & {*written}:
            yield f"operation {number} writes a tensor for the second time"
        ready |= {*written}
    if not ready >= {*outputs} or not outputs:
        yield "its outputs are never written"


def _is_constant(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    data = model.buffers[tensor.buffer].data
    filled = data is not None and len(data) > 0
    # Content beyond 2 GB lies behind the flatbuffer, at an offset.
    return filled or bool(tensor.externalBuffer) or model.buffers[tensor.buffer].offset > 1


def _of_options(model: schema.ModelT, graph, operator: schema.OperatorT) -> Iterator[str]:
    code = model.operatorCodes[operator.opcodeIndex]
    number, options = number_of(code), operator.builtinOptions
    if not isinstance(options, _OPTIONS.get(number, object)):
        yield "has options of another operation"
        return
    named = {} if options is None else vars(options)
    if number == schema.BuiltinOperator.CUSTOM and code.customCode == b"LceBconv2d":
        number = _BINARY
        try:
            named = flexbuffers.Loads(bytes(operator.customOptions))
            named = {ours: named[theirs] for ours, theirs in _LCE_OPTIONS.items()}
        except Exception:  # the generated reader raises whatever a random offset leads to
            yield "has options that cannot be read"
            return
    for name in _AT_LEAST_ONE:
        size = named.get(name, 1)
        if not isinstance(size, int) or not 1 <= size <= LARGEST:
            yield f"has a {name} of {size}"
            return
    for name, choices in _CHOICES.items():
        if name in named and named[name] not in choices:
            yield f"has a {name} of {named[name]}"
            return
    shapes = [_integers(graph.tensors[i].shape) for i in _integers(operator.inputs)[:2] if i >= 0]
    if number in _WEIGHTED and (len(shapes) < 2 or len(shapes[1]) < 2 or 0 in shapes[1]):
        yield "has no weights"
    elif number in _WINDOWED:
        window = shapes[1][1:3] if number in _WEIGHTED else None
        yield from _of_window(graph, operator, named, window)


def _of_scales(graph, operator: schema.OperatorT) -> Iterator[str]:
    for index in _integers(operator.inputs) + _integers(operator.outputs):
        tensor = graph.tensors[index]
        scale = tensor.quantization and tensor.quantization.scale
        if tensor.type in _CODES and (scale is None or not len(scale)):
            yield f"adds codes of tensor {index}, which has no scale"


def _of_window(graph, operator, options: dict, window: list[int] | None) -> Iterator[str]:
    """Kernels write as much as the options make of the input, into a tensor of the file's size."""
    ends = [graph.tensors[int(each[0])] for each in (operator.inputs, operator.outputs)]
    before, after = (_integers(each.shape) for each in ends)
    signature = _integers(ends[0].shapeSignature)[1:3]
    if len(before) != 4 or len(after) != 4 or before[0] != after[0]:
        yield f"has the shapes {before} and {after}"
    elif -1 not in signature:  # else what the file says stands for no size
        for axis, end in enumerate(("H", "W")):
            size, stride = before[1 + axis], options[f"stride{end}"]
            covered = (
                window[axis] if window else options["filterHeight" if end == "H" else "filterWidth"]
            )
            covered = (covered - 1) * options.get(f"dilation{end}Factor", 1) + 1
            possible = {-(-size // stride), -(-(size - covered + 1) // stride)}
            if after[1 + axis] not in possible - {0}:
                yield f"makes {after[1:3]} of {before[1:3]}"
                return
