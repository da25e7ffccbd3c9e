"""Quantization Networks: sums of sigmoids whose temperature rises, hard steps at inference.

Yang et al., "Quantization networks", CVPR 2019 (arXiv 1911.09464), and the authors' code for what
the paper leaves open.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import (
    WeightGrid,
    WeightQuantizer,
    check_widths,
    in_training,
)
from dlqat_tf.quantizers.state import add_number, has_started, positive, start_once
from dlqat_tf.quantizers.ste import signs, straight_through

_FIRST, _LAST = 10.0, 1000.0  # temperatures
_REACH = 1.25  # of the scaled kernel, in units of the highest level
_SAMPLE, _ROUNDS = 100_000, 50  # of k-means


def levels_of(bits: int) -> np.ndarray:
    """Return the integer levels: -1 and 1, or -(2^(b-1) - 1) to 2^(b-1) - 1."""
    if bits == 1:
        return np.array([-1, 1], np.float32)
    top = 2 ** (bits - 1) - 1
    return np.arange(-top, top + 1, dtype=np.float32)


def borders_by_clusters(values: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending borders between the clusters that k-means finds in numbers.

    Args:
        values: Of any shape.
        count: Clusters. They start at evenly spaced quantiles.

    Returns:
        float32 (count - 1,), midpoints between neighbouring means.
    """
    values = np.sort(np.ravel(values))
    if values.size > _SAMPLE:
        values = values[np.linspace(0, values.size - 1, _SAMPLE).astype(int)]
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(_ROUNDS):
        borders = (means[1:] + means[:-1]) / 2
        ends = np.concatenate([[0], np.searchsorted(values, borders), [values.size]])
        sizes = np.diff(ends)
        new = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), means)
        if np.array_equal(new, means):
            break
        means = new
    return np.asarray((means[1:] + means[:-1]) / 2, np.float32)


@register_alias("quantization_networks_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class QuantizationNetworksWeights(WeightQuantizer):
    r"""The weight quantizer of Quantization Networks.

    With the integer levels :math:`Y_0 < \dots < Y_n` of :func:`levels_of`, in training

    .. math::
        Q = a \left(\sum_{i=1}^n s_i \, \sigma(T (\beta W - b_i)) - o\right), \qquad
        s_i = Y_i - Y_{i-1}, \quad o = \tfrac 1 2 \sum_i s_i

    with its derivatives by W, a and beta; at inference, and in files, with the step
    :math:`1[\beta W \ge b_i]` instead of the sigmoid.

    The temperature T rises with the share of training that is done, from 10 in a straight line to
    1000, by :class:`dlqat_tf.QuantizerProgress`; without that callback it stays at 10. In the first
    training step :math:`\beta` starts from :math:`1.25 Y_n / \max|W|` of the kernel of that moment
    and a from :math:`1 / \beta`; before it, the callback sets b halfway between the clusters of
    :math:`\beta W` that k-means finds, and without it they stay halfway between the levels. So the
    method starts from a trained network. All are variables in the model file.

    Of one bit the authors' code takes the sigmoid's derivative at T = 1, times T, with learning
    rates of 0.001 and below. That multiplies the learning rate by up to T, so it is not done here.

    Args:
        bits: 1, 2 (ternary), 3 (seven levels), or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("Quantization Networks", bits, (1, 2, 3)), **kwargs)
        self.factor = self.factor_started = self.beta = self.beta_started = None
        self.borders = self.clustered = self.temperature = None

    def build(self, input_shape):
        if self.bits != 32:
            self.factor, self.factor_started = add_number(self, "factor", trainable=True)
            self.beta, self.beta_started = add_number(self, "beta", trainable=True)
            settings = dict(dtype=tf.float32, trainable=False, experimental_autocast=False)
            levels, constant = levels_of(self.bits), tf.keras.initializers.Constant
            middles = (levels[1:] + levels[:-1]) / 2
            self.borders = self.add_weight(
                "borders", shape=middles.shape, initializer=constant(middles), **settings
            )
            self.clustered = self.add_weight("clustered", shape=(), initializer="zeros", **settings)
            self.temperature = self.add_weight(
                "temperature", shape=(), initializer=constant(_FIRST), **settings
            )
        super().build(input_shape)

    def advance(self, share: float, kernel: tf.Variable) -> None:
        """Set the temperature to that of the share of training, and the borders at its start."""
        if self.temperature is None:
            return
        self.temperature.assign(_FIRST + (_LAST - _FIRST) * share)
        if self.clustered.numpy() > 0:
            return
        latent = np.float32(tf.convert_to_tensor(kernel))
        started = has_started(self.beta_started)
        beta = self.beta.numpy() if started else self._start(tf.constant(latent)).numpy()
        self.borders.assign(borders_by_clusters(beta * latent, len(levels_of(self.bits))))
        self.clustered.assign(1.0)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        beta = start_once(self.beta, self.beta_started, lambda: self._start(values), training)
        factor = start_once(
            self.factor, self.factor_started, lambda: 1.0 / self._start(values), training
        )
        soft = factor * self._soft(values, beta)
        if in_training(training):
            return soft
        hard = straight_through(soft, factor * self._codes(values, beta))
        return tf.where(tf.cast(training, tf.bool), soft, hard) if tf.is_tensor(training) else hard

    def _start(self, kernel: tf.Tensor) -> tf.Tensor:
        top = float(levels_of(self.bits)[-1])
        return positive(_REACH * top / positive(tf.reduce_max(tf.abs(kernel))))

    def _soft(self, values: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        scaled = beta * values
        steps = zip(tf.unstack(self.borders), np.diff(levels_of(self.bits)), strict=True)
        total = [size * tf.sigmoid(self.temperature * (scaled - b)) for b, size in steps]
        return tf.add_n(total) + float(levels_of(self.bits)[0])

    def _codes(self, values: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        """Return the levels as integers, with a gradient by nothing."""
        scaled = tf.stop_gradient(beta * values)
        steps = zip(tf.unstack(self.borders), np.diff(levels_of(self.bits)), strict=True)
        total = [size * (0.5 + 0.5 * signs(scaled - b)) for b, size in steps]
        return tf.add_n(total) + float(levels_of(self.bits)[0])

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        if has_started(self.beta_started):
            beta, factor = (tf.convert_to_tensor(each) for each in (self.beta, self.factor))
        else:
            beta = self._start(kernel)
            factor = positive(1.0 / beta)
        if self.borders is None:
            self.build(kernel.shape)
        return WeightGrid(self._codes(kernel, beta).numpy().astype(np.int16), factor.numpy())
