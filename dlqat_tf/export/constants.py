"""The plan that a file was written by, and its constants against those of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files import flatbuffer, lce, tflite
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.grids import grids
from dlqat_tf.export.integer.integers import integers, is_integer, target_of
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Node, Weighted

_TOLERANCE = 1e-5  # of the largest of a constant's floats or scales


def plan_of(
    content, record: dict, network: IntegerNetwork, path
) -> tuple[IntegerNetwork, list[str]]:
    """Return the network as planned for a file, and the file's constants that are not its.

    Biases and steps of a file have either moved or are as trained. Those of a snapped model have
    moved already, so it too is tried as trained. Steps and scales of weights are then those of the
    file: steps move by so little that both plans may have its constants, and a gain that moved is a
    float32 in Keras, whose scale may be the file's but for the last place.

    Args:
        content: The file, parsed.
        record: What export recorded in it.
        network: What :func:`dlqat_tf.export.integer.lower.lower` returns of the model.
        path: Of the file, for errors.

    Raises:
        ExportError: The file has other layers or operations than the model.
    """
    options = dict(
        batch_size=record["batch_size"],
        calibrate=(lambda *_: record["ranges"]) if record["ranges"] else None,
        input_type=types_of(record, network),
    )
    if record["plane_limit"]:
        build = lce.build
        options |= dict(plane_limit=record["plane_limit"], target=record["target"])
    else:
        build, options["weights"] = tflite.build, "int4" if record["int4"] else "int8"
        options["kernels"] = record["kernels"]
        options["activations"] = "float32" if record["floats"] else "int8"
    plans, refusals = [], []
    for clear in (True, False):
        built = build(network, clear=clear, **options)
        try:
            _check_same(record, built.planned, path)
            others = _other_constants(content, built.data, path)
        except ExportError as error:  # steps that moved need other operations than trained ones
            refusals.append(error)
            continue
        plans.append((built.planned, others))
        if not others:
            break
    if not plans:
        raise refusals[0]
    (planned, others), *rest = sorted(plans, key=lambda each: len(each[1]))
    for other, also in rest if others else ():
        planned = _with_biases(content, record, planned, other)
        others = [name for name in others if name in also]
    return _with_scales(content, record, _with_steps(content, planned)), others


def _with_biases(
    content, record: dict, planned: IntegerNetwork, other: IntegerNetwork
) -> IntegerNetwork:
    """Return a planned network with the nodes of another one where a file holds what these say.

    That is their biases and the scales of their weights. Where biases of some layers can move in
    Keras and those of others cannot, as of what resizes images, a snapped model has the former as
    trained and the latter not; and of a layer that has moved already the gain may move again, its
    bias not.
    """
    graph, stored = content.subgraphs[0], {each["name"]: each for each in record["layers"]}
    known, readers = grids(planned), planned.consumers()
    biases = {
        int(each.inputs[1]): graph.tensors[each.inputs[2]]
        for each in graph.operators
        if len(each.inputs) > 2
    }

    def is_held(node: Node) -> bool:
        (weights,) = stored[node.name]["tensors"]
        data = content.buffers[biases[weights].buffer].data if weights in biases else None
        numbers = integers(node, known[node.inputs[0]], target_of(node, readers).grid)
        scale = _scale_of(graph.tensors[weights])
        if data is None or scale.shape != numbers.scale.shape:
            return False
        is_same = np.abs(scale / numbers.scale - 1) <= _TOLERANCE
        return is_same.all() and np.array_equal(data, np.int32(numbers.bias).view(np.uint8))

    return IntegerNetwork(
        tuple(
            other[node.name] if is_integer(node) and not is_held(node) else node for node in planned
        )
    )


def _with_steps(content, planned: IntegerNetwork) -> IntegerNetwork:
    """Return a planned network whose activations have the steps of a file."""
    tensors = {each.name.decode(): each for each in content.subgraphs[0].tensors if each.name}

    def held(node: Node) -> Node:
        if not isinstance(node, Activation) or node.name not in tensors:
            return node
        scale = _scale_of(tensors[node.name])
        if scale.size != 1 or abs(scale[0] / node.grid.step - 1) > _TOLERANCE:
            return node
        return replace(node, grid=replace(node.grid, step=np.float32(scale[0])))

    return IntegerNetwork(tuple(map(held, planned)))


def _with_scales(content, record: dict, planned: IntegerNetwork) -> IntegerNetwork:
    """Return a planned network whose integer kernels have the scales of a file."""
    tensors, known, readers = content.subgraphs[0].tensors, grids(planned), planned.consumers()
    stored = {layer["name"]: layer["tensors"] for layer in record["layers"]}

    def held(node: Node) -> Node:
        if not is_integer(node):
            return node
        (weights,), source = stored[node.name], known[node.inputs[0]]
        numbers = integers(node, source, target_of(node, readers).grid)
        scale = _scale_of(tensors[weights])
        if scale.shape != numbers.scale.shape:  # of another model
            return node
        moved = scale / numbers.scale
        moved = np.where(np.abs(moved - 1) <= _TOLERANCE, moved, 1.0)
        step = np.where(moved == 1, node.step, scale * node.stretch)
        return replace(node, step=step, bias=node.bias * moved)

    return IntegerNetwork(tuple(map(held, planned)))


def _scale_of(tensor) -> np.ndarray:
    """Return the scale of each channel of a tensor, nothing where it has none."""
    scale = getattr(tensor.quantization, "scale", None)
    return np.asarray([] if scale is None else scale, np.float32).astype(np.float64)


def _check_same(record: dict, planned: IntegerNetwork, path) -> None:
    """Raise where the file holds other layers than the model."""
    stored = [layer["name"] for layer in record["layers"]]
    expected = [node.name for node in planned if isinstance(node, Weighted)]
    if sorted(stored) != sorted(expected):
        other = sorted(set(stored) ^ set(expected))
        raise ExportError(
            f"{path} was exported from another model: only one of the two has the layers "
            f"{', '.join(other[:5])}."
        )


def types_of(record: dict, network: IntegerNetwork) -> dict[str, str]:
    """Return the type of each input in a file."""
    pairs = zip(network.inputs, record["inputs"], strict=True)
    return {node.name: each["type"] for node, each in pairs}


def _other_constants(content, data: bytes, path) -> list[str]:
    """Return the tensors of a file whose constant values or scales are not those in ``data``."""
    models = content, flatbuffer.parsed(data, path)
    if flatbuffer.form(models[0]) != flatbuffer.form(models[1]):
        raise ExportError(
            f"{path} was exported from another model, or by another version of this package, or it "
            "is damaged: its operations are not those that the model has now."
        )
    pairs = zip(*(_tensors(each) for each in models), strict=True)
    graph, other = (each.subgraphs[0].tensors for each in models)
    return [
        (graph[i].name or b"").decode() or f"#{i}"
        for i, j in dict.fromkeys(
            pair for first, second in pairs for pair in zip(first, second, strict=True)
        )
        if i >= 0 and not _equal(models[0], graph[i], models[1], other[j])
    ]


def _tensors(content) -> list[list[int]]:
    """Return the tensors of each operation, inputs and outputs."""
    return [[*map(int, (*each.inputs, *each.outputs))] for each in content.subgraphs[0].operators]


def _equal(content, tensor, other_content, other) -> bool:
    """Return whether two tensors hold the same values, floats up to rounding, on the same scale."""
    if tensor.type != other.type:
        return False
    scales = [getattr(each.quantization, "scale", None) for each in (tensor, other)]
    values = [
        each.buffers[which.buffer].data
        for each, which in ((content, tensor), (other_content, other))
    ]
    if tensor.type == schema.TensorType.FLOAT32:
        values = [None if each is None else np.asarray(each).view(np.float32) for each in values]
    return all(_close(*each) for each in (scales, values))


def _close(first, second) -> bool:
    first, second = (np.zeros(0) if each is None else np.asarray(each) for each in (first, second))
    if first.shape != second.shape:
        return False
    bound = _TOLERANCE if first.dtype == np.float32 else 0
    return bool(np.all(np.abs(first - second) <= bound * np.abs(first).max(initial=0)))
