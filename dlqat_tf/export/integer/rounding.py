"""How kernels round: XNNPACK's, TFLite's built-in ones, and the reference ones of TFLite Micro.

None of it is an approximation: the integers are those of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlqat_tf.export.integer.integers import add_multipliers, fixed_point, product_ratio
from dlqat_tf.export.integer.nodes import (
    Convolution,
    Merge,
    Multiply,
    Subtract,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.quantizers import ActivationGrid

_VECTOR = 8  # channels that a built-in kernel rounds at once
_ADD_SHIFT = 20  # by which TFLite's built-in add moves codes to the left before it scales them


@dataclass(frozen=True)
class Accumulator:
    """Exact sums of a convolution or dense layer, before the activation that rounds them.

    Attributes:
        sums: int64.
        scale: float32, per channel, of the stretched weights.
        source: Grid of the input.
        int4: Whether the weights are stored in 4 bits.
        away: bool (channels,), which of them TFLite's built-in kernel rounds as the reference one.
        is_dense: Whether it is of a dense layer.
    """

    sums: np.ndarray
    scale: np.ndarray
    source: ActivationGrid
    int4: bool = False
    away: np.ndarray | bool = False
    is_dense: bool = False


@dataclass(frozen=True)
class Merged:
    """The two coded inputs of an operation, before the activation that rounds its output."""

    node: Merge
    codes: tuple[np.ndarray, np.ndarray]
    sources: tuple[ActivationGrid, ActivationGrid]


@dataclass(frozen=True)
class Sloped:
    """The codes that a function of two slopes reads, before the activation that rounds its output.

    Attributes:
        codes: Of the input, less its zero point.
        source: Grid of the input.
        slopes: Codes of the slopes below zero.
        step: Theirs.
    """

    codes: np.ndarray
    source: ActivationGrid
    slopes: np.ndarray
    step: np.float32


class Micro:
    """The reference kernels of TFLite Micro: 32-bit multipliers and shifts, each of them rounded.

    First to the nearest, half up, then to the nearest again, half away from zero.
    """

    def product(self, value: Accumulator, grid: ActivationGrid) -> np.ndarray:
        """Return the integers of a convolution or dense layer before they are clipped."""
        return _multiplied(value.sums, _ratio(value, grid), _halves_away)

    def merged(self, value: Merged, grid: ActivationGrid) -> np.ndarray:
        """Return the integers of an add, subtraction or multiplication before they are clipped."""
        if isinstance(value.node, Multiply):
            return self._product_of_codes(value, grid)
        return self._sum_of_codes(value, grid)

    def _product_of_codes(self, value: Merged, grid: ActivationGrid) -> np.ndarray:
        ratio = product_ratio(value.node.name, value.sources, grid)
        products = value.codes[0].astype(np.int64) * value.codes[1]
        return _multiplied(products, np.float64(ratio), _halves_away)

    def _sum_of_codes(self, value: Merged, grid: ActivationGrid) -> np.ndarray:
        steps = [float(source.step) for source in value.sources]
        twice = 2 * max(steps)
        terms = [
            _multiplied(codes.astype(np.int64) << _ADD_SHIFT, step / twice, _halves_away)
            for codes, step in zip(value.codes, steps, strict=True)
        ]
        ratio = twice / (2.0**_ADD_SHIFT * float(grid.step))
        total = terms[0] - terms[1] if isinstance(value.node, Subtract) else terms[0] + terms[1]
        return _multiplied(total, ratio, _halves_away)

    def sloped(self, value: Sloped, grid: ActivationGrid) -> np.ndarray:
        """Return the integers of a function of two slopes before they are clipped."""
        codes, (above, below) = value.codes.astype(np.int64), self._ratios(value, grid)
        above = _multiplied(codes, above, _halves_away)
        below = _multiplied(codes * value.slopes, below, _halves_away)
        return np.where(codes >= 0, above, below)

    def _ratios(self, value: Sloped, grid: ActivationGrid) -> tuple[float, float]:
        """Return what codes, and codes times slopes, are multiplied by, in the kernel's order."""
        source, slope, target = map(float, (value.source.step, value.step, grid.step))
        return source / target, source * slope / target

    def quotient(self, values: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        """Return the integers of float32 values before they are clipped."""
        quotients = (values / grid.step).astype(np.float64)
        return np.copysign(np.floor(np.abs(quotients) + 0.5), quotients)

    def floats(self, codes: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        """Return the float32 values of codes."""
        return np.float32(codes) * grid.step


class BuiltIn(Micro):
    """TFLite's built-in kernels on a PC.

    Products round half up the second time too, but in the channels that :func:`rounds_away` names,
    and of a dense layer of one unit the product of input and weight step is float32; quotients are
    products with the reciprocal of the step, and round half to even. Codes become floats with their
    zero point, which is taken off afterwards. Ratios of a function of two slopes are float32.
    """

    def product(self, value: Accumulator, grid: ActivationGrid) -> np.ndarray:
        ratio = _ratio(value, grid)
        if value.is_dense and len(value.scale) == 1:  # of one step for all it takes another way
            ratio = (value.source.step * value.scale).astype(np.float64) / float(grid.step)
        up, away = (_multiplied(value.sums, ratio, each) for each in (_halves_up, _halves_away))
        return np.where(value.away, away, up)

    def quotient(self, values: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        return np.rint(values * (np.float32(1) / grid.step))

    def _ratios(self, value: Sloped, grid: ActivationGrid) -> tuple[float, float]:
        source, slope, target = map(np.float32, (value.source.step, value.step, grid.step))
        return float(source / target), float(source * slope / target)

    def floats(self, codes: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        zero_point = np.float32(127 - grid.highest)
        return (np.float32(codes) + zero_point) * grid.step - zero_point * grid.step


class XNNPACK(BuiltIn):
    """XNNPACK's kernels, and TFLite's built-in ones where it has none: for int4 weights."""

    def product(self, value: Accumulator, grid: ActivationGrid) -> np.ndarray:
        return super().product(value, grid) if value.int4 else _rounded_once(value, grid)

    def _product_of_codes(self, value: Merged, grid: ActivationGrid) -> np.ndarray:
        # The exact product times a float32, rounded half to even.
        ratio = product_ratio(value.node.name, value.sources, grid)
        products = value.codes[0].astype(np.int32) * value.codes[1]
        return np.rint(products.astype(np.float32) * ratio)

    def _sum_of_codes(self, value: Merged, grid: ActivationGrid) -> np.ndarray:
        # 21-bit multipliers with a common shift, rounded half up.
        first, second, shift = add_multipliers(value.node.name, value.sources, grid)
        if isinstance(value.node, Subtract):
            second = -second
        sums = value.codes[0].astype(np.int64) * first + value.codes[1].astype(np.int64) * second
        return _halves_up(sums, shift)

    def floats(self, codes: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        return Micro.floats(self, codes, grid)


class Web(XNNPACK):
    """XNNPACK's kernels in LiteRT.js, which has them for int4 weights too."""

    def product(self, value: Accumulator, grid: ActivationGrid) -> np.ndarray:
        return _rounded_once(value, grid)


def rounds_away(node: Weighted) -> np.ndarray:
    """Return which output channels TFLite's built-in kernel rounds half away from zero: bool.

    Groups of channels run on the reference kernel. Depthwise and transposed convolutions have
    vectors of eight channels, and round what is left over one by one.
    """
    channels = len(node.bias)
    if isinstance(node, Convolution) and node.groups > 1:
        return np.full(channels, True)
    has_vectors = node.depthwise or isinstance(node, TransposedConvolution)
    return np.arange(channels) >= (channels - channels % _VECTOR if has_vectors else channels)


RUNTIMES: dict[str, Micro] = {
    "tflite": XNNPACK(),
    "builtin": BuiltIn(),
    "micro": Micro(),
    "compiled_model": XNNPACK(),
    "web": Web(),
}
"""Rounding of what runs a file, by its name."""


def _rounded_once(value: Accumulator, grid: ActivationGrid) -> np.ndarray:
    """Return the product with one float32, rounded half to even."""
    ratio = value.source.step * value.scale / grid.step
    return np.rint(value.sums.astype(np.float32) * ratio)


def _ratio(value: Accumulator, grid: ActivationGrid) -> np.ndarray:
    return float(value.source.step) * value.scale.astype(np.float64) / float(grid.step)


def _multiplied(sums: np.ndarray, ratio, halves) -> np.ndarray:
    """Return sums times a ratio, of each channel or of all, by a multiplier and a shift."""
    multiplier, exponent = fixed_point(np.asarray(ratio))
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    return halves(_halves_up((sums << left) * multiplier, 31), right)


def _halves_up(values: np.ndarray, shift) -> np.ndarray:
    """Return values / 2^shift, rounded to the nearest, halves up."""
    return (values + ((1 << np.asarray(shift, np.int64)) >> 1)) >> shift


def _halves_away(values: np.ndarray, shift) -> np.ndarray:
    """Return values / 2^shift, rounded to the nearest, halves away from zero."""
    return np.sign(values) * _halves_up(np.abs(values), shift)
