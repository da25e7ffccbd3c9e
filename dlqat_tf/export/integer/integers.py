"""The integers that kernels compute with: stretched codes, scales, and biases clear of ties."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

_INT8 = 127  # the highest code of int8 weights, whose grid is symmetric
_NEGLIGIBLE = 2.0**-10  # of an output step
_ROUNDOFF = 2.0**-24  # largest relative error of one float32 operation
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the wanted distance, down to what float32 biases need


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

    The codes are multiplied by the largest integer that fits, m, and the step divided by it: biases
    are integers in units of input step times weight step, and unstretched that unit is so coarse
    that it moves outputs across rounding borders.

    Args:
        node: Convolution or dense layer with codes.
        source: Grid of its input.
        target: Grid of the activation that rounds its output.

    Raises:
        ExportError: The bias or the scale is outside what the kernels hold.
    """
    width = 7 if node.kernel == "int4" else _INT8
    codes = node.weights.reshape(*_flat_channels(node)).astype(np.int64)
    axes = tuple(range(codes.ndim - 1))
    step = node.step.astype(np.float64) * float(source.step)
    reach = np.abs(codes).sum(axis=axes) * max(source.highest, -source.lowest)
    # A batch-norm gain that decayed to nothing leaves a constant, and steps too small for biases.
    constant = reach * step < _NEGLIGIBLE * float(target.step)
    codes = np.where(constant, 0, codes)
    step = np.where(constant, _NEGLIGIBLE * float(target.step), step)
    stretch = width // np.maximum(np.abs(codes).max(axis=axes), 1)
    with np.errstate(divide="ignore"):
        stretch = np.minimum(stretch, 2**30 // np.maximum(np.where(constant, 1, reach), 1))
        stretch = np.minimum(stretch, np.floor(2**30 * step / np.abs(node.bias)))
    stretch = np.maximum(np.where(constant, 1, stretch), 1).astype(np.int64)
    scale = (step / float(source.step) / stretch).astype(np.float32)
    unit = scale.astype(np.float64) * float(source.step)
    ratio = unit / float(target.step)
    lead = _lead(ratio) if node.kernel == "int4" else np.zeros_like(ratio)
    bias = np.rint(node.bias / unit - lead)
    # Beyond this distance from the grid every output saturates, whatever the input is.
    limit = 2**30
    saturated = np.abs(node.bias) - reach * step > 512 * float(target.step)
    bias = np.where(saturated, np.clip(bias, -limit, limit), bias)
    bad = (np.abs(bias) > limit) | (ratio >= 256) | (ratio < 2.0**-32)
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


def _lead(ratio: np.ndarray) -> np.ndarray:
    """Return :attr:`Integers.lead` of TFLite's built-in kernels.

    They round twice, half up: first to 2^-r of an output step, where r is the right shift, then to
    whole ones. So every threshold lies half of that first grain lower.
    """
    shift = np.maximum(-fixed_point(ratio)[1], 0)
    return 0.5 * 2.0**-shift / ratio


def rounding_of(node: Node, readers: dict[str, list[Node]]) -> Activation | Sign | None:
    """Return what alone reads and rounds the integer sums of a node, None where nothing does."""
    reading = readers[node.name]
    sums = is_integer(node) or (isinstance(node, Convolution) and node.kernel == "planes")
    rounded = len(reading) == 1 and isinstance(reading[0], (Activation, Sign))
    return reading[0] if sums and rounded else None


def stored_bias(
    node: Weighted, source: ActivationGrid | None, target: Activation | Sign, *, clear: bool = True
) -> np.ndarray:
    r"""Return the bias that a file stores for a node whose integer sums are rounded next.

    A channel's output is :math:`u A + b` with the accumulator :math:`A`, a sum of products of
    integer codes, and :math:`u` the product of the two steps. It lies on a threshold
    :math:`t_k = (k + 1/2) s` of the rounding that follows (0 of a sign) where :math:`b / u` equals
    :math:`t_k / u - A`. Reachable sums are multiples of :math:`g`, the greatest common divisor of
    the channel's weight codes. So on the circle of biases modulo :math:`g` (in units of u) the
    thresholds :math:`t_k / u` are the places to avoid: at one of them the order of Keras's float32
    additions decides a code, for all pixels with that sum; and between two neighbours among them
    the bias can move without changing any code.

    The distance to keep is the error of the float32 computation,

    .. math:: c = 2^{-24} (\sqrt n + 16)
        \bigl(\max_k |t_k - b| / u + |b| / u + \max |a| \, \lVert w \rVert_2 \bigr)

    An addition errs by at most :math:`2^{-24}` of its result, and the partial sums of a sum that
    ends at a threshold stay near the way there, :math:`(t_k - b) / u`, give or take a random walk
    of n steps :math:`w \max |a|`. n such errors add up like :math:`\sqrt n` (Higham and Mary, SIAM
    J. Sci. Comput. 41, 2019; the worst case, n, needs errors of one sign). About 16 more are those
    of inputs, weights and products, of the batch norm, of its gain and its shifted beta, and of
    the division by the output step. The largest error of TensorFlow's convolutions of random codes,
    n from 128 to 4608 and 1 to 8 bits, was a seventh to a quarter of c.

    A float bias (binary kernels) that keeps this distance stays. Else it moves between the two
    thresholds around it, changing no code, to a distance of 9/8 c (so that rounding to float32
    calls for no second move) or to the middle where they are too near. A bias on integer kernels is
    a multiple of its unit, so that it can rarely stay: it goes to the place at a distance of 9/8 c
    that crosses the fewest thresholds (of a half, a quarter or an eighth of that distance where
    there is none, and to the nearest at last). No move exceeds :math:`u g / 2`.

    Args:
        node: Convolution or dense layer on an integer or on binary kernels.
        source: Grid of its input, None for signs.
        target: What rounds its output.
        clear: Whether to keep that distance; else it is the bias as trained, on integer kernels the
            nearest that they can hold.

    Returns:
        float64 (output channels,), in units of the output.
    """
    codes, lead = node.weights, 0.0
    unit = node.step.astype(np.float64) * (float(source.step) if source else 1.0)
    if is_integer(node):
        numbers = integers(node, source, target.grid)
        codes, lead = numbers.codes, numbers.lead
        unit = numbers.scale.astype(np.float64) * float(source.step)
    bias = node.bias / unit
    moves = numbers.bias + lead - bias if is_integer(node) else np.zeros_like(bias)
    # A bias that saturates its channel whatever comes in is stored smaller than it is.
    moves = np.where(np.abs(moves) > 1, 0.0, moves)
    lowest, highest = (source.lowest, source.highest) if source else (-1, 1)
    codes = codes.astype(np.int64).reshape(-1, len(bias))
    least = np.minimum(codes * lowest, codes * highest).sum(axis=0)
    most = np.maximum(codes * lowest, codes * highest).sum(axis=0)
    spacing = np.maximum(np.gcd.reduce(codes, axis=0), 1)
    walk = np.abs(bias) + max(highest, -lowest) * np.sqrt(np.square(codes).sum(axis=0))
    thresholds = np.zeros(1)
    if isinstance(target, Activation):
        grid = target.grid
        thresholds = (np.arange(grid.lowest, grid.highest) + 0.5) * float(grid.step)
    for i in range(len(bias) if clear else 0):
        points = thresholds / unit[i] - bias[i]
        points = points[(points > least[i] - spacing[i]) & (points < most[i] + spacing[i])]
        if len(points):
            sums = np.abs(points).max() + walk[i]
            clearance = _ROUNDOFF * (math.sqrt(len(codes)) + 16) * sums
            first = moves[i] if is_integer(node) else None
            moves[i] = _clear_move(points, int(spacing[i]), clearance, first)
    return np.where(moves == 0, node.bias, (bias + moves) * unit)


def _clear_move(points: np.ndarray, circle: int, clearance: float, first: float | None) -> float:
    """Return how far to move away from the nearest point on a circle.

    Args:
        points: What to keep clear of, as seen from here.
        circle: Length of the circle.
        clearance: Wanted distance.
        first: The move may be this or a whole number away from it; None: any that crosses no point.
    """
    wanted = clearance * 9 / 8
    around = np.add.outer(np.arange(-2, 2) * circle, np.sort(points % circle)).ravel()
    here = np.searchsorted(around, 0.0)
    if first is None:
        low, high = around[here - 1], around[here]
        margin = min(wanted, (high - low) / 2)
        stays = min(-low, high) >= clearance
        return 0.0 if stays else float(np.clip(0.0, low + margin, high - margin))
    moves = first + np.arange(-circle // 2, circle // 2 + 1)
    moves = moves[np.abs(moves) <= circle / 2]
    after = np.searchsorted(around, moves)
    distances = np.minimum(moves - around[after - 1], around[after] - moves)
    crossed = np.abs(after - here)
    for share in _SHARES:
        reached = distances >= share * wanted
        if np.any(reached):
            return float(moves[np.lexsort((np.abs(moves), crossed, ~reached))[0]])
    return first


def _flat_channels(node: Weighted) -> tuple[int, ...]:
    return (*node.weights.shape[:2], -1) if node.depthwise else node.weights.shape


def target_of(node: Node, readers: dict[str, list[Node]]) -> Activation:
    """Return the activation that rounds the output of a node on an integer kernel."""
    return readers[node.name][0]


def is_integer(node: Node) -> bool:
    """Return whether an integer kernel runs this convolution or dense layer."""
    return isinstance(node, (Convolution, Dense)) and node.kernel in ("int8", "int4")
