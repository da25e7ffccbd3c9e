"""Computes an activation again in the backward pass instead of keeping it since the forward pass.

A float network keeps two tensors for each convolution, batch norm and ReLU: batch norm's input and
the ReLU's output, which the next convolution reads. The gradient of a quantizer's range needs a
third one, the activation before rounding. Batch norm's output follows from its input by one
multiplication and addition per value, so it need not be the one that is kept.

It must be the same tensor, though. The sum of what rounding added is small beside the sums that it
is the difference of, and below float32 one rounding in another place moves it by percents. So only
what the same kernels compute of the same operands is computed again, and everything else is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_PASSED_ON = ("Identity", "IdentityN")  # a custom gradient's output is an IdentityN's
# Operations whose gradients read their (first) input, which therefore stays until then.
_KEEP_THEIR_INPUT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "FusedBatchNormV3")
# What stands between a layer's gradient and those of its readers.
_SUMMED = ("AddN", "AddV2", "Cast")
# The gradients of convolutions, each with that of its filter.
_OF_INPUTS = {
    "Conv2DBackpropInput": "Conv2DBackpropFilter",
    "DepthwiseConv2dNativeBackpropInput": "DepthwiseConv2dNativeBackpropFilter",
}

# Where an operation that is the call of a compiled function holds that function.
_REPLAY = "_dlqat_tf_replay"
# Where an operation holds its output as it was computed again: a residual branch is read twice in a
# row, by the gradient of what rounds the sum and by that of what rounds the branch.
_AGAIN = "_dlqat_tf_again"


def replayed(function: Callable[..., tf.Tensor], *arguments: tf.Tensor) -> tf.Tensor:
    """Return ``function(*arguments)``, which a backward pass may compute again.

    Args:
        function: A compiled function, whose call is one operation. It must hold no tensor of a
            graph: that would keep the graph alive.
        arguments: Its arguments; the first one may be computed again for it.
    """
    y = function(*arguments)
    if tf.is_symbolic_tensor(y):
        y.set_shape(arguments[0].shape)
        setattr(_source(y).op, _REPLAY, function)
    return y


@tf.autograph.experimental.do_not_convert  # it reads a graph, and writes none that depends on data
def rematerialize(x: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """Return the values of ``x``, computed from tensors that the backward pass reads anyway.

    Follows casts, quantizers of one kernel or loop, and one sum up to training-mode batch norms.
    Where that leads to a tensor that nobody else keeps, where ``x`` itself is kept, and outside of
    graphs (eager execution), it returns ``x``.

    Args:
        x: A tensor of the forward pass.
        after: A tensor of the backward pass: nothing is computed before it is there.

    Returns:
        A tensor of the shape and dtype of ``x``: bit for bit equal where TensorFlow's CPU kernels
        run, up to the rounding of a batch norm under XLA and on GPUs; or ``x`` itself.
    """
    if tf.is_symbolic_tensor(x) and not _is_kept(x) and _is_within_reach(x):
        with tf.control_dependencies([after]):
            return _again(x)
    return x


def after_filters(gradient: tf.Tensor) -> tf.Tensor:
    """Return ``gradient`` once the convolutions that it comes from have their filters' gradients.

    An executor of few threads goes on with what has become ready last, which are the layers below.
    All filters' gradients then wait until the end of the backward pass, and what they read, two
    tensors a convolution, is in memory at once.

    Args:
        gradient: Of a layer's output, which convolutions read.
    """
    if not tf.is_symbolic_tensor(gradient):
        return gradient
    filters = _filter_gradients(gradient.op)
    if not filters or gradient.graph is not tf.compat.v1.get_default_graph():
        return gradient
    with tf.control_dependencies(filters):
        return tf.identity(gradient)


def _filter_gradients(op: tf.Operation) -> list[tf.Operation]:
    """Return the filters' gradients beside those of the inputs that an operation sums."""
    if op.type in _PASSED_ON + _SUMMED:
        return [each for source in op.inputs for each in _filter_gradients(source.op)]
    if op.type not in _OF_INPUTS:
        return []
    upstream, kind = op.inputs[2], _OF_INPUTS[op.type]
    return [each for each in upstream.consumers() if each.type == kind]


def is_of_norm(x: tf.Tensor) -> bool:
    """Return whether ``x`` is what a training-mode batch norm outputs, in float32, in a graph."""
    if not tf.is_symbolic_tensor(x) or x.dtype != tf.float32:
        return False
    source = _source(x)
    return source.op.type == "FusedBatchNormV3" and source.op.get_attr("is_training")


def product_with_norm(x: tf.Tensor, values: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    r"""Return the sum of ``gradient * x`` for the output of a training-mode batch norm.

    With :math:`x = \gamma \hat x + \beta` that is the sum over channels of
    :math:`\gamma \, \partial \gamma + \beta \, \partial \beta`, of what the norm's gradient kernel
    sums anyway. The graph optimizer runs that once where ``gradient``, the very tensor, is all
    that goes on to the norm.

    Args:
        x: The output: see :func:`is_of_norm`.
        values: The same again, a constant for second derivatives.
        gradient: Tensor of its shape, the variable.

    Returns:
        float32 scalar.
    """
    op = _source(x).op
    source, scale, offset, *_ = op.inputs
    saved = {f"reserve_space_{i}": each for i, each in enumerate(op.outputs[3:], 1)}
    options = {name: op.get_attr(name) for name in ("epsilon", "data_format", "is_training")}

    @tf.custom_gradient
    def product(gradient):
        _, of_scale, of_offset, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=gradient, x=source, scale=scale, **saved, **options
        )
        total = tf.reduce_sum(scale * of_scale + offset * of_offset)
        return tf.stop_gradient(total), lambda upstream: upstream * values

    return product(gradient)


def _source(x: tf.Tensor) -> tf.Tensor:
    """Return the tensor that ``x`` is passed on from."""
    while x.op.type in _PASSED_ON:
        x = x.op.inputs[x.value_index]
    return x


def _is_within_reach(x: tf.Tensor, through_sums: bool = True) -> bool:
    """Return whether ``x`` follows from batch norms' inputs and other tensors that are kept."""
    source = _source(x)
    match source.op.type:
        case "FusedBatchNormV3":
            return source.op.get_attr("is_training") and source.value_index == 0
        case "Cast" | "QuantizeAndDequantizeV2":
            return _is_within_reach(source.op.inputs[0], through_sums)
        case "AddV2" if through_sums:
            # No sum of sums: the graph optimizer would add all terms in one operation, in an order
            # of its own, and a residual stream would be added up again from its start each time.
            reached = [_is_within_reach(each, through_sums=False) for each in source.op.inputs]
            kept = [_is_kept(each) for each in source.op.inputs]
            return any(reached) and all(map(max, reached, kept))
    return hasattr(source.op, _REPLAY) and _is_within_reach(source.op.inputs[0], through_sums)


def _is_kept(x: tf.Tensor) -> bool:
    for reader in x.consumers():
        if reader.type in _KEEP_THEIR_INPUT and reader.inputs[0] is x:
            return True
        if reader.type in _PASSED_ON:
            passed = zip(reader.inputs, reader.outputs, strict=True)
            if any(_is_kept(output) for each, output in passed if each is x):
                return True
    return False


def _again(x: tf.Tensor) -> tf.Tensor:
    op = _source(x).op
    again = getattr(op, _AGAIN, None)
    if again is None or again.graph is not tf.compat.v1.get_default_graph():
        again = _computed_again(op)
        setattr(op, _AGAIN, again)
    return again


def _computed_again(op: tf.Operation) -> tf.Tensor:
    match op.type:
        case "FusedBatchNormV3":
            return _batch_norm_again(op)
        case "Cast":
            return tf.cast(_again(op.inputs[0]), op.outputs[0].dtype)
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
    if hasattr(op, _REPLAY):
        return getattr(op, _REPLAY)(_again(op.inputs[0]), *op.inputs[1:])
    raise TypeError(f"{op.type} is out of reach.")


def _batch_norm_again(op: tf.Operation) -> tf.Tensor:
    """Return a training-mode batch norm's output by the inference kernel, in one pass."""
    x, scale, offset, *_ = op.inputs
    # Not outputs 1 and 2, which Keras lets the kernel mix with the moving averages.
    mean, saved = op.outputs[3:5]
    epsilon = op.get_attr("epsilon")
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=mean,
        variance=_variance(saved, epsilon),
        epsilon=epsilon,
        data_format=op.get_attr("data_format").decode(),
        is_training=False,
    ).y


def _variance(saved: tf.Tensor, epsilon: float) -> tf.Tensor:
    r"""Return the batch's variance from what the training kernel saved for its gradient kernel.

    On CPUs and TPUs that is the variance :math:`v`, on GPUs :math:`1 / \sqrt{v + \epsilon}`, and
    where a graph will run is not known while it is made. The gradient kernel knows what it reads:
    for one value 1 per channel, of mean 0 and upstream gradient 1, its gradient of the scale,
    :math:`\sum 1 \cdot (1 - 0) / \sqrt{v + \epsilon}`, is the inverse deviation on each device.
    """
    ones = tf.ones_like(saved)
    inverse = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=ones[None, None, None],
        x=ones[None, None, None],
        scale=ones,
        reserve_space_1=tf.zeros_like(saved),
        reserve_space_2=saved,
        reserve_space_3=0.0,  # a scalar is none
        epsilon=epsilon,
    ).scale_backprop
    return _which_variance(saved, inverse, epsilon)


def _which_variance(saved: tf.Tensor, inverse: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Return ``saved`` as it is where it is the variance of an inverse deviation."""
    is_variance = tf.abs(tf.square(inverse) * (saved + epsilon) - 1.0) < 1e-5
    return tf.where(is_variance, saved, 1.0 / tf.square(inverse) - epsilon)
