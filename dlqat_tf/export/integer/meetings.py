"""The grids on which concatenations, maxima and minima bring values of several quantizers together.

Quantizers of few bits have a range each, since a shared one would leave the smaller branches next
to no levels, while an int8 grid has room for the levels of all: where every step is a whole
multiple of a common one, bringing a branch to the common grid multiplies its codes by a small
integer, and nothing is rounded again. Trained steps are no such multiples, but near to: of 2 bits a
code may be multiplied by up to 85, so that steps move by less than a percent, which no accuracy
depends on, while sharing a range in training would cost levels. Steps are therefore moved as biases
are, and the snapped model has those of the file. With more bits there is less room: where 8 bits
meet 2, the step of the 8 gets longer, which moves their values by less than one step, where a
shorter one of the 2 would move all of theirs. Where a step would have to move far, it stays, and
the file rounds once more, to the 256 levels of an int8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Concatenate,
    Crop,
    Input,
    Lookup,
    Maximum,
    MaxPool,
    Minimum,
    Node,
    Pad,
    Reshape,
    Transpose,
    Upsample,
)
from dlqat_tf.quantizers import ActivationGrid

MEETINGS = (Concatenate, Maximum, Minimum)
_MOVING = (MaxPool, Reshape, Crop, Upsample, Transpose, Pad)
_EQUAL = 1e-6  # relative difference of steps that are the same but for rounding to float32
_FARTHEST = 0.125  # that values move, relative to the range of their quantizer
_LONGEST = 0.5  # by which a step of many codes grows, relative to itself: half a bit is lost
_BITS = 16  # of a common step, so that float32 holds its products with codes


@dataclass
class _Group:
    """Values that come together, at once or one after the other.

    Attributes:
        grids: Of each quantizer, those that are one Keras layer as one.
        fixed: Those whose steps cannot move.
        meetings: Names of the nodes that bring them together.
    """

    grids: dict[str, ActivationGrid] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    meetings: set[str] = field(default_factory=set)

    def __or__(self, other: _Group) -> _Group:
        both = dict(self.grids)
        for key, grid in other.grids.items():
            known = both.get(key, grid)
            lowest, highest = min(grid.lowest, known.lowest), max(grid.highest, known.highest)
            both[key] = ActivationGrid(lowest, highest, grid.step)
        return _Group(both, self.fixed | other.fixed, self.meetings | other.meetings)


def common_grids(
    network: IntegerNetwork, apart: Iterable[str], move: bool
) -> tuple[IntegerNetwork, dict[str, ActivationGrid]]:
    """Return the network with steps that have a common one, and that grid of each meeting.

    Args:
        network: Before kernels are decided.
        apart: Names of the nodes that compute in float whatever their inputs are.
        move: Whether steps may move; else only those count that are multiples already.

    Returns:
        The network, and by name of a meeting the grid that holds all levels of its inputs; meetings
        without such a grid are left out.
    """
    found: dict[str, ActivationGrid] = {}
    moved: dict[str, np.float32] = {}
    for group in _groups(network, set(apart)):
        common = _common(group, move)
        if common is None:
            continue
        grid, steps = common
        found |= dict.fromkeys(group.meetings, grid)
        moved |= steps

    def at_its_step(node: Node) -> Node:
        key = _key(node)
        if key not in moved:
            return node
        return replace(node, grid=replace(node.grid, step=moved[key]))

    return IntegerNetwork(tuple(map(at_its_step, network))), found


def held_step(step, highest):
    """Return a float32 step as a quantizer computes it, whose variable is its range.

    Args:
        step: In float64; one, or some.
        highest: Code.
    """
    return np.float32(np.float32(step * highest) / np.float64(highest))


def _key(node: Node) -> str:
    """Return what quantizes a node's output: the Keras layer, or the node itself."""
    return getattr(node, "source", "") or node.name


def _groups(network: IntegerNetwork, apart: set[str]) -> list[_Group]:
    groups: list[_Group] = []
    of: dict[str, _Group | None] = {}  # of the nodes so far
    for node in network:
        inputs = [of[name] for name in node.inputs]
        group = None
        if isinstance(node, (Activation, Input)) and node.grid is not None:
            is_fixed = not getattr(node, "source", "") or isinstance(node, Lookup)
            key = _key(node)
            group = _Group({key: node.grid}, {key} if is_fixed else set())
        elif isinstance(node, _MOVING):
            group = None if isinstance(node, Pad) and node.value else inputs[0]
        elif isinstance(node, MEETINGS) and node.name not in apart and all(inputs):
            group = _Group(meetings={node.name})
            for each in inputs:
                group |= each
            for other in [each for each in groups if each.grids.keys() & group.grids.keys()]:
                groups.remove(other)
                group |= other
            groups.append(group)
        of[node.name] = group
    return groups


def _common(group: _Group, move: bool) -> tuple[ActivationGrid, dict[str, np.float32]] | None:
    """Return the grid that holds the levels of all, and the steps that move for it."""
    keys = sorted(group.grids, key=lambda key: key not in group.fixed)  # fixed ones first
    grids = [group.grids[key] for key in keys]
    lowest, highest = np.array([(each.lowest, each.highest) for each in grids]).T
    bottom, top = (-128, 127) if lowest.min() < 0 else (0, 255)
    most = np.minimum(top // np.maximum(highest, 1), bottom // np.minimum(lowest, -1))
    most = np.where(lowest < 0, most, top // np.maximum(highest, 1))
    steps = np.array([each.step for each in grids], np.float64)
    is_fixed = np.array([key in group.fixed for key in keys])
    unit, factors = _multiples(steps, most)
    moves = not len(factors)
    if moves and move:
        largest = np.maximum(highest, -lowest)
        unit, factors = _nearest_multiples(steps, most, is_fixed, largest)
    if not len(factors):
        return None
    grid = ActivationGrid(
        int((factors * lowest).min()), int((factors * highest).max()), np.float32(unit)
    )
    moved = held_step(factors * unit, highest)
    free = moves & ~is_fixed
    return grid, {key: step for key, step, each in zip(keys, moved, free, strict=True) if each}


def _multiples(steps: np.ndarray, most: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the largest unit that steps are whole multiples of, and these.

    Args:
        steps: In units of the values.
        most: The largest multiple of each.

    Returns:
        No multiples where there is no such unit.
    """
    for unit in steps[0] / np.arange(1, most[0] + 1):
        factors, shifts = _fitted(unit, steps, most)
        if np.abs(shifts).max() <= _EQUAL:
            return unit, factors
    return 0.0, np.array([], int)


def _nearest_multiples(
    steps: np.ndarray, most: np.ndarray, is_fixed: np.ndarray, largest: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the unit to whose multiples steps move so that the worst one loses least.

    :func:`_multiples` of these multiples finds the same unit.

    Args:
        steps: Those that cannot move first.
        most: The largest multiple of each.
        is_fixed: Which cannot move.
        largest: The largest code of each.

    Returns:
        No multiples where a step is too far from them.
    """
    if is_fixed[0]:
        units = steps[0] / np.arange(1, most[0] + 1)
    else:
        units = np.concatenate(
            [_shortened(step / np.arange(1, m + 1)) for step, m in zip(steps, most, strict=True)]
        )
    allowed = np.where(is_fixed, _EQUAL, _FARTHEST)
    fitted = []
    for unit in units:
        factors, shifts = _fitted(unit, steps, most)
        lost = np.where(is_fixed, np.abs(shifts), _lost(shifts, largest))
        if np.all(lost <= allowed) and shifts.max() <= _LONGEST:
            fitted.append((unit, factors, lost))
    if not fitted:
        return 0.0, np.array([], int)
    unit, factors, _ = min(fitted, key=lambda each: each[2].max())
    divisor = np.gcd.reduce(factors)
    return unit * divisor, factors // divisor


def _fitted(unit: float, steps: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the multiples of a unit nearest to steps, and how far these move, relatively."""
    factors = np.clip(np.rint(steps / unit), 1, most).astype(int)
    return factors, factors * unit / steps - 1


def _lost(shifts: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return by how much the values of quantizers change at most, relative to their ranges.

    Those of few codes go with their steps. Many codes stay near to what they round, within one of
    the longer steps; where steps get shorter, the largest values are cut off.
    """
    return np.where(shifts > 0, np.minimum(shifts, (1 + shifts) / largest), np.abs(shifts))


def _shortened(values: np.ndarray) -> np.ndarray:
    """Return values rounded to so few bits that float32 holds their products with codes."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS)
