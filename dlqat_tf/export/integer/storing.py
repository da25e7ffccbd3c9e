"""What a file stores of a layer: biases, and gains, that are clear of rounding thresholds."""

from __future__ import annotations

import math
from dataclasses import replace

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
from dlqat_tf.export.integer.thresholds import thresholds_of
from dlqat_tf.quantizers import ActivationGrid

_TRIED = 256  # gains, up to twice the least that saturates
_SAME = 1e-6  # of a numerator: fractions of small denominators differ by far more


def stored(
    node: Weighted,
    source: ActivationGrid | None,
    target: Activation | Sign,
    *,
    clear: bool = True,
    largest: bool = False,
    trained: tuple[float, float] = (1.0, 1.0),
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
    Of these places each channel takes one that costs the fewest codes: one for each sum that a
    threshold passes, and some for each threshold that is so near to a sum that float32 errors
    decide; among those, one that is as clear of thresholds as these ask for (or half, a quarter, an
    eighth of it); among those the nearest. Where a batch norm knows how a channel's outputs lie, a
    code costs as much as outputs are likely to be near its threshold
    (:class:`~dlqat_tf.export.integer.moments.Moments`). Of equal fractions it takes the largest m,
    so codes fill more than half of their range. Binary kernels hold float biases: those stay where
    they are clear, and move between the two thresholds around them else, to a distance of 9/8 c (so
    that rounding to float32 calls for no second move) or to the middle.

    Where no bias costs nothing, the gain may move too, where a batch norm has one for this layer
    alone: each threshold stays between its two sums for an interval of gains, and many intervals
    have one gain in common. So 8-bit weights, whose biases are whole numbers of sums, keep all
    codes of a few thresholds. A gain that takes every input but zero beyond the grid, as that of a
    batch norm on a channel which hardly ever fires, shrinks to one that just does, where the bias
    has a place: a 127th of the trained one may be several output steps.

    The distance to keep is the error of the float32 computation,

    .. math:: c = 2^{-24} (\sqrt n + 16)
        \bigl(\max_k |t_k / u - \beta| + |\beta| + \max |a| \, \lVert w \rVert_2 \bigr)

    A tie is a threshold that is nearer to a sum than a quarter of that, the largest error that was
    seen (below). With many output codes and large sums every bias has many. There a gain may make
    an output step an odd number of steps of sums, so that every threshold lies halfway between two;
    or, where outputs at the end of the grid would move by more than half a step, an odd number of
    halves, up to sixteenths.

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
        trained: The steps of input and output as trained, in parts of what they are now. Biases and
            gains make up for moves of them, which change codes too.

    Returns:
        The node with float64 biases (output channels,) that the kernel can hold, and its steps.
    """
    if is_integer(node):
        if clear:
            node = _with_least_gains(node, source, target.grid)
        return _stored_in_integers(node, source, target.grid, clear, largest, trained)
    if not clear or node.free is not None:  # sums on a free basis are hardly ever at a threshold
        return node
    unit = node.step.astype(np.float64) * (float(source.step) if source else 1.0)
    bias, moved = node.bias / unit, node.bias.copy()
    codes = node.weights.astype(np.int64).reshape(-1, len(bias))
    channels = thresholds_of(codes, source, target, unit, bias, trained=trained)
    for i, thresholds in enumerate(channels):
        if thresholds is not None and (move := thresholds.move_between()):
            moved[i] = (bias[i] + move) * unit[i]
    return replace(node, bias=moved)


def _with_least_gains(node: Weighted, source: ActivationGrid, grid: ActivationGrid) -> Weighted:
    """Return a node of single weights with no more gain than saturates what saturates."""
    codes, step, largest = unstretched(node, source, grid)
    if len(codes) > 1 or not node.gain_source or node.kernel == "int4":
        return node
    gains, biases = codes[0] * step / float(grid.step), node.bias / float(grid.step)
    sides = [side for side in (1, -1) if side in range(source.lowest, source.highest + 1)]
    places = np.abs(codes[0]) * largest  # of the bias, between two codes of the input
    steps = node.step.copy()
    is_inside = (biases > grid.lowest) & (biases < grid.highest)  # what zero becomes
    for i in np.flatnonzero(is_inside & (np.abs(gains) > places)):
        ends = [grid.highest if side * gains[i] > 0 else grid.lowest for side in sides]
        least = max(abs(end - biases[i]) for end in ends)
        least = max(least, places[i] / 4)  # a quarter of a code suffices
        if least < abs(gains[i]):
            tried = np.linspace(least, min(2 * least, abs(gains[i])), _TRIED)
            nearest = biases[i] * places[i] / tried
            best = np.argmin(np.abs(nearest - np.rint(nearest)) * tried)
            steps[i] *= tried[best] / abs(gains[i])
    return replace(node, step=steps)


def _stored_in_integers(
    node: Weighted,
    source: ActivationGrid,
    grid: ActivationGrid,
    clear: bool,
    only_largest: bool,
    trained: tuple[float, float],
) -> Weighted:
    numbers = integers(node, source, grid)
    codes, step, largest = unstretched(node, source, grid)
    exact, stretch, moved = node.bias / step, largest.copy(), node.bias.copy()
    limit = largest_bias(node, numbers.scale * np.float64(source.step) / float(grid.step))
    with_gain = bool(node.gain_source) and not only_largest
    # Few fit an int4, and fractions with leads are too near to each other to be told apart.
    only_largest |= node.kernel == "int4" or bool(np.any(numbers.lead))
    target = Activation(name=node.name, grid=grid, bits=node.bits)
    channels = (
        thresholds_of(codes, source, target, step, exact, node.moments, trained)
        if clear
        else [None] * len(exact)
    )
    steps = node.step.copy()
    for i, thresholds in enumerate(channels):
        if abs(numbers.bias[i]) >= np.floor(limit[i]):  # saturates its channel whatever comes in
            continue
        m = largest[i : i + 1] if only_largest else _stretches(largest[i], codes[:, i], source)
        _, unit = units(step[i], source, m)
        m, unit = (each[unit < HIGHEST_RATIO * float(grid.step)] for each in (m, unit))
        lead = lead_of(node, unit / float(grid.step))
        nearest = np.rint(exact[i] * m - lead)
        numerators = (nearest + lead)[:, None] + np.array([-1, 0, 1])
        moves = (numerators / m[:, None] - exact[i]).ravel()
        best = int(np.argmin(np.abs(moves)))
        if thresholds is not None:
            leads = np.repeat(lead / m, 3)
            best, change = thresholds.choice(moves, with_gain, leads)
            steps[i] /= 1 + change
            _, unit = units(step[i] * (steps[i] / np.float64(node.step[i])), source, m)
            numerators += (lead_of(node, unit / float(grid.step)) - lead)[:, None]
        which, held = best // 3, numerators.flat[best]
        if not lead[which]:  # the largest stretch that holds the same, which a bias is known by
            fraction = held / m[which]
            which = int(np.argmax(np.abs(fraction * m - np.rint(fraction * m)) < _SAME))
            held = np.rint(fraction * m[which])
        stretch[i], moved[i] = m[which], held * unit[which]
    return replace(node, step=steps, bias=moved, stretch=stretch)


def _stretches(largest: int, codes: np.ndarray, source: ActivationGrid) -> np.ndarray:
    """Return the stretches of a channel's codes that its bias may choose from, the largest first.

    So many that the snapped model's float32 bias tells fractions apart beside sums of this size,
    and only the largest one where that is about as many as it has places.
    """
    walk = max(source.highest, -source.lowest) * np.linalg.norm(codes)
    finest = min(int(largest), math.isqrt(int(2.0**21 / max(walk, 1.0))))
    return np.arange(finest, 0, -1) if finest**2 >= 4 * largest else np.array([largest])
