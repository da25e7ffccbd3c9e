r"""Straight-through primitives: pure functions with the gradient in each docstring.

A straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) computes a step function in the
forward pass and pretends in the backward pass that it was the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from dlqat_tf.quantizers.rematerialize import (
    after_filters,
    is_of_norm,
    product_with_norm,
    rematerialize,
)

# The bounds of the gradient kernel below are inclusive; these make them exclusive.
_ABOVE_ZERO = 1.1754944e-38  # the smallest normal float32
_JUST_BELOW = 1.0 - 2.0**-23  # times x: the next or second next float32 below x


def in_xla() -> bool:
    """Return whether XLA compiles what is being built, which not all kernels are known to."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def values_of(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Return tensors for the forward pass of a custom gradient, of which no derivative is taken.

    Executing eagerly, ``tf.autodiff.ForwardAccumulator`` would take those of the operations inside
    for those of the whole. (In a graph it does so whatever is written here, as for every custom
    gradient of TensorFlow: make the accumulator outside of the ``tf.function``.)
    """
    return [tf.stop_gradient(each) if tf.executing_eagerly() else each for each in tensors]


@tf.custom_gradient
def ste_round(x: tf.Tensor) -> tf.Tensor:
    r"""Round to the nearest integer, half to even.

    .. math:: y = \operatorname{rne}(x), \qquad \partial y / \partial x = 1

    Args:
        x: Float tensor of any shape.

    Returns:
        Tensor of the shape and dtype of ``x``. NaN stays NaN.
    """
    (values,) = values_of(x)
    return tf.round(values), lambda upstream: upstream


def straight_through(x: tf.Tensor, values: tf.Tensor, slope: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Return ``values`` as they are, with the derivative ``slope`` by ``x`` and none by anything.

    Args:
        x: Float tensor that the gradient goes to.
        values: Tensor of the same shape, the outputs.
        slope: Derivative, a number or a tensor that broadcasts to ``x``.
    """
    values, slope = tf.stop_gradient(values), tf.stop_gradient(slope)

    @tf.custom_gradient
    def replace(x):
        return tf.identity(values), lambda upstream: upstream * slope

    return replace(x)


def signs(x: tf.Tensor) -> tf.Tensor:
    """Return +1 where ``x`` is zero or above and -1 below, without a gradient; NaN stays NaN."""
    return tf.stop_gradient(2.0 * tf.math.floor(0.5 * tf.sign(x)) + 1.0)


def power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """Return 2^exponent exactly, for float32 integers from -126 to 127."""
    return tf.bitcast((tf.cast(exponent, tf.int32) + 127) * 2**23, tf.float32)


def per_filter(kernel: tf.Tensor) -> tuple[list[int], int]:
    """Return the axes of one output channel's weights, and how many weights that are."""
    axes = list(range(kernel.shape.rank - 1))
    return axes, int(kernel.shape[:-1].num_elements() or 1)


def features_of(values: tf.Tensor) -> tf.Tensor:
    """Return how many values an image has, an int32 scalar, of activations (images, ...)."""
    return tf.reduce_prod(tf.shape(values)[1:])


class Codes(NamedTuple):
    """The integers that values are rounded to, from the lowest to the highest; zero is one."""

    lowest: int
    highest: int


def codes_of(bits: int, signed: bool = False, zero_point: int = 0) -> Codes:
    """Return the codes of ``bits`` bits.

    Args:
        bits: Bit width, 1 to 8 (2 to 8 when signed).
        signed: Whether there are as many codes below zero as above, at 8 bits all of int8.
        zero_point: Else, how many codes are below zero.
    """
    if signed:
        highest = 2 ** (bits - 1) - 1
        return Codes(-128 if bits == 8 else -highest, highest)
    return Codes(-zero_point, 2**bits - 1 - zero_point)


def divide_exactly(x: tf.Tensor, divisor: int) -> tf.Tensor:
    """Return float32 ``x / divisor`` rounded once, whoever computes it.

    In a graph TensorFlow replaces the division by a constant by a product with its reciprocal. That
    is one unit in the last place off, so a step would differ between `model.predict` and `grid`.
    """
    return tf.cast(tf.cast(x, tf.float64) / divisor, tf.float32)


def lowest_of(alpha: tf.Tensor, codes: Codes) -> tf.Tensor:
    """Return the lower end of a range whose upper one is ``alpha``."""
    return alpha * (codes.lowest / codes.highest) if codes.lowest else tf.zeros_like(alpha)


def rounded(x: tf.Tensor, alpha: tf.Tensor, codes: Codes) -> tf.Tensor:
    """Return the values of :func:`clip_and_round`, by elementwise operations."""
    step = divide_exactly(alpha, codes.highest)
    clipped = tf.clip_by_value(x, lowest_of(alpha, codes), alpha)
    return tf.round(clipped * (codes.highest / alpha)) * step


def round_to_range(x: tf.Tensor, alpha: tf.Tensor, codes: Codes, *, fused: bool) -> tf.Tensor:
    """Return the values of :func:`clip_and_round`, by one kernel where ``fused`` and it has one."""
    signed = codes.lowest < 0
    bits = codes.highest.bit_length() + signed
    has_kernel = codes in (codes_of(bits), codes_of(bits, signed=True))
    if not fused or not has_kernel:
        return rounded(x, alpha, codes)
    return tf.raw_ops.QuantizeAndDequantizeV2(
        input=x,
        # The kernel widens a range of +-alpha to -128 steps where it is not narrow.
        input_min=-alpha if signed else tf.zeros_like(alpha),
        input_max=alpha,
        signed_input=signed,
        num_bits=bits,
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=codes.lowest == -codes.highest,
    )


def clip_and_round(
    x: tf.Tensor,
    alpha: tf.Tensor,
    bits: int,
    *,
    signed: bool = False,
    zero_point: int = 0,
    calibrated: bool = True,
    open_ended: bool = False,
    fused: bool = False,
) -> tf.Tensor:
    r"""Clip to a trainable range and round to ``bits`` bits.

    With the codes from :math:`-z` to :math:`h = 2^b - 1 - z`, where :math:`z` is the zero point, or
    from :math:`-h` to :math:`h = 2^{b-1} - 1` when signed, and :math:`\Delta = \alpha / h`:

    .. math::
        y &= \Delta \operatorname{rne}(\operatorname{clip}(x, l, \alpha) / \Delta),
            \qquad l = -z \Delta \text{, or } -\alpha \text{ when signed} \\
        \partial y / \partial x &= 1 \text{ if } l \le x \le \alpha
            \text{ (} l < x \text{ where } l = 0 \text{), else } 0 \\
        \partial y / \partial \alpha &= 1 \text{ if } x \ge \alpha \text{; }
            l / \alpha \text{ if } x \le l \text{; else } (y - x) / \alpha

    that is, what autodiff yields for :math:`\alpha \operatorname{STE}(\operatorname{clip}(x, l,
    \alpha) / \alpha)`. Without ``calibrated`` the last case is 0. Signed with 8 bits the lowest
    code is -128 and :math:`l = -128 \Delta`: all of int8, whose saturation then is the clip.
    Between its jumps y is linear in x and :math:`\alpha`: its own second derivatives are zero.

    Args:
        x: float32 tensor of any shape.
        alpha: float32 scalar above zero, the range in units of ``x``.
        bits: Bit width, 1 to 8 (2 to 8 when signed).
        signed: Whether there are as many codes below zero as above.
        zero_point: How many codes are below zero where it is not ``signed``, 0 to 2^bits - 2.
        calibrated: Whether values inside the range move ``alpha``.
        open_ended: Whether no gradient goes to values at an end of the range.
        fused: Compute the same values by one kernel in one pass over memory (a ReLU takes one too),
            instead of four elementwise operations; with a zero point there is none. For training:
            the TFLite converter turns that kernel into an operation that its interpreter cannot
            run below 8 bits.

    Returns:
        float32 tensor of the shape of ``x``, exactly ``code * (alpha / h)``. NaN stays NaN.
    """
    codes = codes_of(bits, signed, zero_point)
    # XLA compiles a function's gradient with it, which may be built after it, elsewhere.
    where_between = _where_between_in_xla if in_xla() else _where_between

    @tf.custom_gradient
    def quantize(x, alpha):
        values, limit = values_of(x, alpha)
        y = round_to_range(values, limit, codes, fused=fused)

        def gradient(upstream):
            upstream = after_filters(upstream)
            before, after = (rematerialize(each, upstream) if fused else each for each in (x, y))
            # Between its jumps y is linear in x and alpha, so that a second derivative has only
            # the upstream gradient for a variable.
            operands = before if calibrated else after, after, alpha
            inner, outer, limit = map(tf.stop_gradient, operands)
            # Outside the range y is alpha, l or 0, so the sum over the outside of
            # upstream * (y / alpha) is the sum over everything less the sum over the inside.
            low = lowest_of(limit, codes) if codes.lowest else _ABOVE_ZERO
            inside_low = low * _JUST_BELOW if codes.lowest else _ABOVE_ZERO
            # One after the other, so that each product overwrites an operand that is not needed
            # any more, and nothing of this waits while the layers below use the result.
            inside_end = limit * _JUST_BELOW
            of_norm = before is not x and before.op.type == "FusedBatchNormV3"
            # One mask for both: a float32 norm's values lie at an end by chance only.
            ends = (low, limit) if of_norm and not open_ended else (inside_low, inside_end)
            inside = from_x = where_between(upstream, before, *ends)
            by_norm = calibrated and fused and is_of_norm(x)
            if not by_norm:
                subtracted = tf.reduce_sum(inside * inner)
                with tf.control_dependencies([subtracted]):
                    if not (open_ended or of_norm):
                        from_x = where_between(upstream, before, low, limit)
                    from_x = tf.identity(from_x)
            with tf.control_dependencies([from_x]):
                everywhere = tf.reduce_sum(upstream * outer)
            with tf.control_dependencies([everywhere]):
                from_x = tf.identity(from_x)
            if by_norm:
                subtracted = product_with_norm(x, inner, from_x)
            return from_x, (everywhere - subtracted) / limit

        return y, gradient

    return quantize(x, alpha)


@tf.custom_gradient
def _where_between(upstream, x, low, high):
    """Return ``upstream`` where ``low <= x <= high``, else 0, as a function of ``upstream``."""
    upstream, x, low, high = map(tf.stop_gradient, (upstream, x, low, high))
    selected = tf.raw_ops.QuantizeAndDequantizeV4Grad(
        gradients=upstream, input=x, input_min=low, input_max=high
    )[0]
    return selected, lambda again: (_where_between(again, x, low, high), None, None, None)


def _where_between_in_xla(upstream, x, low, high):
    """Return the same where XLA compiles, which does not know that kernel.

    Other kernels take twice as long.
    """
    x, low, high = map(tf.stop_gradient, (x, low, high))
    return tf.where((x >= low) & (x <= high), upstream, 0.0)
