"""IR-Net: balanced, standardised binary weights and a gradient that sharpens with training.

Qin et al., "Forward and backward information retention for accurate binary neural networks", CVPR
2020 (arXiv 1909.10788).
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_widths
from dlqat_tf.quantizers.ste import per_filter, power_of_two, signs, straight_through

_POWERS = (0.0, *2.0 ** np.arange(-1.0, 9.0, 0.5))  # of magnitudes that rise from 0 to 1
_LEAST = 1e-4  # of them: what rounding leaves of their mean is far below it


def _standardised(kernel: tf.Tensor) -> tf.Tensor:
    axes, count = per_filter(kernel)
    centred = kernel - tf.reduce_mean(kernel, axes)
    # By a product: in a graph, the division by a constant would become another one.
    variance = tf.reduce_sum(centred * centred, axes) * (1.0 / max(count - 1, 1))
    # A channel of equal weights stays at its mean, zero.
    return centred * tf.where(variance > 0, tf.math.rsqrt(tf.maximum(variance, 1e-30)), 0.0)


def _scale(standardised: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.abs(standardised), per_filter(standardised)[0])
    exponent = tf.round(tf.math.log(tf.maximum(mean, 1e-20)) * (1.0 / math.log(2.0)))
    return tf.stop_gradient(power_of_two(exponent))


def irnet_weights(kernel: tf.Tensor, progress: tf.Tensor) -> tf.Tensor:
    r"""Binarize by Libra parameter binarization, with the error decay estimator's gradient.

    For each output channel:

    .. math::
        \tilde W = (W - \operatorname{mean} W) / \operatorname{std} W, \qquad
        Q = 2^s \operatorname{sign}(\tilde W), \qquad
        s = \operatorname{rne}(\log_2 \operatorname{mean}|\tilde W|)

    The standard deviation is Bessel corrected as in the authors' code, sign(0) = 1, and s is a
    constant in the backward pass. The gradient of sign at progress p from 0 to 1 is

    .. math:: k t (1 - \tanh^2(t \tilde W)), \qquad t = 10^{2 p - 1}, \quad k = \max(1 / t, 1)

    times :math:`2^s` by the chain rule, and that of the standardisation is its derivative.

    Args:
        kernel: float32 tensor, last axis the output channels.
        progress: float32 scalar, the share of training that is done.

    Returns:
        float32 tensor of the kernel's shape.
    """
    standardised = _standardised(kernel)
    sharpness = tf.pow(10.0, 2.0 * progress - 1.0)
    gain = tf.maximum(1.0 / sharpness, 1.0)
    tanh = tf.tanh(sharpness * standardised)
    slope = gain * sharpness * (1.0 - tanh * tanh)
    return straight_through(standardised, signs(standardised), slope) * _scale(standardised)


@register_alias("irnet_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class IRNetWeights(WeightQuantizer):
    """IR-Net's weight quantizer; see :func:`irnet_weights` for the formulas.

    The share of training that is done is a variable in the model file that
    :class:`dlqat_tf.QuantizerProgress` sets; without that callback it stays at 0. Only the gradient
    depends on it.

    Args:
        bits: 1, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    of_channels = True

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("IR-Net", bits, (1,)), **kwargs)
        self.progress = None

    def build(self, input_shape):
        if self.bits != 32:
            self.progress = self.add_weight(
                "progress",
                shape=(),
                dtype=tf.float32,
                trainable=False,
                initializer="zeros",
                experimental_autocast=False,
            )
        super().build(input_shape)

    def advance(self, share: float, kernel: tf.Variable) -> None:
        """Set the share of training that is done."""
        if self.progress is not None:
            self.progress.assign(share)

    def quantize(self, values, training=None):
        return values if self.bits == 32 else irnet_weights(values, self.progress)

    def grid(self, kernel) -> WeightGrid:
        standardised = _standardised(self._checked(kernel))
        codes = signs(standardised).numpy().astype(np.int16)
        return WeightGrid(codes, _scale(standardised).numpy())

    def latent(self, grid):
        flat = grid.codes.reshape(-1, grid.codes.shape[-1])
        above, count = flat > 0, len(flat)
        best, distance = np.ones(flat.shape), np.full(flat.shape[-1], np.inf)
        for power in _POWERS:
            # Magnitudes rise among the weights of a sign, which sum to those of the other sign.
            latent = np.zeros(flat.shape)
            for side, sign in ((above, 1), (~above, -1)):
                share = np.cumsum(side, 0) / np.maximum(side.sum(0), 1)
                magnitude = np.where(side, share**power + _LEAST, 0)
                latent += sign * magnitude / np.maximum(magnitude.sum(0), 1e-30)
            deviation = np.sqrt(np.square(latent).sum(0) / max(count - 1, 1))
            far = np.abs(np.log2(np.abs(latent).mean(0) / deviation) - np.log2(grid.step))
            is_nearer = (far < distance) & above.any(0) & ~above.all(0)
            best = np.where(is_nearer, latent, best)
            distance = np.where(is_nearer, far, distance)
        return best.reshape(grid.codes.shape).astype(np.float32)
