"""Symmetric uniform weights: for parameters whose scale means something, such as class means."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_bits
from dlqat_tf.quantizers.ste import divide_exactly, ste_round


def _step(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    step = divide_exactly(tf.reduce_max(tf.abs(kernel)), 2 ** (bits - 1) - 1)
    return tf.stop_gradient(tf.where(tf.equal(step, 0.0), tf.ones_like(step), step))


def symmetric_weights(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    r"""Round to the nearest multiple of :math:`\Delta = \max|W| / (2^{b-1} - 1)`.

    .. math:: Q = \Delta \operatorname{rne}(W / \Delta), \qquad \partial Q / \partial W = 1

    The step is a constant in the backward pass. Unlike the SAT clamp this keeps the scale of the
    weights, which distances to class means need.

    Args:
        kernel: float32 tensor of any shape.
        bits: 2 to 8, or 32 for the identity.

    Returns:
        float32 tensor of the kernel's shape, on the codes -(2^(b-1) - 1) to 2^(b-1) - 1.
    """
    if bits == 32:
        return kernel
    step = _step(kernel, bits)
    return ste_round(kernel / step) * step


@register_alias("symmetric_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class SymmetricWeights(WeightQuantizer):
    """Symmetric uniform weight quantizer; see :func:`symmetric_weights` for the formulas.

    Args:
        bits: 2 to 8, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 8, **kwargs):
        super().__init__(check_bits(bits, lowest=2), **kwargs)

    def quantize(self, values, training=None):
        return symmetric_weights(values, self.bits)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        step = _step(kernel, self.bits)
        return WeightGrid(tf.round(kernel / step).numpy().astype(np.int16), step.numpy())
