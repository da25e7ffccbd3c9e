"""Levels that are sums of planes with free factors, and the thresholds between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dlqat_tf.quantizers.ste import signs


@dataclass(frozen=True)
class ActivationPlanes:
    """Activation levels that are no grid.

    A value x above ``n`` of the thresholds becomes ``sum_i scales[i] * planes[i, n]``.

    Attributes:
        thresholds: float32 (thresholds,), ascending.
        planes: int8 (planes, thresholds + 1) of 0 and 1, or of -1 and 1; the smaller at n = 0.
        scales: float32 (planes,), above zero.
    """

    thresholds: np.ndarray
    planes: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float32 (thresholds + 1,), the levels in ascending order."""
        total = np.zeros(len(self.thresholds) + 1, np.float32)
        for plane, scale in zip(self.planes, self.scales, strict=True):
            total = total + plane * scale
        return total

    @property
    def between(self) -> np.ndarray:
        """float32 (thresholds,), which tell the levels themselves apart."""
        return (self.values[1:] + self.values[:-1]) / np.float32(2)

    @property
    def signed(self) -> bool:
        """Whether planes are of -1 and 1."""
        return bool(self.planes.min() < 0)


def combinations(count: int, lowest: int) -> np.ndarray:
    """Return float32 (2^count, count), every choice of ``lowest`` or 1 for each of the planes."""
    return np.array(list(itertools.product((lowest, 1), repeat=count)), np.float32)


def thresholds_of(basis: tf.Tensor, lowest: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the midpoints between the levels of a basis, and the planes between them.

    Args:
        basis: float32 (planes, channels).
        lowest: 0 or -1, which planes take beside 1.

    Returns:
        float32 (2^planes - 1, channels), and the planes of the levels in ascending order, float32
        (2^planes, planes, channels).
    """
    choices = tf.constant(combinations(basis.shape[0], lowest))
    levels = tf.matmul(choices, basis)
    order = tf.argsort(levels, axis=0, stable=True)
    ascending = tf.sort(levels, axis=0)
    planes = tf.transpose(tf.gather(choices, order), [0, 2, 1])
    return (ascending[1:] + ascending[:-1]) / 2.0, planes


def planes_of(x: tf.Tensor, thresholds: Sequence, planes: tf.Tensor) -> list[tf.Tensor]:
    """Return the planes of the intervals that values lie in; NaN stays NaN.

    Args:
        x: float32 tensor, last axis the channels.
        thresholds: For each of them, in ascending order, a tensor that broadcasts to ``x``. A value
            at a threshold is below it.
        planes: (thresholds + 1, planes, channels or 1).

    Returns:
        A tensor of the shape of ``x`` for each plane, without a gradient.
    """
    first, *rest = thresholds
    above = [0.5 - 0.5 * signs(first - x), *(tf.cast(x > each, x.dtype) for each in rest)]
    jumps = planes[1:] - planes[:-1]
    return [
        tf.stop_gradient(
            tf.add_n([jumps[n, i] * step for n, step in enumerate(above)]) + planes[0, i]
        )
        for i in range(planes.shape[1])
    ]


def weighted_sum(planes: Sequence[tf.Tensor], scales: Sequence) -> tf.Tensor:
    """Return the sum of planes times their factors, added one after the other."""
    total = planes[0] * scales[0]
    for plane, scale in zip(planes[1:], scales[1:], strict=True):
        total = total + plane * scale
    return total


def least_squares(
    x: tf.Tensor, planes: Sequence[tf.Tensor], start: tf.Tensor, damping: float
) -> tf.Tensor:
    r"""Return the factors with which planes come closest to values.

    .. math:: v = (B^\top B / n + \delta I)^{-1} (B^\top x / n + \delta v_0)

    for n values. Values that are not finite give factors that are not.

    Args:
        x: float32 (values, channels).
        planes: B, for each plane such a tensor.
        start: v_0, float32 (planes, channels), where factors stay that nothing asks for.
        damping: The delta. Above 1e-6, there is an inverse also where planes are equal.

    Returns:
        float32 (planes, channels).
    """
    count, share = len(planes), 1.0 / tf.cast(tf.shape(x)[0], tf.float32)
    # Values last: an einsum of one channel would be as many products of two numbers.
    rows = tf.stack([*planes, x])
    rows = rows[None, :, :, 0] if x.shape[-1] == 1 else tf.transpose(rows, [2, 0, 1])
    products = tf.matmul(rows[:, :count], rows, transpose_b=True) * share
    gram, right = products[:, :, :count], products[:, :, count] + damping * tf.transpose(start)
    unit = tf.eye(count)
    damped = gram + damping * unit
    damped = tf.where(tf.math.is_finite(damped), damped, unit)
    # XLA solves by another algorithm, which in float32 is off where planes are equal.
    found = tf.linalg.solve(tf.cast(damped, tf.float64), tf.cast(right[..., None], tf.float64))
    return tf.transpose(tf.cast(found[..., 0], tf.float32))
