"""What a file stores of a layer: biases, and gains, that are clear of rounding thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dlqat_tf.export.integer.integers import (
    HIGHEST_RATIO,
    integers,
    is_integer,
    largest_bias,
    lead_of,
    units,
    unstretched,
)
from dlqat_tf.export.integer.nodes import Activation, Sign, Weighted
from dlqat_tf.quantizers import ActivationGrid

_ROUNDOFF = 2.0**-24  # largest relative error of one float32 operation
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the wanted distance, down to what float32 biases need
_NEEDED = 0.25  # of the clearance: the largest error that was seen
_TURNS = 3  # of the circle around a bias; moves are shorter than 1.5
_SAME = 1e-6  # of a numerator: fractions of small denominators differ by far more
_PARTS = (1, 2, 4, 8, 16)  # of a step of sums, which a gain may be whole numbers of
_FARTHEST = 0.5  # output steps that a change of the gain may move the end of the grid by


def stored(
    node: Weighted,
    source: ActivationGrid | None,
    target: Activation | Sign,
    *,
    clear: bool = True,
    largest: bool = False,
) -> Weighted:
    r"""Return a node with the bias, and on integer kernels the stretch, that a file stores.

    A channel's output is :math:`u (A + \beta)` with the accumulator :math:`A`, a sum of products of
    integer codes, :math:`u` the product of the two steps, and :math:`\beta` the bias. It lies on a
    threshold :math:`t_k = (k + 1/2) s` of the rounding that follows (0 of a sign) where
    :math:`\beta` equals :math:`t_k / u - A`. Reachable sums are multiples of :math:`g`, the
    greatest common divisor of the channel's weight codes. So on the circle of biases modulo
    :math:`g` the thresholds :math:`t_k / u` are the places that matter: between two neighbours
    among them the bias can move without changing any code of exact arithmetic; across one of them,
    the code of all pixels with one sum changes; and at one of them, the order of Keras's float32
    additions decides.

    Integer kernels hold a bias as :math:`n / m`, where m is the stretch of the codes, which is free
    up to 127 / max |code| (of 1-bit weights any fraction with a denominator of at most 127).
    Of these places each channel takes the one that crosses the fewest thresholds; among those, one
    that is as clear of thresholds as float32 errors ask for (or half, a quarter, an eighth of it);
    among those the nearest. Of equal fractions it takes the largest m, so codes fill more than half
    of their range. Binary kernels hold float biases: those stay where they are clear, and move
    between the two thresholds around them else, to a distance of 9/8 c (so that rounding to float32
    calls for no second move) or to the middle.

    The distance to keep is the error of the float32 computation,

    .. math:: c = 2^{-24} (\sqrt n + 16)
        \bigl(\max_k |t_k / u - \beta| + |\beta| + \max |a| \, \lVert w \rVert_2 \bigr)

    With many output codes and large sums no bias may be clear by even a quarter of that, the
    largest error that was seen (below). There the gain moves too,
    where a batch norm has one for this layer alone: so that an output step is an odd number of
    steps of sums, and every threshold lies halfway between two sums; or where outputs at the end of
    the grid would move by more than half a step, an odd number of halves, up to sixteenths.

    An addition errs by at most :math:`2^{-24}` of its result, and the partial sums of a sum that
    ends at a threshold stay near the way there, :math:`t_k / u - \beta`, give or take a random walk
    of n steps :math:`w \max |a|`. n such errors add up like :math:`\sqrt n` (Higham and Mary, SIAM
    J. Sci. Comput. 41, 2019; the worst case, n, needs errors of one sign). About 16 more are those
    of inputs, weights and products, of the batch norm, of its gain and its shifted beta, and of
    the division by the output step. The largest error of TensorFlow's convolutions of random codes,
    n from 128 to 4608 and 1 to 8 bits, was a seventh to a quarter of c.

    Args:
        node: Convolution or dense layer on integer or binary kernels, or on sums of signs.
        source: Grid of its input, None for signs.
        target: What rounds its output.
        clear: Whether to heed thresholds; else the bias is as trained, on integer kernels the
            nearest that they can hold.
        largest: Whether to keep the largest stretch, as calls that share their codes have to.

    Returns:
        The node with float64 biases (output channels,) that the kernel can hold, and its steps.
    """
    if is_integer(node):
        held, is_clear = _stored_in_integers(node, source, target.grid, clear, largest)
        if clear and node.gain_source and node.kernel == "int8" and not is_clear.all():
            whole = _with_whole_steps(node, source, target.grid, ~is_clear)
            held, _ = _stored_in_integers(whole, source, target.grid, clear, largest)
        return held
    if not clear or node.free is not None:  # sums on a free basis are hardly ever at a threshold
        return node
    unit = node.step.astype(np.float64) * (float(source.step) if source else 1.0)
    bias, moved = node.bias / unit, node.bias.copy()
    codes = node.weights.astype(np.int64).reshape(-1, len(bias))
    for i, places in enumerate(_channels(codes, source, target, unit, bias)):
        if places is not None and (move := places.move_between()):
            moved[i] = (bias[i] + move) * unit[i]
    return replace(node, bias=moved)


def _stored_in_integers(
    node: Weighted, source: ActivationGrid, grid: ActivationGrid, clear: bool, only_largest: bool
) -> tuple[Weighted, np.ndarray]:
    """Return the node with what a file stores, and which channels are clear of thresholds."""
    numbers = integers(node, source, grid)
    codes, step, largest = unstretched(node, source, grid)
    exact, stretch, moved = node.bias / step, largest.copy(), node.bias.copy()
    limit = largest_bias(node, numbers.scale * np.float64(source.step) / float(grid.step))
    # Few fit an int4, and fractions with leads are too near to each other to be told apart.
    only_largest |= node.kernel == "int4" or bool(np.any(numbers.lead))
    target = Activation(name=node.name, grid=grid, bits=node.bits)
    channels = _channels(codes, source, target, step, exact) if clear else [None] * len(exact)
    is_clear = np.ones(len(exact), bool)
    for i, places in enumerate(channels):
        if abs(numbers.bias[i]) >= np.floor(limit[i]):  # saturates its channel whatever comes in
            continue
        # The snapped model's float32 bias, beside sums of this size, has to tell fractions apart.
        walk = max(source.highest, -source.lowest) * np.linalg.norm(codes[:, i])
        finest = min(int(largest[i]), math.isqrt(int(2.0**21 / max(walk, 1.0))))
        m = np.arange(finest, 0, -1)
        if only_largest or finest**2 < 4 * largest[i]:  # about as few fractions as n / largest
            m = largest[i : i + 1]
        _, unit = units(step[i], source, m)
        m, unit = (each[unit < HIGHEST_RATIO * float(grid.step)] for each in (m, unit))
        lead = lead_of(node, unit / float(grid.step))
        nearest = np.rint(exact[i] * m - lead)
        numerators = (nearest + lead)[:, None] + np.array([-1, 0, 1])
        best = _best((numerators / m[:, None] - exact[i]).ravel(), places)
        which, held = best // 3, numerators.flat[best]
        if not lead[which]:  # the largest stretch that holds the same, which a bias is known by
            fraction = held / m[which]
            which = int(np.argmax(np.abs(fraction * m - np.rint(fraction * m)) < _SAME))
            held = np.rint(fraction * m[which])
        stretch[i], moved[i] = m[which], held * unit[which]
        if places is not None:
            _, distance = places.after(held / m[which] - exact[i])
            is_clear[i] = distance >= _NEEDED * places.clearance
    return replace(node, bias=moved, stretch=stretch), is_clear


def _with_whole_steps(
    node: Weighted, source: ActivationGrid, grid: ActivationGrid, channels: np.ndarray
) -> Weighted:
    """Return a node of whose sums' steps an odd number makes an output step, in some channels.

    Or an odd number of halves, quarters and so on, the fewest parts that do not move outputs too
    far: of q parts, thresholds lie at least 1 / 2q away from sums.

    Args:
        node: On an int8 kernel.
        source: Grid of its input.
        grid: Of the activation that rounds it.
        channels: bool (output channels,), where to change the step.
    """
    _, unit, _ = unstretched(node, source, grid)
    ratio = float(grid.step) / unit
    factor, rest = np.ones_like(ratio), channels
    for parts in _PARTS:
        odd = ratio * parts / (2 * np.floor(ratio * parts / 2) + 1)
        moved = np.abs(odd - 1) * max(grid.highest, -grid.lowest)
        is_near = rest & (moved <= _FARTHEST)
        factor, rest = np.where(is_near, odd, factor), rest & ~is_near
    return replace(node, step=(node.step * factor).astype(np.float32))


def _best(moves: np.ndarray, places: _Places | None) -> int:
    """Return which move to make; of equal ones the first."""
    if places is None:
        return int(np.argmin(np.abs(moves)))
    crossed, distances = places.after(moves)
    unclear = sum(distances < share * places.wanted for share in _SHARES)
    return int(np.lexsort((np.abs(moves), unclear, crossed))[0])


@dataclass(frozen=True)
class _Places:
    """Thresholds on a circle of biases, as seen from the bias of a channel.

    Attributes:
        around: Sorted, repeated so that every place of interest has one on each side.
        clearance: Distance to keep.
    """

    around: np.ndarray
    clearance: float

    @property
    def wanted(self) -> float:
        """Distance to move to, so that what is rounded afterwards is still clear."""
        return self.clearance * 9 / 8

    def after(self, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many thresholds each move crosses, and how far the next one is then."""
        here, there = (np.searchsorted(self.around, each) for each in (0.0, moves))
        distances = np.minimum(moves - self.around[there - 1], self.around[there] - moves)
        return np.abs(there - here), distances

    def move_between(self) -> float:
        """Return the shortest move that crosses none and is clear, or the one to the middle."""
        here = np.searchsorted(self.around, 0.0)
        low, high = self.around[here - 1], self.around[here]
        if min(-low, high) >= self.clearance:
            return 0.0
        margin = min(self.wanted, (high - low) / 2)
        return float(np.clip(0.0, low + margin, high - margin))


def _channels(
    codes: np.ndarray,
    source: ActivationGrid | None,
    target: Activation | Sign,
    unit: np.ndarray,
    bias: np.ndarray,
) -> Iterator[_Places | None]:
    """Yield the places of each channel; None where its sums reach no threshold."""
    lowest, highest = (source.lowest, source.highest) if source else (-1, 1)
    least = np.minimum(codes * lowest, codes * highest).sum(axis=0)
    most = np.maximum(codes * lowest, codes * highest).sum(axis=0)
    spacing = np.maximum(np.gcd.reduce(codes, axis=0), 1)
    walk = np.abs(bias) + max(highest, -lowest) * np.sqrt(np.square(codes).sum(axis=0))
    thresholds = np.zeros(1)
    if isinstance(target, Activation):
        grid = target.grid
        thresholds = (np.arange(grid.lowest, grid.highest) + 0.5) * float(grid.step)
    for i in range(len(bias)):
        points = thresholds / unit[i] - bias[i]
        points = points[(points > least[i] - spacing[i]) & (points < most[i] + spacing[i])]
        if not len(points):
            yield None
            continue
        sums = np.abs(points).max() + walk[i]
        clearance = _ROUNDOFF * (math.sqrt(len(codes)) + 16) * sums
        turns = np.arange(-_TURNS, _TURNS) * spacing[i]
        around = np.add.outer(turns, np.sort(points % spacing[i])).ravel()
        yield _Places(around, clearance)
