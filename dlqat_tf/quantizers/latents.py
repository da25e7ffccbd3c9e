"""Latent weights for given integers, where a quantizer's step follows from them."""

from __future__ import annotations

import numpy as np

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer

_NEAR = 2**12  # units in the last place, of what the sum of a large kernel rounds away
_TRIALS, _OFF = 16, 32


def meeting_step(quantizer: WeightQuantizer, latent: np.ndarray, grid: WeightGrid) -> np.ndarray:
    """Return latents next to ``latent`` whose step is that of ``grid``, bit for bit.

    For steps that are sums over magnitudes, of all weights or of an output channel. Weights
    change by one unit in the last place, one after the other, and such a sum then takes nearly
    every float32 number on its way. Where it leaves one out, others are a few units off first.

    Args:
        quantizer: Whose step it is.
        latent: float32, output channels last; their step is that of ``grid`` but for rounding.
        grid: With a step that latents of these codes have.
    """
    flat = np.abs(latent, dtype=np.float32).reshape(-1, grid.step.size)
    count, generator = len(flat), np.random.default_rng(0)
    places, first = flat.view(np.int32).astype(np.int64), count - 1 - np.arange(count)[:, None]

    def moved(by: np.ndarray) -> np.ndarray:
        near = np.where(flat > 0, places + (by + first) // count, 0).astype(np.int32)
        return np.copysign(near.view(np.float32).reshape(latent.shape), latent)

    for _ in range(_TRIALS):
        low = np.full(grid.step.size, -_NEAR * count)
        high = -low
        while np.any(low < high):
            middle = (low + high) // 2
            is_less = np.ravel(quantizer.grid(moved(middle)).step < grid.step)
            low, high = np.where(is_less, middle + 1, low), np.where(is_less, high, middle)
        latent = moved(high)
        misses = np.ravel(quantizer.grid(latent).step != grid.step)
        if not misses.any():
            break
        flat = np.abs(latent).reshape(flat.shape)
        places = flat.view(np.int32) + misses * generator.integers(-_OFF, _OFF, flat.shape)
    return latent
