"""Kernels whose output channels are not their last axis, as any weight quantizer reads them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer


class _Reordered(WeightQuantizer):
    """Shows a kernel to another quantizer with the output channels last."""

    def __init__(self, quantizer: WeightQuantizer | dict, **kwargs):
        if isinstance(quantizer, dict):
            quantizer = tf.keras.layers.deserialize(quantizer)
        if not isinstance(quantizer, WeightQuantizer):
            raise ValueError(f"Expected a weight quantizer of dlqat_tf. Received: {quantizer!r}.")
        super().__init__(quantizer.bits, **kwargs)
        self.quantizer = quantizer
        self.phases = getattr(quantizer, "phases", 1)
        if hasattr(quantizer, "advance"):
            self.advance = lambda share, kernel: quantizer.advance(share, self.reordered(kernel))

    @property
    def of_channels_last(self):
        return self.quantizer

    def on_same_kernel(self, quantizer):
        return type(self)(quantizer)

    def _shape_for_other(self, shape) -> tf.TensorShape:
        """Return the shape of what :meth:`reordered` returns of a kernel of ``shape``."""
        raise NotImplementedError

    def _of_channels(self, step: np.ndarray, shape) -> np.ndarray:
        """Return a value of each channel in the shape that multiplies a kernel of ``shape``."""
        raise NotImplementedError

    def build(self, input_shape):
        self.quantizer.build(self._shape_for_other(input_shape))
        super().build(input_shape)

    def quantize(self, values, training=None):
        mode = self.quantizer.mode(training)
        return self.in_order(self.quantizer.quantize(self.reordered(values), mode), values.shape)

    def start(self, kernel):
        if not self.built:
            self.build(kernel.shape)
        self.quantizer.start(self.reordered(kernel))

    def grid(self, kernel) -> WeightGrid:
        grid = self.quantizer.grid(self.reordered(kernel))
        step = self._of_channels(grid.step, kernel.shape) if np.ndim(grid.step) else grid.step
        return WeightGrid(self.in_order(grid.codes, kernel.shape), step)

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (
                self.in_order(sign, kernel.shape),
                # Of each channel, or of all or of each position, which broadcast as they are.
                self._of_channels(scale, kernel.shape) if np.ndim(scale) == 1 else scale,
            )
            for sign, scale in self.quantizer.planes(self.reordered(kernel))
        ]

    def latent(self, grid: WeightGrid) -> np.ndarray:
        step = grid.step.ravel() if np.ndim(grid.step) else grid.step
        latent = self.quantizer.latent(WeightGrid(self.reordered(grid.codes), step))
        return self.in_order(latent, grid.codes.shape)

    def get_config(self):
        config = super().get_config()
        del config["bits"]
        return {**config, "quantizer": tf.keras.layers.serialize(self.quantizer)}


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class TransposedWeights(_Reordered):
    """Any weight quantizer on the kernel of a transposed convolution.

    Keras keeps such a kernel as (height, width, out, in), and quantizers take the last axis for the
    output channels. This one shows it to another with these last, whose formulas then hold as they
    are. Steps and scales for each output channel have the shape (out, 1), by which they multiply
    the codes.

    >>> quantizer = dlqat_tf.quantizers.TransposedWeights(dlqat_tf.BWNWeights())
    >>> layer = larq.layers.QuantConv2DTranspose(8, 3, kernel_quantizer=quantizer)

    Args:
        quantizer: A weight quantizer of this package of its own, or its configuration.

    Raises:
        ValueError: ``quantizer`` is none.
    """

    order = "transposed"

    def reordered(self, kernel):
        return channels_last(kernel)

    def in_order(self, values, shape):
        return channels_last(values)

    def _shape_for_other(self, shape):
        *positions, outputs, inputs = shape
        return tf.TensorShape([*positions, inputs, outputs])

    def _of_channels(self, step, shape):
        return step[:, None]


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class DepthwiseWeights(_Reordered):
    """Any weight quantizer on the kernel of a depthwise convolution.

    Keras keeps such a kernel as (height, width, in, multiplier) and quantizers take the last axis
    for the output channels, so that all filters of a multiplier would share a scale. This one shows
    it to another as the kernel of as many filters of one input channel, (height, width, 1, in *
    multiplier), of which each is an output channel. Steps and scales for each have the shape (in,
    multiplier), by which they multiply the codes.

    >>> quantizer = dlqat_tf.quantizers.DepthwiseWeights(dlqat_tf.HAWQWeights(4))
    >>> layer = larq.layers.QuantDepthwiseConv2D(3, depthwise_quantizer=quantizer)

    Args:
        quantizer: A weight quantizer of this package of its own, or its configuration.

    Raises:
        ValueError: ``quantizer`` is none.
    """

    order = "depthwise"

    def reordered(self, kernel):
        return _reshaped(kernel, self._shape_for_other(kernel.shape))

    def _shape_for_other(self, shape):
        *positions, inputs, multiplier = shape
        self.quantizer.groups = int(inputs)  # whether it is built, or asked before that
        return tf.TensorShape([*positions, 1, inputs * multiplier])

    def in_order(self, values, shape):
        return _reshaped(values, shape)

    def _of_channels(self, step, shape):
        return step.reshape(shape[-2:])


def channels_last(kernel):
    """Return (height, width, in, out) of a transposed convolution's (height, width, out, in).

    Of a tensor a tensor, and back by the same; of an array an array.
    """
    if _is_tensor(kernel):
        return tf.einsum("...oi->...io", tf.convert_to_tensor(kernel))
    return np.swapaxes(kernel, -1, -2)


def _reshaped(values, shape):
    """Return values of another shape: a tensor of a tensor, an array of an array."""
    return tf.reshape(values, shape) if _is_tensor(values) else np.reshape(values, shape)


def _is_tensor(values) -> bool:
    return tf.is_tensor(values) or isinstance(values, tf.Variable)
