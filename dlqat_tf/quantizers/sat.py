"""SAT weight quantization: clamp by tanh, DoReFa grid, constant rescaling of the last layer.

Jin et al., "Neural network quantization with scale-adjusted training", BMVC 2020 (arXiv
1912.10207); Zhou et al., "DoReFa-Net" (arXiv 1606.06160), for the grid.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_bits
from dlqat_tf.quantizers.latents import meeting_step
from dlqat_tf.quantizers.ste import values_of

_WITHIN = 0.95  # of the interval of a code, so that rounding leaves a latent in it
_LARGEST = 4.0  # latent: beyond it, float32's tanh hardly grows


def _top_code(bits: int) -> int:
    # Odd codes up to +-255 do not fit an int8, so 8 bits use the narrow grid -127..127 with zero.
    return 127 if bits == 8 else 2**bits - 1


def _largest(kernel: tf.Tensor) -> tf.Tensor:
    """Return ``max|tanh(kernel)|`` over the whole tensor."""
    # tanh is odd and monotone: the extremes of the kernel are enough.
    return tf.tanh(tf.maximum(tf.reduce_max(kernel), -tf.reduce_min(kernel)))


def _inverse(largest: tf.Tensor) -> tf.Tensor:
    """Return 1 / largest, or 0 for a kernel that is all zero up to float32's limits."""
    return tf.where(largest > 1e-30, 1.0 / largest, tf.zeros_like(largest))


def _half_codes(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    """Return half of the integer codes, as float32: each operation here is a pass over memory."""
    top = _top_code(bits)
    if bits == 1:
        # The sign of tanh is the sign of the weight. Zero counts as negative, NaN stays NaN.
        return tf.math.ceil(0.5 * tf.sign(kernel)) - 0.5
    if bits == 8:
        return 0.5 * tf.round(tf.tanh(kernel) * (top * _inverse(_largest(kernel))))
    return tf.round(tf.tanh(kernel) * (top / 2 * _inverse(_largest(kernel))) + top / 2) - top / 2


def _rescaling(values: tf.Tensor) -> tf.Tensor:
    """Return 1/S, the scale adjustment that brings ``values`` to variance 1 / fan_out."""
    shape = values.shape
    fan_out = shape[-1] * int(np.prod(shape[:-2]))
    count = shape.num_elements()
    # fan_out times the variance by one constant: of two, the graph optimizer makes another product
    # than eager execution, and `grid` would differ from `model.predict` in the last place.
    variance = tf.math.reduce_variance(values) * (fan_out * count / max(count - 1, 1))
    # A kernel whose values are all equal has no variance to adjust, and keeps its scale. Equality
    # is asked of the values: the variance of many equal ones is rounding noise above zero.
    is_constant = tf.equal(tf.reduce_max(values), tf.reduce_min(values))
    return tf.where(is_constant, tf.ones_like(variance), tf.math.rsqrt(variance))


def _projection(kernel: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Return the factor that brings ``values`` nearest to ``kernel``, for each last axis."""
    axes = list(range(kernel.shape.rank - 1))
    product = tf.reduce_sum(kernel * values, axes)
    # A channel of zeros keeps a step above zero, which codes need.
    return tf.maximum(tf.math.divide_no_nan(product, tf.reduce_sum(values * values, axes)), 1e-20)


def _half_codes_and_step(kernel: tf.Tensor, bits: int, scale_adjust: bool, keep_scale: bool):
    half_codes = _half_codes(kernel, bits)
    if keep_scale:
        return half_codes, 0.5 * _projection(kernel, half_codes)
    step = tf.constant(1.0 / _top_code(bits), tf.float32)
    if scale_adjust:
        step *= _rescaling(half_codes * (2.0 * step))
    return half_codes, step


def _with_scales(grid: WeightGrid, bits: int) -> np.ndarray:
    """Return latents of codes whose projections have, but for rounding, the steps of a grid.

    Within the interval of a code a channel's latents stand as far up as its step asks for. The
    largest latent is the one for which all channels' steps are farthest from the intervals' ends.
    """
    codes = np.abs(grid.codes, dtype=np.float64).reshape(-1, grid.step.size)
    if bits == 1:
        return (grid.codes * grid.step).astype(np.float32)
    top, half = _top_code(bits), 0.5 if bits == 8 else 1.0
    low = np.where(codes > 0, codes - _WITHIN * half, 0.0) / top
    high = np.where(codes > 0, np.minimum(codes + _WITHIN * half, top), 0.0) / top
    energy = np.maximum(np.square(codes).sum(0), 1.0)

    def latents(share, largest: float) -> np.ndarray:
        tanh = low + share * (high - low)
        tanh.flat[np.argmax(codes)] = 1.0
        return np.arctanh(np.tanh(largest) * tanh)

    def room(largest: float) -> float:
        ends = [(codes * latents(share, largest)).sum(0) / energy for share in (0.0, 1.0)]
        with np.errstate(divide="ignore"):
            return np.where(
                codes.any(0), np.minimum(grid.step / ends[0], ends[1] / grid.step), 9
            ).min()

    steps = grid.step[codes.any(0)] if codes.any() else np.ones(1)
    tried = np.geomspace(steps.min() * top / 2, min(steps.max() * top * 2, _LARGEST), 50)
    largest = max(tried, key=room)
    least, most = np.zeros(grid.step.size), np.ones(grid.step.size)
    for _ in range(40):
        share = (least + most) / 2
        is_less = (codes * latents(share, largest)).sum(0) / energy < grid.step
        least, most = np.where(is_less, share, least), np.where(is_less, most, share)
    latent = latents(share, largest).reshape(grid.codes.shape)
    return np.copysign(latent, grid.codes).astype(np.float32)


def sat_weights(
    kernel: tf.Tensor, bits: int, scale_adjust: bool = False, keep_scale: bool = False
) -> tf.Tensor:
    r"""Quantize a kernel to ``bits`` bits by scale-adjusted training.

    With :math:`M = \max|\tanh W|` over the whole tensor, :math:`R = 2^b - 1`:

    .. math::
        c &= \tanh(W) / M, \qquad Q = 2 \operatorname{rne}((c + 1) R / 2) / R - 1 \\
        W_{\text{eff}} &= Q / S, \qquad S = \sqrt{n_{\text{out}} \operatorname{Var}[Q]}
            \text{ with scale adjustment, else } 1 \\
        \partial W_{\text{eff}} / \partial W &= \operatorname{sech}^2(W) / (M S)

    Rounding is straight-through; M and S are constants in the backward pass. Up to 7 bits the
    levels are the odd integers from -R to R divided by R, without a zero, and at one bit
    :math:`W = 0` becomes -1. 8 bits use :math:`Q = \operatorname{rne}(127 c) / 127` instead, which
    fits an int8 and has a zero. 32 bits return the clamped :math:`c / S`, not rounded.

    With ``keep_scale``, :math:`1 / S_k = \langle W, Q \rangle_k / \langle Q, Q \rangle_k` for each
    output channel k, the factor that brings Q nearest to W; at one bit that of BWN, the mean of
    :math:`|W|` (Rastegari et al. 2016, arXiv 1603.05279).

    Args:
        kernel: float32 tensor, last axis the output channels.
        bits: 1 to 8, or 32.
        scale_adjust: Divide by S, so that the variance (Bessel corrected) is 1 / n_out, where
            n_out is the number of output channels times the spatial size. For a final dense layer
            only: batch norm undoes any scale elsewhere.
        keep_scale: Keep the scale of the weights, channel by channel. For trained layers that no
            batch norm follows.

    Returns:
        float32 tensor of the kernel's shape. An all-zero kernel gives the level nearest to zero; a
        NaN stays a NaN.
    """

    @tf.custom_gradient
    def quantize(kernel):
        (latent,) = values_of(kernel)
        if bits == 32:
            values = tf.tanh(latent) * _inverse(_largest(latent))
            scale = tf.ones(())
            if scale_adjust or keep_scale:
                scale = _projection(latent, values) if keep_scale else _rescaling(values)
                values = values * scale
        else:
            half_codes, step = _half_codes_and_step(latent, bits, scale_adjust, keep_scale)
            values = half_codes * (2.0 * step)  # exactly code * step: a factor of 2 loses no bit
            scale = step * _top_code(bits)

        def gradient(upstream):
            # tanh again instead of kept from the forward pass: a kernel's worth of memory less.
            # The dependency stops the graph optimizer from merging the two.
            with tf.control_dependencies([upstream]):
                tanh = tf.tanh(kernel)
            slope = tf.stop_gradient(scale * _inverse(_largest(kernel)))
            return tf.raw_ops.TanhGrad(y=tanh, dy=upstream) * slope

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
        keep_scale: Keep the scale of the weights; for trained layers that no batch norm follows.

    Raises:
        ValueError: ``bits`` is anything else, ``scale_adjust`` or ``keep_scale`` is not a boolean,
            or both are true.
    """

    def __init__(
        self, bits: int = 1, scale_adjust: bool = False, keep_scale: bool = False, **kwargs
    ):
        for name, value in (("scale_adjust", scale_adjust), ("keep_scale", keep_scale)):
            if not isinstance(value, bool):
                raise ValueError(f"Expected {name} to be a boolean. Received: {value!r}.")
        if scale_adjust and keep_scale:
            raise ValueError(
                "Expected scale_adjust or keep_scale, or none of them: they set the same factor. "
                "Received: both."
            )
        super().__init__(check_bits(bits), **kwargs)
        self.scale_adjust = scale_adjust
        self.keep_scale = keep_scale

    @property
    def of_channels(self):
        return self.keep_scale

    def quantize(self, values, training=None):
        return sat_weights(values, self.bits, self.scale_adjust, self.keep_scale)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        half_codes, step = _half_codes_and_step(
            kernel, self.bits, self.scale_adjust, self.keep_scale
        )
        return WeightGrid((2.0 * half_codes).numpy().astype(np.int16), step.numpy())

    def latent(self, grid: WeightGrid) -> np.ndarray:
        if self.keep_scale:
            return meeting_step(self, _with_scales(grid, self.bits), grid)
        # Undoes the clamp, tanh(W) / max|tanh(W)|, where the largest weight is 1.
        largest = max(np.abs(grid.codes).max(initial=1), 1)
        return np.arctanh(grid.codes / largest * np.tanh(1.0)).astype(np.float32)

    def get_config(self):
        settings = {"scale_adjust": self.scale_adjust, "keep_scale": self.keep_scale}
        return {**super().get_config(), **settings}
