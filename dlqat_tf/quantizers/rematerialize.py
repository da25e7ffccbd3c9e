"""Computes an activation again in the backward pass instead of keeping it since the forward pass.

A float network keeps two tensors for each convolution, batch norm and ReLU: batch norm's input and
the ReLU's output, which the next convolution reads. The gradient of a quantizer's range needs a
third one, the activation before rounding. Batch norm's output follows from its input by one
multiplication and addition per value, so it need not be the one that is kept.
"""

from __future__ import annotations

import tensorflow as tf

_PASSED_ON = ("Identity", "IdentityN")  # a custom gradient's output is an IdentityN's
# Operations whose gradients read their (first) input, which therefore stays until then.
_KEEP_THEIR_INPUT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "FusedBatchNormV3")


@tf.autograph.experimental.do_not_convert  # it reads a graph, and writes none that depends on data
def rematerialize(x: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """Return the values of ``x``, computed from tensors that the backward pass reads anyway.

    Follows sums, casts and fused quantizers up to training-mode batch norms. Where that leads to
    a tensor that nobody else keeps, and outside of graphs (eager execution), it returns ``x``.

    Args:
        x: A tensor of the forward pass.
        after: A tensor of the backward pass: nothing is computed before it is there.

    Returns:
        A tensor of the shape and dtype of ``x``, equal up to float rounding; or ``x`` itself.
    """
    if tf.is_symbolic_tensor(x) and _is_within_reach(x):
        with tf.control_dependencies([after]):
            return _again(x)
    return x


def _source(x: tf.Tensor) -> tf.Tensor:
    """Return the tensor that ``x`` is passed on from."""
    while x.op.type in _PASSED_ON:
        x = x.op.inputs[x.value_index]
    return x


def _is_within_reach(x: tf.Tensor) -> bool:
    """Return whether ``x`` follows from batch norms' inputs and other tensors that are kept."""
    source = _source(x)
    match source.op.type:
        case "FusedBatchNormV3":
            return source.op.get_attr("is_training") and source.value_index == 0
        case "Cast" | "QuantizeAndDequantizeV2":
            return _is_within_reach(source.op.inputs[0])
        case "AddV2":
            reached = [_is_within_reach(each) for each in source.op.inputs]
            kept = [_is_kept(each) for each in source.op.inputs]
            return any(reached) and all(map(max, reached, kept))
    return False


def _is_kept(x: tf.Tensor) -> bool:
    return any(
        reader.type in _KEEP_THEIR_INPUT and reader.inputs[0] is x for reader in x.consumers()
    )


def _again(x: tf.Tensor) -> tf.Tensor:
    source = _source(x)
    op = source.op
    match op.type:
        case "FusedBatchNormV3":
            return _batch_norm_again(op)
        case "Cast":
            return tf.cast(_again(op.inputs[0]), x.dtype)
        case "QuantizeAndDequantizeV2":
            names = ("signed_input", "num_bits", "range_given", "round_mode", "narrow_range")
            return tf.raw_ops.QuantizeAndDequantizeV2(
                input=_again(op.inputs[0]),
                input_min=op.inputs[1],
                input_max=op.inputs[2],
                **{name: op.get_attr(name) for name in names},
            )
        case "AddV2":
            first, second = (each if _is_kept(each) else _again(each) for each in op.inputs)
            return first + second
    raise TypeError(f"{op.type} is out of reach.")


def _batch_norm_again(op: tf.Operation) -> tf.Tensor:
    """Return a training-mode batch norm's output by the inference kernel, in one pass."""
    x, scale, offset, old_mean, old_variance = op.inputs
    mean, variance = op.outputs[1:3]
    # Keras lets the kernel update the moving averages: undo it for the statistics of the batch.
    factor = op.get_attr("exponential_avg_factor")
    if factor != 1.0:
        mean = (mean - (1.0 - factor) * old_mean) / factor
        variance = (variance - (1.0 - factor) * old_variance) / factor
    # These outputs are with Bessel's correction, the normalisation is without.
    count = tf.cast(tf.size(x) / tf.size(mean), tf.float32)
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance * (tf.maximum(count - 1.0, 1.0) / count),
        epsilon=op.get_attr("epsilon"),
        data_format=op.get_attr("data_format").decode(),
        is_training=False,
    ).y
