"""Kernels of transposed convolutions, whose output channels are not their last axis."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer


def channels_last(kernel):
    """Return (height, width, in, out) of a transposed convolution's (height, width, out, in).

    Of a tensor a tensor, and back by the same; of an array an array.
    """
    if tf.is_tensor(kernel) or isinstance(kernel, tf.Variable):
        return tf.einsum("...oi->...io", tf.convert_to_tensor(kernel))
    return np.swapaxes(kernel, -1, -2)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class TransposedWeights(WeightQuantizer):
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

    def __init__(self, quantizer: WeightQuantizer | dict, **kwargs):
        if isinstance(quantizer, dict):
            quantizer = tf.keras.layers.deserialize(quantizer)
        if not isinstance(quantizer, WeightQuantizer):
            raise ValueError(f"Expected a weight quantizer of dlqat_tf. Received: {quantizer!r}.")
        super().__init__(quantizer.bits, **kwargs)
        self.quantizer = quantizer
        if hasattr(quantizer, "advance"):
            self.advance = lambda share, kernel: quantizer.advance(share, channels_last(kernel))

    is_transposed = True

    @property
    def of_channels_last(self):
        return self.quantizer

    def on_same_kernel(self, quantizer):
        return TransposedWeights(quantizer)

    def build(self, input_shape):
        *positions, outputs, inputs = input_shape
        self.quantizer.build(tf.TensorShape([*positions, inputs, outputs]))
        super().build(input_shape)

    def quantize(self, values, training=None):
        return channels_last(self.quantizer.quantize(channels_last(values), training))

    def grid(self, kernel) -> WeightGrid:
        grid = self.quantizer.grid(channels_last(kernel))
        return WeightGrid(channels_last(grid.codes), _of_channels(grid.step))

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        planes = self.quantizer.planes(channels_last(kernel))
        return [(channels_last(sign), _of_channels(scale)) for sign, scale in planes]

    def latent(self, grid: WeightGrid) -> np.ndarray:
        step = grid.step[..., 0] if np.ndim(grid.step) else grid.step
        return channels_last(self.quantizer.latent(WeightGrid(channels_last(grid.codes), step)))

    def get_config(self):
        config = super().get_config()
        del config["bits"]
        return {**config, "quantizer": tf.keras.layers.serialize(self.quantizer)}


def _of_channels(step: np.ndarray) -> np.ndarray:
    """Return what each output channel has in the shape that multiplies a transposed kernel."""
    return step[:, None] if np.ndim(step) == 1 else step
