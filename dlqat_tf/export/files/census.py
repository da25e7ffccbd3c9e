"""What a .tflite file consists of: operations, bytes, and stored against declared bits."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from flatbuffers import flexbuffers
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.census_report import Census, FileInput, IslandCost, LayerStorage
from dlqat_tf.export.files.flatbuffer import batch_size_of, content, parsed
from dlqat_tf.export.files.micro import arena_bytes
from dlqat_tf.export.files.record import read_record
from dlqat_tf.export.files.verify import BITS, OPERATORS, elements, number_of
from dlqat_tf.export.integer.errors import ExportError

_BINARY_CONVOLUTION = "LceBconv2d"
_TRANSPOSED = "TRANSPOSE_CONV"
_WEIGHTED = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", _TRANSPOSED, "FULLY_CONNECTED"),
    _BINARY_CONVOLUTION,
)


_TYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if not k.startswith("_")}


def census(path: str | Path) -> Census:
    """Count what is in a .tflite file, and the RAM that it takes on a microcontroller.

    Raises:
        ExportError: ``path`` is not a whole .tflite file.
    """
    return with_arena(count(content(path), path))


def with_arena(counted: Census) -> Census:
    """Return a file's census with the RAM that it takes on a microcontroller."""
    try:
        return replace(counted, arena_bytes=arena_bytes(content(counted.path), counted.path))
    except ExportError as error:
        return replace(counted, without_arena=str(error))


def count(data: bytes, path: str | Path) -> Census:
    """Count what is in the bytes of a .tflite file, which need not be written to ``path`` yet.

    Raises:
        ExportError: They are not a whole .tflite file.
    """
    model = parsed(data, path)
    graph = model.subgraphs[0]
    record = read_record(model, path) or {}
    # Of the calls of a shared layer, which share its weights, the first one names it.
    recorded = reversed(record.get("layers", []))
    declared = {tensor: layer for layer in recorded for tensor in layer["tensors"]}
    names = [operator_name(model, operator) for operator in graph.operators]
    sizes = _constant_sizes(model)
    storage: dict[str, LayerStorage] = {}
    warnings: list[str] = []
    sources = {int(to): op for op in graph.operators for to in op.outputs if len(op.inputs)}
    seen: set[int] = set()
    for operator, name in zip(graph.operators, names, strict=True):
        is_gain = name == "MUL" and int(operator.inputs[1]) in declared
        if name not in _WEIGHTED and not is_gain:
            continue
        index, source = int(operator.inputs[1]), None
        if index in sources:  # weights that are dequantized first
            source = sources[index]
            index = int(source.inputs[0])
        weights = model.buffers[graph.tensors[index].buffer].data
        if index in seen or weights is None or not len(weights):  # products of computed tensors
            continue
        seen.add(index)
        _add_layer(storage, model, operator, name, index, source, declared.get(index), sizes)
        warnings += _slow(name, operator, graph.tensors[index], graph)
    layers = list(storage.values())
    other = sum(sizes.values()) - sum(layer.bytes for layer in layers)
    predicted = sum(-(-layer.weights * layer.stored_bits // 8) for layer in layers) + other
    # Names, shapes and options: a few hundred bytes for each tensor and operation, and per channel
    # of quantized constants a float32 scale and an int64 zero point.
    quantized = [t.quantization for t in graph.tensors if t.quantization is not None]
    predicted += sum(12 * len(q.scale) for q in quantized if q.scale is not None)
    predicted += 130 * len(graph.tensors) + 100 * len(graph.operators)
    return Census(
        path=str(path),
        file_bytes=len(data),
        # Level 9 takes minutes for binary weights that are stored as int8.
        deflated_bytes=len(zlib.compress(data, 6, -zlib.MAX_WBITS)),
        predicted_bytes=predicted,
        peak_activation_bytes=_peak_activation_bytes(model) // (batch_size_of(model) or 1),
        operators=dict(Counter(names)),
        constants={_name(graph.tensors[i]) or f"#{i}": size for i, size in sizes.items()},
        inputs=_inputs(graph, record.get("inputs", [])),
        layers=layers,
        warnings=list(dict.fromkeys(warnings)),
        islands=_islands(model, record.get("islands", []), sizes),
        batch_size=batch_size_of(model),
    )


def _islands(model: schema.ModelT, recorded: list[dict], sizes: dict[int, int]) -> list[IslandCost]:
    """Return what the parts cost whose operations a file's record names."""
    graph, found, images = model.subgraphs[0], [], batch_size_of(model) or 1
    every = [macs(model, operator) for operator in graph.operators]
    for island in recorded:
        first, end = island["operators"]
        read = {int(i) for operator in graph.operators[first:end] for i in operator.inputs}
        number = sum(every[first:end])
        found.append(
            IslandCost(
                name=island["name"],
                layers=island["layers"],
                operators=end - first,
                macs=number,
                share=number / max(sum(every), 1),
                values=sum(
                    elements(graph.tensors[int(i)]) // images
                    for operator in graph.operators[first:end]
                    for i in operator.outputs
                ),
                bytes=sum(sizes.get(i, 0) for i in read),
            )
        )
    return found


def macs(model: schema.ModelT, operator: schema.OperatorT) -> int:
    """Return the multiply-accumulates of an operation for one image; 0 where it is no product."""
    return _macs(model, operator) // (batch_size_of(model) or 1)


def _macs(model: schema.ModelT, operator: schema.OperatorT) -> int:
    graph, name = model.subgraphs[0], operator_name(model, operator)
    output = elements(graph.tensors[int(operator.outputs[0])])
    if name == _TRANSPOSED:  # weights and then the input, each value of which they spread
        weights, image = (graph.tensors[int(i)] for i in operator.inputs[1:3])
        return elements(image) * elements(weights) // int(weights.shape[3])
    if name == "BATCH_MATMUL":
        first = graph.tensors[int(operator.inputs[0])]
        return output * int(first.shape[-2 if operator.builtinOptions.adjX else -1])
    if name not in _WEIGHTED:
        return 0
    weights = graph.tensors[int(operator.inputs[1])]
    if name == _BINARY_CONVOLUTION:
        channels = flexbuffers.Loads(bytes(operator.customOptions))["channels_in"]
        return output * int(np.prod(weights.shape[1:3])) * channels
    if name == "DEPTHWISE_CONV_2D":
        return output * int(np.prod(weights.shape[1:3]))
    return output * int(np.prod(weights.shape[1:]))


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Return the name of an operation, a custom one's own."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = number_of(code)
    if number == schema.BuiltinOperator.CUSTOM:
        return code.customCode.decode()
    return OPERATORS[number]


def _inputs(graph, recorded: list[dict]) -> list[FileInput]:
    found = [described(graph.tensors[int(i)]) for i in graph.inputs]
    if len(recorded) != len(found):  # a file of others
        return found
    return [
        replace(each, gain=known.get("gain"), offset=known.get("offset"))
        for each, known in zip(found, recorded, strict=True)
    ]


def described(tensor: schema.TensorT) -> FileInput:
    """Return what an input of a file takes, or what an output gives."""
    quantization = tensor.quantization
    has_scale = quantization is not None and quantization.scale is not None
    return FileInput(
        name=_name(tensor),
        shape=() if tensor.shape is None else tuple(map(int, tensor.shape[1:])),
        type=_TYPES[tensor.type],
        scale=float(quantization.scale[0]) if has_scale else None,
        zero_point=int(quantization.zeroPoint[0]) if has_scale else None,
    )


def _name(tensor: schema.TensorT) -> str:
    return (tensor.name or b"").decode()


def _constant_sizes(model: schema.ModelT) -> dict[int, int]:
    """Return bytes by tensor index of the constants, a shared buffer at its first tensor only."""
    sizes: dict[int, int] = {}
    counted: set[int] = set()
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and tensor.buffer not in counted:
            counted.add(tensor.buffer)
            sizes[index] = len(data)
    return sizes


def _peak_activation_bytes(model: schema.ModelT) -> int:
    graph = model.subgraphs[0]
    # Without inputs that are computed, an operation runs once at load: dequantized weights.
    known = {int(i) for i in graph.inputs}
    steps: list[tuple[list[int], int]] = []
    for operator in graph.operators:
        inputs = [int(i) for i in operator.inputs if int(i) in known]
        for output in map(int, operator.outputs if inputs else ()):
            known.add(output)
            steps.append((inputs, output))
    sizes = {i: -(-elements(graph.tensors[i]) * BITS[graph.tensors[i].type] // 8) for i in known}
    return peak(steps, sizes)


def peak(
    steps: Sequence[tuple[Sequence[Hashable], Hashable]], sizes: Mapping[Hashable, int]
) -> int:
    """Return the largest sum of sizes that any step needs at once.

    Args:
        steps: Tensors read and tensor written, in the order of execution.
        sizes: Size of each tensor.
    """
    last_read = {name: i for i, (inputs, output) in enumerate(steps) for name in (output, *inputs)}
    largest, live = 0, set()
    for i, (inputs, output) in enumerate(steps):
        live |= {*inputs, output}
        largest = max(largest, sum(sizes[name] for name in live))
        live = {name for name in live if last_read[name] > i}
    return largest


def _add_layer(storage, model, operator, name, index, source, record, sizes) -> None:
    """Add one weight tensor (a plane, for binary convolutions) to its layer's entry."""
    tensor = model.subgraphs[0].tensors[index]
    bits = BITS[tensor.type]
    count = elements(tensor)
    computed = "float32" if source is not None or bits == 32 else _TYPES[tensor.type]
    if name == _BINARY_CONVOLUTION:
        channels = flexbuffers.Loads(bytes(operator.customOptions))["channels_in"]
        count = count // int(tensor.shape[-1]) * channels  # packed, 32 to a word
        bits, computed = 1, "binary"
    layer = record["name"] if record else _name(tensor)
    before = storage.get(layer)
    storage[layer] = LayerStorage(
        layer=layer,
        weights=count,
        declared_bits=record["bits"] if record else None,
        stored_bits=bits + (before.stored_bits if before else 0),
        kernel=f"{name} {computed}",
        bytes=sizes.get(index, 0) + (before.bytes if before else 0),
    )


def _slow(name: str, operator, weights: schema.TensorT, graph) -> list[str]:
    """Return why one operation is slower than its width suggests."""
    layer = _name(weights).split("/weights")[0]
    if weights.type == schema.TensorType.INT4:
        return [
            "int4 convolutions are unpacked at run time and run outside XNNPACK: smaller, several "
            "times slower than int8"
        ]
    if name == _BINARY_CONVOLUTION:
        channels_in = flexbuffers.Loads(bytes(operator.customOptions))["channels_in"]
        found = []
        if channels_in % 32:
            found.append(f"{layer}: {channels_in} input channels, not a multiple of 32: bits idle")
        if weights.shape[0] % 8:
            found.append(f"{layer}: {weights.shape[0]} output channels, not a multiple of 8")
        return found
    floats = graph.tensors[int(operator.inputs[0])].type == schema.TensorType.FLOAT32
    if name.endswith("CONV_2D") and floats:
        return [f"{layer}: runs in float32, since its input is not rounded or its weights are not"]
    if name == "CONV_2D" and weights.shape[0] % 8:
        return [f"{layer}: {weights.shape[0]} output channels, not a multiple of 8: lanes idle"]
    return []
