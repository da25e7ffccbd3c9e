"""Weights on the int8 codes that a file holds for levels that lie on no grid."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import NoGrid, WeightGrid, WeightQuantizer, check_bits
from dlqat_tf.quantizers.ste import straight_through

_HIGHEST = 127


def int8_codes(quantizer: WeightQuantizer, kernel: np.ndarray) -> WeightGrid:
    """Return the int8 codes nearest to what a quantizer makes of a kernel.

    Args:
        quantizer: Of levels that are on no grid, or on one with codes beyond those of an int8.
        kernel: float32 latent weights, last axis the output channels.
    """
    try:
        grid = quantizer.grid(kernel)
    except NoGrid:
        grid = None
    return nearest_codes(np.asarray(quantizer(kernel), np.float32), grid)


def nearest_codes(values: np.ndarray, grid: WeightGrid | None = None) -> WeightGrid:
    """Return the int8 codes nearest to values, with a step for each output channel.

    Args:
        values: float32, last axis the output channels. Their largest magnitude becomes 127.
        grid: What the values are on, or None. Output channels keep its step where that loses less,
            in squares: nothing where an int8 holds their codes, else what is cut off.
    """
    largest = np.abs(values).max(axis=_axes(values))
    step = np.where(largest > 0, largest / np.float32(_HIGHEST), 1).astype(np.float32)
    if grid is not None:
        step = np.where(_lost(values, grid.step) < _lost(values, step), grid.step, step)
    return WeightGrid(_codes(values, step).astype(np.int16), step)


def _axes(values: np.ndarray) -> tuple[int, ...]:
    return tuple(range(values.ndim - 1))


def _codes(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values / step), -_HIGHEST, _HIGHEST)


def _lost(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.square(_codes(values, step) * step - values).sum(axis=_axes(values))


@register_alias("snapped_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class SnappedWeights(WeightQuantizer):
    r"""Rounds to the codes from -127 to 127 of fixed steps, with the gradient of the identity.

    Export puts it in the place of a method's quantizer whose levels no int8 grid holds, in the
    model that has the file's numbers. The steps, one for each output channel, are a variable.

    Args:
        bits: What the method's quantizer declared, 1 to 8.
    """

    def __init__(self, bits: int = 8, **kwargs):
        super().__init__(check_bits(bits, allow_float=False), **kwargs)
        self.step: tf.Variable | None = None

    def build(self, input_shape):
        self.step = self.add_weight(
            "step",
            shape=(input_shape[-1],),
            dtype=tf.float32,
            trainable=False,
            initializer="ones",
            experimental_autocast=False,
        )
        super().build(input_shape)

    def quantize(self, values, training=None):
        return straight_through(values, self._codes(values) * self.step)

    def _codes(self, values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.round(values / self.step), -_HIGHEST, _HIGHEST)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        if self.step is None:
            self.build(kernel.shape)
        return WeightGrid(
            self._codes(kernel).numpy().astype(np.int16),
            np.asarray(tf.convert_to_tensor(self.step)),
        )
