"""Brings coded values to another grid, by integer kernels of weights that are ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlqat_tf.export.integer.grids import grid_of, grids, single_activation, tail_of
from dlqat_tf.export.integer.meetings import MEETINGS, common_grids
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    AveragePool,
    Convolution,
    GlobalAveragePool,
    Lookup,
    Node,
    Reshape,
)
from dlqat_tf.quantizers import ActivationGrid


def with_common_grids(network: IntegerNetwork, move: bool) -> IntegerNetwork:
    """Bring inputs that have to lie on one grid there; round coded values by integer kernels."""
    known: dict[str, ActivationGrid | None] = {}  # of the nodes so far, on their new grids
    tail = tail_of(network)
    network, common_of = common_grids(network, tail, move)
    nodes: list[Node] = []
    for node in network:
        inputs = list(node.inputs)
        each = [known[name] for name in inputs]
        known[node.name] = grid_of(node, each)
        is_apart = isinstance(node, MEETINGS) and node.name not in tail
        if is_apart and all(each) and not known[node.name]:
            common = common_of.get(node.name) or _common_grid(each)
            known[node.name] = common
            for i, (name, grid) in enumerate(zip(inputs, each, strict=True)):
                if grid != common:
                    inputs[i] = f"{node.name}_input{i + 1}"
                    again = Activation(name=inputs[i], inputs=(name,), grid=common, bits=8)
                    nodes += _rescaled(again, network.shapes[name])
        if isinstance(node, Activation) and known[inputs[0]] and not isinstance(node, Lookup):
            nodes += _rescaled(node, network.shapes[inputs[0]])
        else:
            nodes.append(replace(node, inputs=tuple(inputs)))
    return IntegerNetwork(tuple(nodes))


def _rescaled(node: Activation, shape: tuple[int, ...]) -> list[Node]:
    """Return nodes that round coded values of a shape to the grid of an activation."""
    source, around, channels = node.inputs[0], f"{node.name}_rescale", shape[-1]
    if len(shape) == 3:
        return [_identity(around, source, channels), replace(node, inputs=(around,))]
    image, rounded = f"{node.name}_image", f"{node.name}_rounded"  # convolutions take images
    places = int(np.prod(shape[:-1]))
    return [
        Reshape(name=image, inputs=(source,), shape=(places, 1, channels)),
        _identity(around, image, channels),
        replace(node, name=rounded, inputs=(around,)),
        Reshape(name=node.name, inputs=(rounded,), shape=shape),
    ]


def _common_grid(each: list[ActivationGrid]) -> ActivationGrid:
    """Return a grid of all 256 codes over the ranges of several."""
    highest = max(float(grid.step) * grid.highest for grid in each)
    lowest = min(float(grid.step) * grid.lowest for grid in each)
    top, bottom = (127, -128) if lowest < 0 else (255, 0)
    step = max(highest / top, lowest / bottom if bottom else 0.0)
    return ActivationGrid(bottom, top, np.float32(step))


def with_integer_pools(network: IntegerNetwork) -> IntegerNetwork:
    """Turn average pools between coded values into depthwise convolutions by 1 / window."""
    known, readers = grids(network), network.consumers()
    nodes: list[Node] = []
    flat: dict[str, str] = {}  # names of what rounds vectors, which are images now
    for node in network:
        target = single_activation(node, readers)
        if (
            isinstance(node, (AveragePool, GlobalAveragePool))
            and known[node.inputs[0]]
            and target
            and getattr(node, "padding", "valid") == "valid"
        ):
            shape = network.shapes[node.inputs[0]]
            size = node.size if isinstance(node, AveragePool) else shape[:2]
            if len(network.shapes[node.name]) == 1:
                flat[target.name] = f"{target.name}_image"
            one = _identity(node.name, node.inputs[0], shape[2])
            node = replace(
                one,
                weights=np.ones((*size, shape[2], 1), np.int16),
                step=one.step / np.float32(np.prod(size)),
                strides=node.strides if isinstance(node, AveragePool) else (1, 1),
            )
        if node.name in flat:
            image = replace(node, name=flat[node.name])
            shape = network.shapes[node.name]
            nodes += [image, Reshape(name=node.name, inputs=(image.name,), shape=shape)]
        else:
            nodes.append(node)
    return IntegerNetwork(tuple(nodes))


def _identity(name: str, source: str, channels: int) -> Convolution:
    """Return a depthwise 1x1 convolution by one, the integer kernel that changes a grid."""
    return Convolution(
        name=name,
        inputs=(source,),
        weights=np.ones((1, 1, channels, 1), np.int16),
        step=np.ones(channels, np.float32),
        bias=np.zeros(channels),
        bits=8,
        is_depthwise=True,
    )
