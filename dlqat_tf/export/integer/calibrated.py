"""Ranges that come from images, where training saw no rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Node, ReLU
from dlqat_tf.quantizers import ActivationGrid

# Given a network and names of nodes, the lowest and highest output of each.
Calibrate = Callable[[IntegerNetwork, list[str]], dict[str, tuple[float, float]]]


def rounded_to_ranges(
    network: IntegerNetwork, calibrate: Calibrate | None, floats: bool
) -> IntegerNetwork:
    """Round activations of 32 bits to ranges from images, unless all runs in float.

    Args:
        network: Before its kernels are decided.
        calibrate: As for :func:`dlqat_tf.export.integer.plan.plan`.
        floats: Likewise.

    Raises:
        ExportError: There are such activations, and no images.
    """
    names = [node.name for node in network if isinstance(node, ReLU) and node.unrounded]
    if not names or floats:
        return network
    if calibrate is None:
        raise ExportError(
            f"Activations are not rounded in {', '.join(map(repr, names))}, of 32 bits: pass "
            'calibration images for their int8 ranges, or activations="float32" for float kernels '
            "on weights that are stored as codes."
        )
    ranges = calibrate(network, names)
    nodes = (
        _on_range(node, ranges[node.name][1]) if node.name in names else node for node in network
    )
    return IntegerNetwork(tuple(nodes))


def _on_range(node: ReLU, high: float) -> Activation:
    """Return a ReLU that rounds to 8 bits of a measured range."""
    grid = ActivationGrid(0, 255, np.float32(max(high, 1e-6) / 255))
    return Activation(name=node.name, inputs=node.inputs, grid=grid, bits=8, calibrated=True)


def with_ranges(
    network: IntegerNetwork, missing: list[str], calibrate: Calibrate
) -> IntegerNetwork:
    """Add an 8-bit activation, its range measured on images, after each node in ``missing``."""
    readers = network.consumers()
    # A ReLU that follows is where the range is: its zero is the lowest code.
    at = {
        name: readers[name][0].name
        if len(readers[name]) == 1 and isinstance(readers[name][0], ReLU)
        else name
        for name in missing
    }
    ranges = calibrate(network, list(at.values()))
    nodes: list[Node] = []
    renamed: dict[str, str] = {}
    for node in network:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if node.name not in at.values():
            nodes.append(node)
            continue
        low, high = ranges[node.name]
        if isinstance(node, ReLU):
            nodes.append(_on_range(node, high))
            continue
        step = np.float32(max(high / 127, -low / 128, 1e-8))
        renamed[node.name] = f"{node.name}_calibrated"
        nodes.append(node)
        nodes.append(
            Activation(
                name=renamed[node.name],
                inputs=(node.name,),
                grid=ActivationGrid(-128, 127, step),
                bits=8,
                calibrated=True,
            )
        )
    return IntegerNetwork(tuple(nodes))
