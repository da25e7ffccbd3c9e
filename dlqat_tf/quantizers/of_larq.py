"""Larq's own quantizers, and functions in the place of quantizers, in terms of integers.

Weights are constants when a network is exported, so whatever made them is read off the values: the
levels of a function that no class describes are found as exactly as those of a class. Activations
have values that nobody knows yet, so there the quantizer has to be one whose steps are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf.quantizers.base import ActivationGrid, WeightGrid

# They differ in the gradient only.
_SIGNS = (lq.quantizers.SteSign, lq.quantizers.ApproxSign, lq.quantizers.SwishSign)
_FUNCTIONS = {
    lq.quantizers.approx_sign: lq.quantizers.ApproxSign,
    lq.quantizers.ste_heaviside: lq.quantizers.SteHeaviside,
    lq.quantizers.ste_sign: lq.quantizers.SteSign,
    lq.quantizers.ste_tern: lq.quantizers.SteTern,
    lq.quantizers.swish_sign: lq.quantizers.SwishSign,
}
_WIDEST = 127  # the highest code of weights that an int8 holds
_LEVELS = 256
_TOLERANCE = 1e-6  # of the largest weight, for the float32 arithmetic that made the values


@dataclass(frozen=True)
class Steps:
    r"""What rounds activations: :math:`s \operatorname{clip}(\operatorname{rne}((g x + o) / s))`.

    Attributes:
        grid: The codes and their step s.
        bits: Declared width.
        gain: g, which is 1 where values are rounded as they are.
        offset: o, which is 0 where values are rounded as they are.
    """

    grid: ActivationGrid
    bits: int
    gain: float = 1.0
    offset: float = 0.0


def is_sign(quantizer) -> bool:
    """Return whether a quantizer, or a function in its place, computes the sign."""
    return isinstance(quantizer, _SIGNS) or _FUNCTIONS.get(_hashable(quantizer)) in _SIGNS


def is_of_larq(quantizer) -> bool:
    """Return whether this is one of Larq's quantizers of activations, or a function that is one."""
    known = (*_SIGNS, *set(_FUNCTIONS.values()), lq.quantizers.DoReFa)
    return isinstance(quantizer, known) or _hashable(quantizer) in _FUNCTIONS


def steps_of(quantizer) -> Steps:
    """Return what one of Larq's quantizers, or such a function, does to activations.

    Args:
        quantizer: None that computes the sign.

    Raises:
        ValueError: Its steps depend on the values, or nothing is known about it.
    """
    if _hashable(quantizer) in _FUNCTIONS:
        quantizer = _FUNCTIONS[quantizer]()
    if isinstance(quantizer, lq.quantizers.DoReFa):
        if quantizer.mode != "activations":
            raise ValueError(
                "DoReFa(mode='weights') rounds activations by a factor that depends on them: use "
                "mode='activations'."
            )
        highest = 2**quantizer.precision - 1
        grid = ActivationGrid(0, highest, np.float32(1 / highest))
        return Steps(grid, quantizer.precision)
    if isinstance(quantizer, lq.quantizers.SteHeaviside):
        # 1 above zero, 0 at zero: rounding half to even leaves 0.5 at 0.
        return Steps(ActivationGrid(0, 1, np.float32(1)), quantizer.precision, offset=0.5)
    if isinstance(quantizer, lq.quantizers.SteTern):
        threshold = quantizer.threshold_value
        if quantizer.ternary_weight_networks or not threshold > 0:
            raise ValueError(
                "SteTern of activations needs a threshold that does not depend on them: use "
                "SteTern(threshold_value=...) above zero, without ternary_weight_networks."
            )
        grid = ActivationGrid(-1, 1, np.float32(1))
        return Steps(grid, quantizer.precision, gain=0.5 / threshold)
    raise ValueError(f"{_name(quantizer)} says no integer codes")


def weight_grid(quantizer: Callable, kernel: np.ndarray) -> tuple[WeightGrid, int]:
    """Return the integers behind the weights that a quantizer, or a function, makes of a kernel.

    Args:
        quantizer: Any; its ``precision``, where it says one, limits the codes.
        kernel: float32, latent.

    Returns:
        The grid, equal to the weights up to a millionth of the largest of them, and the bits.

    Raises:
        ValueError: The weights are on no grid of that many bits.
    """
    values = np.asarray(quantizer(tf.constant(kernel)), np.float32)
    bits = getattr(quantizer, "precision", None)
    axes = tuple(range(values.ndim - 1))
    largest = float(np.abs(values).max(initial=0))
    # One step for all where that takes no more levels than one for each channel.
    scales = (np.full(values.shape[-1:], largest), np.abs(values).max(axis=axes))
    tried = [(highest, i) for i in (0, 1) for highest in _highest_codes(values, scales[i], bits)]
    for highest, i in sorted(tried):
        scale = _divisor(scales[i])
        codes, step = np.rint(values / scale * highest), np.asarray(scale / highest, np.float32)
        if np.abs(codes * step - values).max(initial=0) <= _TOLERANCE * largest:
            step = step[0] if np.all(step == step[0]) else step
            return WeightGrid(codes.astype(np.int16), step), bits or _bits_of(codes)
    width = "" if bits is None else f" of {bits} bits"
    raise ValueError(
        f"the weights that {_name(quantizer)} makes are not on equidistant levels{width}, so they "
        "have no integer codes"
    )


def _divisor(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, 1).astype(np.float64)


def _highest_codes(values: np.ndarray, scale: np.ndarray, bits: int | None) -> list[int]:
    """Return codes that a value of a channel's scale may have, so that all are near integers."""
    levels = np.unique(np.abs(values / _divisor(scale)).round(6))
    if len(levels) > _LEVELS:
        return []
    limit = _WIDEST if bits is None else min(_WIDEST, 2**bits - 1)
    codes = levels * np.arange(1, limit + 1)[:, None]
    fits = np.all(np.abs(codes - np.rint(codes)) < 1e-3, axis=1)
    return [int(each) + 1 for each in np.flatnonzero(fits)]


def _bits_of(codes: np.ndarray) -> int:
    """Return the width of codes: odd ones up to 2^b - 1 have b bits, others a sign's more."""
    width = int(np.abs(codes).max(initial=1)).bit_length()
    return width if np.all(codes % 2) else width + 1


def _hashable(quantizer):
    return quantizer if getattr(quantizer, "__hash__", None) else None


def _name(quantizer) -> str:
    return getattr(quantizer, "__name__", type(quantizer).__name__)
