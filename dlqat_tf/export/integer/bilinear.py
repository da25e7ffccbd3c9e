"""Bilinear upsampling by whole numbers, on integer kernels.

RESIZE_BILINEAR rounds halves up in XNNPACK and away from zero elsewhere, where Keras's quantizers
round them to even; of twice as many rows and columns one value in sixteen is a half. So it is taken
apart: each row and column as many times as it is asked for, and the mean of windows of them, which
a depthwise convolution rounds once, to whatever grid follows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Convolution,
    Island,
    Lookup,
    Node,
    Pad,
    Upsample,
)


def with_bilinear(network: IntegerNetwork, grids: Callable) -> IntegerNetwork:
    """Return the network with bilinear upsampling between two grids as moves and a convolution.

    Args:
        network: Whose codes lie on the grids of its file.
        grids: Returns the grid of every node's output.
    """
    known, readers = grids(network), network.consumers()
    found: dict[str, list[Node]] = {}  # by the name of the upsampling's output
    gone = set()
    for node in network:
        if not isinstance(node, Island) or node.factors is None or len(readers[node.name]) != 1:
            continue
        (output,) = readers[node.name]
        after = readers[output.name]
        rounded = len(after) == 1 and isinstance(after[0], Activation)
        if known[node.inputs[0]] and rounded and not isinstance(after[0], Lookup):
            channels = network.shapes[output.name][-1]
            gone.add(node.name)
            found[output.name] = _parts(output.name, *node.inputs, node.factors, channels)
    nodes = (
        each for node in network if node.name not in gone for each in found.get(node.name, [node])
    )
    return IntegerNetwork(tuple(nodes))


def _parts(name: str, source: str, factors: tuple[int, int], channels: int) -> list[Node]:
    repeated, padded = f"{name}_repeated", f"{name}_padded"
    rows, columns = map(_window, factors)
    amounts = tuple((factor // 2, factor // 2) for factor in factors)
    window = np.outer(rows, columns)
    return [
        Upsample(name=repeated, inputs=(source,), size=factors),
        Pad(name=padded, inputs=(repeated,), amounts=amounts, mirrored=True),
        Convolution(
            name=name,
            inputs=(padded,),
            weights=np.repeat(window[..., None, None], channels, 2).astype(np.int16),
            step=np.full(channels, 1 / window.sum(), np.float32),
            bias=np.zeros(channels),
            bits=8,
            is_depthwise=True,
        ),
    ]


def _window(factor: int) -> np.ndarray:
    """Return the weights around a repeated value, as many as ``factor``.

    Of an even number half of each end is in it.
    """
    if factor % 2:
        return np.ones(factor, np.int64)
    return np.array([1, *[2] * (factor - 1), 1])
