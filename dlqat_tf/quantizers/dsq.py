"""Differentiable soft quantization: tanh steps with a learned range and sharpness.

Gong et al., "Differentiable soft quantization: bridging full-precision and low-bit neural
networks", ICCV 2019 (arXiv 1908.05033).
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import (
    ActivationGrid,
    ActivationQuantizer,
    WeightGrid,
    WeightQuantizer,
    check_bits,
    in_training,
)
from dlqat_tf.quantizers.calibration import optimal_range
from dlqat_tf.quantizers.one_loop import compiled
from dlqat_tf.quantizers.rematerialize import after_filters, rematerialize
from dlqat_tf.quantizers.state import add_number, has_started, positive, start_once
from dlqat_tf.quantizers.ste import (
    codes_of,
    divide_exactly,
    in_xla,
    round_to_range,
    values_of,
)

_START = 0.2  # of alpha
_LEAST, _MOST = 1e-3, 0.5  # of alpha


def hard_with_soft_gradient(
    x: tf.Tensor,
    high: tf.Tensor,
    alpha: tf.Tensor,
    bits: int,
    *,
    signed: bool = False,
    fused: bool = False,
) -> tf.Tensor:
    r"""Round to :math:`2^b` levels up to u, with the gradient of soft steps between them.

    They begin at l, which is zero or -u. With :math:`\Delta = (u - l) / n` for :math:`n = 2^b - 1`,
    i the interval of :math:`\operatorname{clip}(x, l, u)` and :math:`m_i` its middle:

    .. math::
        \varphi(x) = \frac{\tanh(k (x - m_i))}{1 - \alpha}, \qquad
        k = \frac 1 \Delta \ln(2 / \alpha - 1), \qquad
        Q_S(x) = l + \Delta \left(i + \frac{\varphi(x) + 1}{2}\right)

    so :math:`\varphi` is -1 and 1 at the ends of an interval, and steps are hard at
    :math:`\alpha = 0`. With :math:`D = \partial Q_S / \partial x`, zero outside of the range, and
    :math:`t = \tanh(k (x - m_i))` the derivatives are

    .. math::
        D &= \frac{k \Delta}{2} \frac{1 - t^2}{1 - \alpha} \qquad
        \partial Q_S / \partial u = \frac{Q_S - x D}{u} \\
        \partial Q_S / \partial \alpha &= \frac{\Delta}{2 (1 - \alpha)} \left(
            \frac{t}{1 - \alpha} - \frac{2 (x - m_i) (1 - t^2)}{\Delta \alpha (2 - \alpha)} \right)

    Args:
        x: float32 tensor of any shape.
        high: u, float32 scalar above zero.
        alpha: float32 scalar from 0 to 1.
        bits: 1 to 8.
        signed: Whether levels begin at -u, so that they are odd multiples of u / (2^b - 1).
        fused: Compute the values by one kernel or loop and the gradient by one loop, for training;
            see :func:`~dlqat_tf.quantizers.ste.clip_and_round`.

    Returns:
        float32 tensor of the shape of ``x``.
    """
    intervals, in_loop = 2**bits - 1, fused and not in_xla()

    @tf.custom_gradient
    def quantize(x, high, alpha):
        values, limit = values_of(x, high)
        if signed:
            levels = _looped_levels(intervals) if in_loop else _odd_levels(intervals)
            y = tf.ensure_shape(levels(values, divide_exactly(limit, intervals)), x.shape)
        else:
            y = round_to_range(values, limit, codes_of(bits), fused=fused)

        def gradient(upstream):
            upstream = after_filters(upstream)
            before = rematerialize(x, upstream) if fused else x
            backward = _looped(bits, signed) if in_loop else _soft_gradient(bits, signed)
            from_x, of_high, of_alpha = backward(upstream, before, high, alpha)
            from_x.set_shape(x.shape)
            width = (1.0 + signed) / intervals  # of an interval, in units of u
            from_alpha = tf.reduce_sum(of_alpha) * (0.5 * width * high / (1.0 - alpha))
            return from_x, tf.reduce_sum(of_high) * width, from_alpha

        return y, gradient

    return quantize(x, high, alpha)


def _soft_gradient(bits: int, signed: bool):
    """Return a function: what goes to x, what each value adds to the gradients of u and alpha.

    The former in intervals, the latter in half intervals times 1 - alpha.
    """
    intervals = 2**bits - 1
    start = -0.5 * intervals if signed else 0.0  # of the range, in intervals

    def gradient(upstream, x, high, alpha) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Products by scalars that are computed once: the loop has no division.
        sharpness, hardness = tf.math.log(2.0 / alpha - 1.0), 1.0 - alpha
        low, per_interval = (-high, 0.5 * intervals / high) if signed else (0.0, intervals / high)
        scaled = tf.clip_by_value(x * per_interval, start, start + intervals)
        middle = tf.minimum(tf.floor(scaled - start), intervals - 1.0) + (0.5 + start)
        position = scaled - middle
        bent = tf.tanh(sharpness * position)
        falling = 1.0 - tf.square(bent)
        inside = tf.where((x >= low) & (x <= high), upstream, tf.zeros_like(upstream))
        from_x = inside * (falling * (0.5 * sharpness / hardness))
        of_high = upstream * (middle + bent * (0.5 / hardness)) - from_x * scaled
        of_alpha = upstream * (
            bent * (1.0 / hardness) - falling * position * (2.0 / (alpha * (2.0 - alpha)))
        )
        return from_x, of_high, of_alpha

    return gradient


@functools.cache
def _looped(bits: int, signed: bool):
    return compiled(tf.float32, tf.float32, numbers=2)(_soft_gradient(bits, signed))


def _odd_levels(intervals: int):
    return lambda values, step: _odd_codes(values, step, intervals) * step


@functools.cache
def _looped_levels(intervals: int):
    return compiled(tf.float32)(_odd_levels(intervals))


class _Softness(tf.keras.constraints.Constraint):
    """Keeps alpha where the staircase is defined."""

    def __call__(self, value):
        return tf.clip_by_value(value, _LEAST, _MOST)


def _add_alpha(quantizer) -> tf.Variable:
    return quantizer.add_weight(
        "alpha",
        shape=(),
        dtype=tf.float32,
        trainable=True,
        initializer=tf.keras.initializers.Constant(_START),
        constraint=_Softness(),
        experimental_autocast=False,
    )


def _start(values: tf.Tensor, bits: int) -> tf.Tensor:
    return bits * tf.reduce_mean(tf.abs(values))


@register_alias("dsq_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class DSQWeights(WeightQuantizer):
    r"""DSQ's weight quantizer: the nearest of :math:`2^b` levels from -u to u.

    The gradient is that of :func:`hard_with_soft_gradient`, by the weights, by the range u and by
    alpha, which are both trained. The paper learns both ends of the range; here they are
    opposite numbers, so that levels are odd multiples of :math:`u / (2^b - 1)`. u starts in the
    first training step from :math:`b \operatorname{mean}|W|` of the kernel of that moment and
    follows it until then, alpha starts at 0.2 and stays from 0.001 to 0.5; the paper leaves these
    open. They, and whether u has started, are variables in the model file.

    Args:
        bits: 1 to 8, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_bits(bits), **kwargs)
        self.range = self.started = self.alpha = None

    def build(self, input_shape):
        if self.bits != 32:
            self.range, self.started = add_number(self, "range", trainable=True)
            self.alpha = _add_alpha(self)
        super().build(input_shape)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        limit = start_once(self.range, self.started, lambda: _start(values, self.bits), training)
        return hard_with_soft_gradient(
            values,
            limit,
            tf.convert_to_tensor(self.alpha),
            self.bits,
            signed=True,
            fused=in_training(training),
        )

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        top = 2**self.bits - 1
        if has_started(self.started):
            limit = tf.convert_to_tensor(self.range)
        else:
            limit = positive(_start(kernel, self.bits))
        step = divide_exactly(limit, top)
        return WeightGrid(_odd_codes(kernel, step, top).numpy().astype(np.int16), step.numpy())


def _odd_codes(values: tf.Tensor, step: tf.Tensor, top: int) -> tf.Tensor:
    """Return the nearest odd integers; at the middle between two, the upper one."""
    codes = 2.0 * tf.floor(0.5 * (values / step)) + 1.0
    return tf.clip_by_value(codes, -top, top)


@register_alias("dsq_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class DSQActivations(ActivationQuantizer):
    r"""DSQ's activation quantizer in place of a ReLU: codes from 0 to :math:`2^b - 1` up to u.

    As :class:`DSQWeights`, with the lower end of the range at zero. u starts from the first batch,
    before which each batch is rounded by its own and there is no ``grid``. In
    :func:`dlqat_tf.quantize` it starts where it loses least on the images. 32 bits are a ReLU.

    Args:
        bits: 1 to 8, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_bits(bits), **kwargs)
        self.range: tf.Variable = None  # all three from `build` on
        self.started: tf.Variable = None
        self.alpha: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            self.range, self.started = add_number(self, "range", trainable=True)
            self.alpha = _add_alpha(self)
        super().build(input_shape)

    @property
    def scaled_step(self):
        return None if self.range is None else (self.range, 2**self.bits - 1)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        limit = start_once(self.range, self.started, lambda: _start(values, self.bits), training)
        return hard_with_soft_gradient(
            values,
            limit,
            tf.convert_to_tensor(self.alpha),
            self.bits,
            fused=in_training(training),
        )

    def start(self, values):
        if self.bits != 32:
            self.range.assign(optimal_range(values, 0, 2**self.bits - 1))
            self.started.assign(1.0)

    def grid(self) -> ActivationGrid:
        self._rounds(has_started(self.started))
        top = 2**self.bits - 1
        return ActivationGrid(0, top, divide_exactly(self.range, top).numpy())
