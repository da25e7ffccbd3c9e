"""SAT weight quantization: clamp by tanh, DoReFa grid, constant rescaling of the last layer.

Jin et al., "Neural network quantization with scale-adjusted training", BMVC 2020 (arXiv
1912.10207); Zhou et al., "DoReFa-Net" (arXiv 1606.06160), eq. 9, for the grid.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_bits


def _top_code(bits: int) -> int:
    # Odd codes up to +-255 do not fit an int8, so 8 bits use the narrow grid -127..127 with zero.
    return 127 if bits == 8 else 2**bits - 1


def _clamp(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return ``tanh(kernel)`` and ``max|tanh(kernel)|`` over the whole tensor."""
    # tanh is odd and monotone: the largest |tanh| needs no tensor of absolute values.
    largest = tf.tanh(tf.maximum(tf.reduce_max(kernel), -tf.reduce_min(kernel)))
    return tf.tanh(kernel), largest


def _codes(clamped: tf.Tensor, bits: int) -> tf.Tensor:
    """Return the integer codes (as float32) of weights in [-1, 1]."""
    top = _top_code(bits)
    if bits == 8:
        return tf.round(clamped * top)
    return 2.0 * tf.round((clamped + 1.0) * (top / 2)) - top


def _rescaling(values: tf.Tensor) -> tf.Tensor:
    """Return 1/S, the scale adjustment that brings ``values`` to variance 1 / fan_out."""
    shape = values.shape
    fan_out = shape[-1] * int(np.prod(shape[:-2]))
    count = shape.num_elements()
    variance = tf.math.reduce_variance(values) * (count / max(count - 1, 1))
    # A kernel whose values are all equal has no variance to adjust, and keeps its scale. Equality
    # is asked of the values: the variance of many equal ones is rounding noise above zero.
    is_constant = tf.equal(tf.reduce_max(values), tf.reduce_min(values))
    return tf.where(is_constant, tf.ones_like(variance), tf.math.rsqrt(fan_out * variance))


def _codes_and_step(kernel: tf.Tensor, bits: int, scale_adjust: bool):
    tanh, largest = _clamp(kernel)
    codes = _codes(tf.math.divide_no_nan(tanh, largest), bits)
    step = tf.constant(1.0 / _top_code(bits), tf.float32)
    if scale_adjust:
        step *= _rescaling(codes * step)
    return codes, step, tanh, largest


def sat_weights(kernel: tf.Tensor, bits: int, scale_adjust: bool = False) -> tf.Tensor:
    r"""Quantize a kernel to ``bits`` bits by scale-adjusted training.

    With :math:`M = \max|\tanh W|` over the whole tensor, :math:`R = 2^b - 1`:

    .. math::
        c &= \tanh(W) / M, \qquad Q = 2 \operatorname{rne}((c + 1) R / 2) / R - 1 \\
        W_{\text{eff}} &= Q / S, \qquad S = \sqrt{n_{\text{out}} \operatorname{Var}[Q]}
            \text{ with scale adjustment, else } 1 \\
        \partial W_{\text{eff}} / \partial W &= \operatorname{sech}^2(W) / (M S)

    Rounding is straight-through; M and S are constants in the backward pass. The levels are the odd
    integers from -R to R divided by R, without a zero, and at one bit :math:`W = 0` becomes -1.
    8 bits use :math:`Q = \operatorname{rne}(127 c) / 127` instead, which fits an int8. 32 bits
    return the clamped :math:`c / S`, not rounded.

    Args:
        kernel: float32 tensor, last axis the output channels.
        bits: 1 to 8, or 32.
        scale_adjust: Divide by S, so that the variance (Bessel corrected) is 1 / n_out, where
            n_out is the number of output channels times the spatial size. For a final dense layer
            only: batch norm undoes any scale elsewhere.

    Returns:
        float32 tensor of the kernel's shape. An all-zero kernel gives the level nearest to zero; a
        NaN stays a NaN.
    """

    @tf.custom_gradient
    def quantize(kernel):
        if bits == 32:
            tanh, largest = _clamp(kernel)
            values = tf.math.divide_no_nan(tanh, largest)
            scale = _rescaling(values) if scale_adjust else 1.0
            values *= scale
        else:
            codes, step, tanh, largest = _codes_and_step(kernel, bits, scale_adjust)
            values = codes * step
            scale = step * _top_code(bits)

        def gradient(upstream):
            return upstream * (1.0 - tf.square(tanh)) * tf.math.divide_no_nan(scale, largest)

        return values, gradient

    return quantize(kernel)


@register_alias("sat_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class SATWeights(WeightQuantizer):
    """SAT weight quantizer for ``kernel_quantizer``; see :func:`sat_weights` for the formulas.

    >>> layer = larq.layers.QuantConv2D(64, 3, kernel_quantizer=dlqat_tf.SATWeights(bits=1))

    Args:
        bits: 1 to 8, or 32 for clamped weights that are not rounded (the float stage).
        scale_adjust: Rescale to variance 1 / n_out; for the final dense layer.

    Raises:
        ValueError: ``bits`` is anything else, or ``scale_adjust`` is not a boolean.
    """

    def __init__(self, bits: int = 1, scale_adjust: bool = False, **kwargs):
        if not isinstance(scale_adjust, bool):
            raise ValueError(f"Expected scale_adjust to be a boolean. Received: {scale_adjust!r}.")
        super().__init__(check_bits(bits), **kwargs)
        self.scale_adjust = scale_adjust

    def quantize(self, values, training=None):
        return sat_weights(values, self.bits, self.scale_adjust)

    def grid(self, kernel) -> WeightGrid:
        codes, step, _, _ = _codes_and_step(self._checked(kernel), self.bits, self.scale_adjust)
        return WeightGrid(codes.numpy().astype(np.int16), step.numpy())

    def get_config(self):
        return {**super().get_config(), "scale_adjust": self.scale_adjust}
