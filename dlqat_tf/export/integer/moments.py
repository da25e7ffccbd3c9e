"""Where the outputs of channels lie, as batch norms know it from training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEAST = 1e-3  # of the density's peak, as outputs are not of any one distribution


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the outputs of each channel.

    Attributes:
        mean: float64 (channels,), in units of the output.
        deviation: The same.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def density(self, values: np.ndarray) -> np.ndarray:
        """Return how likely outputs near values are, in parts of the likeliest: (channels, values).

        As of normal distributions, and nowhere below a thousandth of their peaks.
        """
        distances = values - self.mean[:, np.newaxis]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scores = np.nan_to_num(distances / self.deviation[:, np.newaxis], nan=0.0)
            return np.maximum(np.exp(-np.square(scores) / 2), _LEAST)
