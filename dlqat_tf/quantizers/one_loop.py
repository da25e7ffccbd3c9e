"""Clipping and rounding of 16-bit activations, each pass by one loop over memory.

TensorFlow's kernels for it take float32 alone, so that a network of 16 bits would write each
activation and each gradient in float32 and read them again, twice. XLA compiles one loop that
widens a value where it needs it. What XLA does badly on a CPU is the sum for the range, which is
left to TensorFlow's kernel.
"""

from __future__ import annotations

import functools

import tensorflow as tf
from tensorflow.python.eager import record

from dlqat_tf.quantizers.rematerialize import after_filters, rematerialize, replayed
from dlqat_tf.quantizers.ste import Codes, codes_of, in_xla, lowest_of, rounded

DTYPES = (tf.bfloat16, tf.float16)


def pays(x: tf.Tensor) -> bool:
    """Return whether :func:`clip_and_round_16` takes ``x`` and is the faster way."""
    return x.dtype in DTYPES and not in_xla()


def clip_and_round_16(
    x: tf.Tensor,
    alpha: tf.Tensor,
    bits: int,
    *,
    signed: bool = False,
    zero_point: int = 0,
    calibrated: bool = True,
) -> tf.Tensor:
    """Return :func:`~dlqat_tf.quantizers.ste.clip_and_round` of a 16-bit tensor, in its dtype.

    All is as if ``x`` was cast to float32 first and the output and its gradient cast back at the
    end: codes, step and masks are those of float32, and the gradient of ``alpha`` is summed in it.

    Args:
        x: bfloat16 or float16 tensor of any shape.
        alpha: float32 scalar above zero, the range in units of ``x``.
        bits: Bit width, 1 to 8 (2 to 8 when signed).
        signed: Whether there are as many codes below zero as above.
        zero_point: How many codes are below zero where it is not ``signed``, 0 to 2^bits - 2.
        calibrated: Whether values inside the range move ``alpha``.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    codes = codes_of(bits, signed, zero_point)

    @tf.custom_gradient
    def quantize(x, alpha):
        # A tape would have XLA keep all that the derivative of the loop needs.
        with record.stop_recording():
            y = replayed(_forward(x.dtype, codes), x, alpha)

        def gradient(upstream):
            upstream = after_filters(upstream)
            before = rematerialize(x, after=upstream)
            backward = _backward(x.dtype, codes, calibrated)
            from_x, from_alpha = backward(upstream, before, alpha)
            from_x.set_shape(x.shape)
            total = tf.reduce_sum(from_alpha) / tf.stop_gradient(alpha)
            # The backward pass goes on behind the sum: else, of few threads, all may go on first,
            # and every layer's float32 values would wait for theirs.
            with tf.control_dependencies([total]):
                return tf.identity(from_x), total

        return y, gradient

    return quantize(x, alpha)


@functools.cache
def _forward(dtype: tf.DType, codes: Codes):
    @compiled(dtype)
    def forward(x, alpha):
        return tf.cast(rounded(tf.cast(x, tf.float32), alpha, codes), dtype)

    return forward


@functools.cache
def _backward(dtype: tf.DType, codes: Codes, calibrated: bool):
    @compiled(dtype, dtype)
    def backward(upstream, x, alpha):
        """Return what goes to ``x``, and what each value adds to alpha's gradient, times alpha."""
        x, alpha = tf.stop_gradient(x), tf.stop_gradient(alpha)
        wide = tf.cast(x, tf.float32)
        y, low = rounded(wide, alpha, codes), lowest_of(alpha, codes)
        at_least = wide >= low if codes.lowest else wide > low
        from_x = tf.where(at_least & (wide <= alpha), upstream, tf.zeros_like(upstream))
        within = (wide > low) & (wide < alpha)
        moved = y - tf.where(within, wide if calibrated else y, 0.0)
        return from_x, tf.cast(upstream, tf.float32) * moved

    return backward


def compiled(*dtypes: tf.DType, numbers: int = 1):
    """Return a decorator for elementwise functions, which XLA compiles to loops over flat memory.

    Over four axes the CPU's compiler steps through memory by the channels where these are few, one
    value at a time, which takes twice to three times as long.

    Args:
        dtypes: Of the tensors of one and the same shape, any, that are the first arguments.
        numbers: How many float32 scalars follow.
    """
    # One trace for all shapes: of many, TensorFlow would warn.
    scalars = [tf.TensorSpec([], tf.float32)] * numbers
    flat, shaped = (
        [*(tf.TensorSpec(shape, dtype) for dtype in dtypes), *scalars] for shape in ([None], None)
    )

    def decorate(function):
        loop = tf.function(function, input_signature=flat, jit_compile=True, autograph=False)

        @tf.function(input_signature=shaped, autograph=False)
        @functools.wraps(function)
        def call(*arguments):
            tensors, scalars = arguments[: len(dtypes)], arguments[len(dtypes) :]
            shape = tf.shape(tensors[0])
            outputs = loop(*(tf.reshape(each, [-1]) for each in tensors), *scalars)
            return tf.nest.map_structure(lambda each: tf.reshape(each, shape), outputs)

        return call

    return decorate
