"""DoReFa-Net: weights by tanh, activations on a fixed range.

Zhou et al., "DoReFa-Net: Training low bitwidth convolutional neural networks with low bitwidth
gradients" (arXiv 1606.06160). The gradients' own quantization is not part of this.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_bits
from dlqat_tf.quantizers.latents import meeting_step
from dlqat_tf.quantizers.pact import CGPACT
from dlqat_tf.quantizers.sat import SATWeights, sat_weights
from dlqat_tf.quantizers.ste import signs, straight_through


def _mean(kernel: tf.Tensor) -> tf.Tensor:
    # A kernel of zeros keeps a step above zero, which codes need.
    return tf.maximum(tf.reduce_mean(tf.abs(kernel)), 1e-20)


def dorefa_weights(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    r"""Quantize a kernel to ``bits`` bits as DoReFa-Net does.

    .. math::
        b = 1: \quad & Q = \operatorname{sign}(W) \operatorname{mean}|W|,
            \qquad \partial Q / \partial W = 1 \\
        b > 1: \quad & Q = 2 \operatorname{rne}((\tanh(W) / M + 1) R / 2) / R - 1,
            \qquad \partial Q / \partial W = \operatorname{sech}^2(W) / M

    with :math:`M = \max|\tanh W|` and :math:`R = 2^b - 1`; the mean, over the whole tensor, and M
    are constants in the backward pass, and sign(0) = 1. More than one bit is SAT without its
    rescaling: see :func:`dlqat_tf.quantizers.sat.sat_weights`, also for the int8 grid of 8 bits.

    Args:
        kernel: float32 tensor of any shape.
        bits: 1 to 8, or 32 for the identity.

    Returns:
        float32 tensor of the kernel's shape.
    """
    if bits == 32:
        return kernel
    if bits > 1:
        return sat_weights(kernel, bits)
    return straight_through(kernel, signs(kernel) * _mean(kernel))


@register_alias("dorefa_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class DoReFaWeights(WeightQuantizer):
    """DoReFa-Net's weight quantizer; see :func:`dorefa_weights` for the formulas.

    Args:
        bits: 1 to 8, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_bits(bits), **kwargs)

    def quantize(self, values, training=None):
        return dorefa_weights(values, self.bits)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        if self.bits > 1:
            return SATWeights(self.bits).grid(kernel)
        return WeightGrid(signs(kernel).numpy().astype(np.int16), _mean(kernel).numpy())

    def latent(self, grid):
        if self.bits > 1:
            return SATWeights(self.bits).latent(grid)
        return meeting_step(self, super().latent(grid), grid)


@register_alias("dorefa_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class DoReFaActivations(CGPACT):
    r"""DoReFa-Net's activation quantizer, on a range that is not trained.

    .. math::
        y = \alpha \operatorname{rne}(\operatorname{clip}(x / \alpha, 0, 1) R) / R,
        \quad R = 2^b - 1, \\
        \partial y / \partial x = 1 \text{ if } 0 < x \le \alpha \text{, else } 0

    The paper's range is from 0 to 1, as is this one's, :math:`\alpha = 1`, in a network that is
    made so. One that was trained in float has features of another size: there :math:`\alpha`
    starts from images, as ranges that are trained do, and stays. That is the paper's rounding in
    the same network with each batch norm divided by its :math:`\alpha`. 32 bits are a ReLU.

    Args:
        bits: 1 to 8, or 32.
        alpha_init: The range where no images set it.
        kwargs: As for :class:`CGPACT`.

    Raises:
        ValueError: ``bits`` is anything else, or ``alpha_init`` is no finite number of at least
            0.001.
    """

    def __init__(self, bits: int = 2, alpha_init: float = 1.0, **kwargs):
        super().__init__(bits, alpha_init, **kwargs)

    @property
    def alpha_settings(self):
        return {**super().alpha_settings, "trainable": False, "constraint": None}
