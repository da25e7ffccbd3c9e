"""The integers that kernels compute with: stretched codes, scales, and biases clear of ties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlqat_tf.export.integer.network import (
    Activation,
    Convolution,
    Dense,
    ExportError,
    Node,
    Sign,
    Weighted,
)
from dlqat_tf.quantizers import ActivationGrid

_INT8, _INT4 = 127, 7  # the highest codes of weights, whose grids are symmetric
_LARGEST = 2**30  # magnitude of sums and of biases, a bit below what an int32 holds
_HIGHEST_RATIO = 256  # of the unit of sums to the output step, which XNNPACK's kernels hold
_NEGLIGIBLE = 2.0**-10  # of an output step
_ROUNDOFF = 2.0**-24  # largest relative error of one float32 operation
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the wanted distance, down to what float32 biases need
_TURNS = 3  # of the circle around a bias; moves are shorter than 1.5


@dataclass(frozen=True)
class Integers:
    """What an integer kernel computes with.

    Attributes:
        codes: int8, of the node's weights' shape, stretched to fill the width.
        scale: float32 (output channels,), the step of these codes as the file stores it.
        bias: int64 (output channels,), in units of input step * scale; fits an int32.
        lead: float64 (output channels,), how far the kernel's rounding runs ahead, in the same
            units: outputs round as if the bias were ``bias + lead``.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    lead: np.ndarray


def integers(node: Weighted, source: ActivationGrid, target: ActivationGrid) -> Integers:
    """Return the integers of a node between two grids.

    The codes are multiplied by the node's stretch m, by default the largest that fits, and the step
    divided by it: biases are integers in units of input step times weight step, and unstretched
    that unit is so coarse that it moves outputs across rounding borders.

    Args:
        node: Convolution or dense layer with codes.
        source: Grid of its input.
        target: Grid of the activation that rounds its output.

    Raises:
        ExportError: The bias or the scale is outside what the kernels hold.
    """
    codes, step, largest = _unstretched(node, source, target)
    stretch = largest if node.stretch is None else node.stretch
    reach = np.abs(codes).sum(axis=0) * max(source.highest, -source.lowest)
    scale, unit = _units(step, source, stretch)
    ratio = unit / float(target.step)
    lead = _lead(node, ratio)
    bias = np.rint(node.bias / unit - lead)
    limit = _largest_bias(node, ratio)
    # Beyond this distance from the grid every output saturates, whatever the input is.
    saturated = np.abs(node.bias) - reach * step > 512 * float(target.step)
    bias = np.where(saturated, np.clip(bias, -np.floor(limit), np.floor(limit)), bias)
    bad = (np.abs(bias) > limit) | (ratio >= _HIGHEST_RATIO) | (ratio < 2.0**-32)
    bad |= reach * stretch > limit
    if np.any(bad):
        channel = int(np.argmax(bad))
        raise ExportError(
            f"Layer {node.name!r}, channel {channel}: bias {node.bias[channel]:g} at a weight step "
            f"of {node.step[channel]:g} and an output step of {float(target.step):g} is outside "
            "what int8 kernels hold. Its range (alpha) or batch-norm gain has collapsed or "
            "exploded: retrain the layer or initialise its range larger."
        )
    stretched = (codes * stretch).reshape(node.weights.shape).astype(np.int8)
    return Integers(stretched, scale, bias.astype(np.int64), lead)


def _unstretched(node: Weighted, source: ActivationGrid, target: ActivationGrid):
    """Return codes (weights, channels), the step of their sums, and the largest stretches."""
    codes = node.weights.reshape(-1, len(node.bias)).astype(np.int64)
    step = node.step.astype(np.float64) * float(source.step)
    reach = np.abs(codes).sum(axis=0) * max(source.highest, -source.lowest)
    # A batch-norm gain that decayed to nothing leaves a constant, and steps too small for biases.
    constant = reach * step < _NEGLIGIBLE * float(target.step)
    codes = np.where(constant, 0, codes)
    step = np.where(constant, _NEGLIGIBLE * float(target.step), step)
    stretch = _width(node) // np.maximum(np.abs(codes).max(axis=0), 1)
    with np.errstate(divide="ignore"):
        stretch = np.minimum(stretch, _LARGEST // np.maximum(np.where(constant, 1, reach), 1))
        stretch = np.minimum(stretch, np.floor(_LARGEST * step / np.abs(node.bias)))
    return codes, step, np.maximum(np.where(constant, 1, stretch), 1).astype(np.int64)


def _units(step, source: ActivationGrid, stretch) -> tuple[np.ndarray, np.ndarray]:
    """Return the float32 scale that a file stores, and the float64 unit of sums and biases."""
    scale = (step / float(source.step) / stretch).astype(np.float32)
    return scale, scale.astype(np.float64) * float(source.step)


def _width(node: Weighted) -> int:
    return _INT4 if node.kernel == "int4" else _INT8


def fixed_point(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a ratio of steps as TFLite's built-in kernels hold it: multiplier * 2^(exponent - 31).

    Args:
        ratio: float64, above zero.

    Returns:
        int64 multipliers from 2^30 to 2^31 - 1, and exponents.
    """
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    exponent = np.where(multiplier == 2**31, exponent + 1, exponent)
    return np.where(multiplier == 2**31, 2**30, multiplier), exponent


def add_multipliers(
    name: str, sources: Sequence[ActivationGrid], target: ActivationGrid
) -> tuple[int, int, int]:
    """Return the multipliers of an integer add's two inputs and their common shift.

    The sum is ``(a * first + b * second) / 2^shift``; the larger multiplier has 21 bits.

    Args:
        name: Name of the add.
        sources: Grids of its inputs.
        target: Grid of the activation that rounds it.

    Raises:
        ExportError: A ratio of the steps is outside what the kernels hold.
    """
    ratios = [source.step / target.step for source in sources]
    if not all(2.0**-10 <= ratio < 2.0**8 for ratio in ratios):
        raise ExportError(
            f"Layer {name!r} adds inputs of steps {sources[0].step:g} and {sources[1].step:g} for "
            f"an output step of {target.step:g}: int8 adds hold ratios from 1/1024 to 256. A range "
            "(alpha) has collapsed or exploded: retrain the layer or initialise its range larger."
        )
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    first, second = (int(np.rint(ratio * np.float32(2.0**shift))) for ratio in ratios)
    return first, second, shift


def _rounds_twice(node: Weighted) -> bool:
    return node.library == "builtin" or node.kernel == "int4"  # for which XNNPACK has no kernels


def _lead(node: Weighted, ratio: np.ndarray) -> np.ndarray:
    """Return :attr:`Integers.lead`, which is 0 but on TFLite's built-in kernels.

    They round twice, half up: first to 2^-r of an output step, where r is the right shift, then to
    whole ones. So every threshold lies half of that first grain lower, where r is above 0. TFLite
    Micro's take halves away from zero the second time, so that thresholds below zero lie half a
    grain higher there: no bias suits those too.
    """
    if not _rounds_twice(node):
        return np.zeros_like(ratio)
    shift = np.maximum(-fixed_point(ratio)[1], 0)
    return np.where(shift > 0, 0.5 * 2.0**-shift / ratio, 0.0)


def _largest_bias(node: Weighted, ratio: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of sums and biases, which some kernels shift to the left."""
    left = np.maximum(fixed_point(ratio)[1], 0) if _rounds_twice(node) else np.zeros_like(ratio)
    return _LARGEST / 2.0**left


def rounding_of(node: Node, readers: dict[str, list[Node]]) -> Activation | Sign | None:
    """Return what alone reads and rounds the integer sums of a node, None where nothing does."""
    reading = readers[node.name]
    sums = is_integer(node) or (isinstance(node, Convolution) and node.kernel == "planes")
    rounded = len(reading) == 1 and isinstance(reading[0], (Activation, Sign))
    return reading[0] if sums and rounded else None


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

    An addition errs by at most :math:`2^{-24}` of its result, and the partial sums of a sum that
    ends at a threshold stay near the way there, :math:`t_k / u - \beta`, give or take a random walk
    of n steps :math:`w \max |a|`. n such errors add up like :math:`\sqrt n` (Higham and Mary, SIAM
    J. Sci. Comput. 41, 2019; the worst case, n, needs errors of one sign). About 16 more are those
    of inputs, weights and products, of the batch norm, of its gain and its shifted beta, and of
    the division by the output step. The largest error of TensorFlow's convolutions of random codes,
    n from 128 to 4608 and 1 to 8 bits, was a seventh to a quarter of c.

    Args:
        node: Convolution or dense layer on an integer or on binary kernels.
        source: Grid of its input, None for signs.
        target: What rounds its output.
        clear: Whether to heed thresholds; else the bias is as trained, on integer kernels the
            nearest that they can hold.
        largest: Whether to keep the largest stretch, as calls that share their codes have to.

    Returns:
        The node with float64 biases (output channels,) that the kernel can hold.
    """
    if is_integer(node):
        return _stored_in_integers(node, source, target.grid, clear, largest)
    if not clear:
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
) -> Weighted:
    numbers = integers(node, source, grid)
    codes, step, largest = _unstretched(node, source, grid)
    exact, stretch, moved = node.bias / step, largest.copy(), node.bias.copy()
    limit = _largest_bias(node, numbers.scale * np.float64(source.step) / float(grid.step))
    # Few fit an int4, and fractions with leads are too near to each other to be told apart.
    only_largest |= node.kernel == "int4" or bool(np.any(numbers.lead))
    target = Activation(name=node.name, grid=grid, bits=node.bits)
    channels = _channels(codes, source, target, step, exact) if clear else [None] * len(exact)
    for i, places in enumerate(channels):
        if abs(numbers.bias[i]) >= np.floor(limit[i]):  # saturates its channel whatever comes in
            continue
        # The snapped model's float32 bias, beside sums of this size, has to tell fractions apart.
        walk = max(source.highest, -source.lowest) * np.linalg.norm(codes[:, i])
        finest = min(int(largest[i]), math.isqrt(int(2.0**21 / max(walk, 1.0))))
        m = np.arange(finest, 0, -1)
        if only_largest or finest**2 < 4 * largest[i]:  # about as few fractions as n / largest
            m = largest[i : i + 1]
        _, unit = _units(step[i], source, m)
        m, unit = (each[unit < _HIGHEST_RATIO * float(grid.step)] for each in (m, unit))
        lead = _lead(node, unit / float(grid.step))
        nearest = np.rint(exact[i] * m - lead)
        m, unit, held = (np.repeat(each, 3) for each in (m, unit, nearest + lead))
        held += np.tile([-1, 0, 1], len(nearest))
        best = _best(held / m - exact[i], places)
        stretch[i], moved[i] = m[best], held[best] * unit[best]
    return replace(node, bias=moved, stretch=stretch)


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


def target_of(node: Node, readers: dict[str, list[Node]]) -> Activation:
    """Return the activation that rounds the output of a node on an integer kernel."""
    return readers[node.name][0]


def is_integer(node: Node) -> bool:
    """Return whether an integer kernel runs this convolution or dense layer."""
    return isinstance(node, (Convolution, Dense)) and node.kernel in ("int8", "int4")
