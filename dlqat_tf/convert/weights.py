"""The arithmetic of carrying weights over: latents, factors, batch norms, class vectors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf.methods import Method, clamps
from dlqat_tf.quantizers import DepthwiseWeights, TransposedWeights, WeightQuantizer

_layers = tf.keras.layers
_REACH = 1.0  # largest latent weight: beyond it the slope of tanh is less than 0.42


def unit(vectors: np.ndarray, axis: int) -> np.ndarray:
    """Return vectors of length one, zeros where they are zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-12)


def latents(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the latents that the SAT clamp turns into ``kernel`` over its maximum on ``axes``."""
    largest = np.abs(kernel).max(axis=axes, keepdims=True)
    reach = np.tanh(min(largest.max(), _REACH))
    return np.arctanh(kernel / np.where(largest > 0, largest, 1.0) * reach).astype(np.float32)


def kernel_of(layer: tf.keras.layers.Layer) -> tuple[tf.Variable, tuple[int, ...]]:
    """Return a layer's kernel and the axes of one output channel, of which depthwise ones have two.

    Args:
        layer: A convolution or dense layer, of Keras or of Larq.
    """
    if isinstance(layer, _layers.DepthwiseConv2D):
        return layer.depthwise_kernel, (0, 1)
    if isinstance(layer, _layers.Conv2DTranspose):
        return layer.kernel, (0, 1, 3)
    return layer.kernel, tuple(range(layer.kernel.shape.rank - 1))


def on_kernel_of(layer: tf.keras.layers.Layer, quantizer: WeightQuantizer) -> WeightQuantizer:
    """Return what rounds a layer's kernel so that a method finds output channels where they are.

    Where that makes no difference it is the method's own: SAT's clamp over all channels, what does
    not round, and on depthwise kernels whatever has no scale, mean or levels of each channel, or of
    one weight a channel, which has no deviation from its mean.

    Args:
        layer: A convolution or dense layer, of Keras or of Larq.
        quantizer: The method's.
    """
    if quantizer.bits == 32:
        return quantizer
    if isinstance(layer, _layers.Conv2DTranspose):
        # Export looks for the nearest codes of each output channel, whatever the method has.
        is_same = clamps(quantizer) and not quantizer.of_channels
        return quantizer if is_same else TransposedWeights(quantizer)
    if isinstance(layer, _layers.DepthwiseConv2D):
        is_one = tuple(layer.kernel_size) == (1, 1)
        return DepthwiseWeights(quantizer) if quantizer.of_channels and not is_one else quantizer
    return quantizer


def constraint_of(
    layer: tf.keras.layers.Layer, method: Method, bits: int
) -> tf.keras.constraints.Constraint | None:
    """Return a method's constraint of a hidden layer's latents, or None.

    Constraints are of several input channels, by the axis before the last. A depthwise kernel has
    one, and a transposed one has the output channels there.

    Args:
        layer: A convolution or dense layer, of Keras or of Larq.
        method: What rounds the kernel.
        bits: Its width.
    """
    has_others = isinstance(layer, (_layers.DepthwiseConv2D, _layers.Conv2DTranspose))
    if method.kernel_constraint is None or bits == 32 or has_others:
        return None
    return method.kernel_constraint()


def started(
    kernel: np.ndarray, axes: tuple[int, ...], quantizer: WeightQuantizer, constraint=None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents from which a method starts on a trained kernel, and what it makes of them.

    Args:
        kernel: float64, of the float model.
        axes: Those of one output channel.
        quantizer: What rounds it, not in use yet.
        constraint: Keras constraint of the latents, or None.
    """
    start = latents(kernel, axes) if clamps(quantizer) else np.float32(kernel)
    if constraint is not None:
        start = np.asarray(constraint(start))
    quantizer.start(start)
    return start, np.asarray(quantizer(start), np.float64)


def projection(kernel: np.ndarray, quantized: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the factors that bring ``quantized`` nearest to ``kernel``, one beyond ``axes``.

    Where that would be a negative one, as it may be of a method that takes the mean from a kernel,
    it is the one that gives ``quantized`` the length of ``kernel``: batch norms have no negative
    deviation, and a factor of zero would silence the channel.
    """
    norms = np.square(quantized).sum(axis=axes)
    divisor = np.where(norms > 0, norms, 1.0)
    nearest = (kernel * quantized).sum(axis=axes) / divisor
    equally_long = np.sqrt(np.square(kernel).sum(axis=axes) / divisor)
    return np.where((nearest > 0) | (norms == 0), nearest, equally_long)


def set_norm(made, source, scale, bias, mean=None, variance=None) -> None:
    """Let a batch norm compute of x what ``source`` computes of ``scale * x + bias``.

    Args:
        made: Norm to set, with gamma and beta where the source has them.
        source: Norm to read.
        scale: Zero or more, per channel; where it is zero gamma is.
        bias: Per channel.
        mean: Statistics of x to use, by default those that the source's are of x.
        variance: The same.
    """
    source_mean = np.asarray(source.moving_mean, np.float64)
    source_variance = np.asarray(source.moving_variance, np.float64)
    gain = np.asarray(source.gamma, np.float64) if source.scale else 1.0
    gain = gain / np.sqrt(source_variance + source.epsilon)
    offset = (np.asarray(source.beta, np.float64) if source.center else 0.0) - source_mean * gain
    alive = np.broadcast_to(scale, gain.shape) > 0
    if mean is None:
        divisor = np.where(alive, scale, 1.0)
        mean = np.where(alive, (source_mean - bias) / divisor, 0.0)
        variance = np.where(alive, source_variance / divisor**2, 1.0)
    made.moving_mean.assign(mean)
    made.moving_variance.assign(variance)
    gain, offset = gain * scale, offset + gain * bias
    if made.scale:
        made.gamma.assign(gain * np.sqrt(variance + made.epsilon))
    if made.center:
        made.beta.assign(offset + gain * mean)


def mixture_means(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    r"""Return means whose Gaussian mixture has the posterior of a softmax classifier.

    Scores :math:`f \cdot \mu_k - |\mu_k|^2 / 2` with :math:`\mu_k = w_k + c` differ from those of
    the classifier by a constant where :math:`w_k \cdot c + b_k + |w_k|^2 / 2` is the same for all
    classes: a linear system for c, solved exactly where the columns are independent, and in the
    sense of least squares elsewhere.
    """
    target = bias + np.square(kernel).sum(axis=0) / 2
    centred = kernel - kernel.mean(axis=1, keepdims=True)
    shift = np.linalg.lstsq(centred.T, target.mean() - target, rcond=None)[0]
    return kernel + shift[:, None]
