"""Steps that the multipliers of integer adds hold exactly.

An integer add multiplies the codes of its inputs by ratios of steps, as whole numbers of 2^-shift
of which the larger has 21 bits. Of 8-bit codes that moves a sum by up to a few ten-thousandths of
an output step, across a rounding threshold for as many outputs. Steps that move to such ratios, by
about a millionth, leave Keras and the file with one sum.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlqat_tf.export.integer.grids import grids, integer_merge
from dlqat_tf.export.integer.integers import add_multipliers
from dlqat_tf.export.integer.meetings import held_step
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Add, Lookup, Merge, Node, Subtract, Weighted


def with_exact_adds(network: IntegerNetwork) -> IntegerNetwork:
    """Return the network with the steps of what adds read moved to ratios that their kernels hold.

    Of quantizers whose steps may move, and which only layers with weights and merges read. The last
    add comes first: what rounds an add may be what another one reads. A quantizer of several adds
    moves for the last of them.

    Args:
        network: With kernels, whose adds these hold.
    """
    known, readers = grids(network), network.consumers()
    calls: dict[str, list[Node]] = {}
    for node in network:
        if isinstance(node, Activation) and node.source:
            calls.setdefault(node.source, []).append(node)
    steps: dict[str, np.float32] = {}

    def grid_of(node: Node):
        return replace(known[node.name], step=steps.get(node.source, known[node.name].step))

    for node in reversed(tuple(network)):
        if not isinstance(node, (Add, Subtract)) or not integer_merge(node, known, readers):
            continue
        sources = [network[name] for name in node.inputs]
        if not all(isinstance(source, Activation) for source in sources):
            continue
        target = grid_of(readers[node.name][0])
        *multipliers, shift = add_multipliers(node.name, [grid_of(s) for s in sources], target)
        for source, multiplier in zip(sources, multipliers, strict=True):
            among = calls.get(source.source, [])
            free = among and all(_may_move(each, readers) for each in among)
            if free and source.source not in steps:
                step = multiplier * 2.0**-shift * float(target.step)
                steps[source.source] = held_step(step, source.grid.highest)
    return IntegerNetwork(
        tuple(
            replace(node, grid=grid_of(node)) if getattr(node, "source", "") in steps else node
            for node in network
        )
    )


def _may_move(node: Activation, readers: dict[str, list[Node]]) -> bool:
    return not isinstance(node, Lookup) and all(
        isinstance(reader, (Weighted, Merge)) for reader in readers[node.name]
    )
