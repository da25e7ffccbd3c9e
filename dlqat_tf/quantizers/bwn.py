"""Binary weight networks.

Rastegari et al., "XNOR-Net: ImageNet classification using binary convolutional neural networks",
ECCV 2016 (arXiv 1603.05279).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_widths
from dlqat_tf.quantizers.latents import meeting_step
from dlqat_tf.quantizers.ste import per_filter, signs, straight_through


def _scale(kernel: tf.Tensor) -> tf.Tensor:
    axes, _ = per_filter(kernel)
    return tf.maximum(tf.reduce_mean(tf.abs(kernel), axes), 1e-20)


def bwn_weights(kernel: tf.Tensor) -> tf.Tensor:
    r"""Return the signs of a kernel times the mean magnitude of each output channel.

    .. math::
        Q = a_o \operatorname{sign}(W), \quad a_o = \operatorname{mean}|W_o|, \qquad
        \partial Q_i / \partial W_i = a_o \, 1[|W_i| \le 1] + 1 / n

    with n weights in an output channel; sign(0) = 1. The authors' code
    multiplies this by :math:`n (1 - 1 / c_{\text{in}})`, which Adam undoes; it is left out here.

    Args:
        kernel: float32 tensor, last axis the output channels.

    Returns:
        float32 tensor of the kernel's shape.
    """
    scale, (_, count) = _scale(kernel), per_filter(kernel)
    slope = tf.where(tf.abs(kernel) <= 1.0, scale, tf.zeros_like(scale)) + 1.0 / count
    return straight_through(kernel, signs(kernel) * scale, slope)


@register_alias("bwn_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class BWNWeights(WeightQuantizer):
    """BWN's weight quantizer; see :func:`bwn_weights` for the formulas.

    The stored kernel wants :class:`CentredAndClamped` as its ``kernel_constraint``.

    Args:
        bits: 1, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    of_channels = True

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("BWN", bits, (1,)), **kwargs)

    def quantize(self, values, training=None):
        return values if self.bits == 32 else bwn_weights(values)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        return WeightGrid(signs(kernel).numpy().astype(np.int16), _scale(kernel).numpy())

    def latent(self, grid):
        return meeting_step(self, super().latent(grid), grid)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class CentredAndClamped(tf.keras.constraints.Constraint):
    """Takes the mean over input channels from a kernel, then clamps it to [-1, 1].

    What the authors' code does to the stored weights in every step, at each kernel position and for
    each output channel by itself. A kernel of one input channel would become zero and is only
    clamped.
    """

    def __call__(self, kernel):
        if kernel.shape[-2] > 1:
            kernel = kernel - tf.reduce_mean(kernel, -2, keepdims=True)
        return tf.clip_by_value(kernel, -1.0, 1.0)

    def get_config(self):
        return {}


# H5 files name constraints by their class alone.
tf.keras.utils.get_custom_objects().setdefault("CentredAndClamped", CentredAndClamped)
