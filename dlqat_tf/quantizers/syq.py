"""SYQ: binary and ternary weights with a learned scale for each kernel position.

Faraone et al., "SYQ: Learning symmetric quantization for efficient deep neural networks", CVPR 2018
(arXiv 1807.00301).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import NoGrid, WeightGrid, WeightQuantizer, check_widths
from dlqat_tf.quantizers.state import add_number, has_started, positive, start_once
from dlqat_tf.quantizers.ste import signs

_THRESHOLD = 0.05  # of the largest magnitude


@register_alias("syq_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class SYQWeights(WeightQuantizer):
    r"""SYQ's weight quantizer, one trainable scale :math:`a_p` for each kernel position p.

    .. math::
        Q_p = a_p C_p, \qquad C = \operatorname{sign}(W) \text{ (1 bit)}, \qquad
        C = \operatorname{sign}(W) \, 1[|W| \ge 0.05 \max|W|] \text{ (2 bits, ternary)} \\
        \partial Q / \partial W = 1, \qquad
        \partial L / \partial a_p = \sum_{i \in p} C_i \, \partial L / \partial Q_i

    so the scales do not multiply the gradient of the weights, as in the authors' code; sign(0) = 1.
    Convolution kernels have their height times width scales, a dense kernel one. They start in the
    first training step from :math:`\operatorname{mean}|W_p|` of the kernel of that moment and
    follow it until then; they and whether they have started are variables in the model file.

    Args:
        bits: 1, 2 (ternary), or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("SYQ", bits, (1, 2)), **kwargs)
        self.scale: tf.Variable = None  # both from `build` on
        self.started: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            shape = (*input_shape[:-2], 1, 1)
            self.scale, self.started = add_number(self, "scale", shape, trainable=True)
        super().build(input_shape)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        scale = start_once(self.scale, self.started, lambda: _mean(values), training)
        codes = self._codes(values)

        @tf.custom_gradient
        def scaled(values, scale):
            def gradient(upstream):
                grouped = tf.reduce_sum(upstream * codes, [-2, -1], keepdims=True)
                return upstream, grouped

            return codes * tf.stop_gradient(scale), gradient

        return scaled(values, scale)

    def grid(self, kernel) -> WeightGrid:
        codes, scale = self._codes_and_scale(kernel)
        if scale.size > 1:
            raise NoGrid(
                f"SYQWeights has {scale.size} scales, one for each kernel position, which no "
                "equidistant grid holds."
            )
        return WeightGrid(codes.astype(np.int16), scale.reshape(()))

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        codes, scale = self._codes_and_scale(kernel)
        if self.bits == 2:
            raise ValueError("SYQWeights(bits=2) is ternary: its zero is in no binary plane.")
        return [(codes.astype(np.int8), scale)]

    def _codes(self, kernel: tf.Tensor) -> tf.Tensor:
        codes = signs(kernel)
        if self.bits == 2:
            magnitude = tf.abs(kernel)
            threshold = _THRESHOLD * tf.reduce_max(magnitude)
            codes = tf.where(magnitude < threshold, tf.zeros_like(codes), codes)
        return tf.stop_gradient(codes)

    def _codes_and_scale(self, kernel) -> tuple[np.ndarray, np.ndarray]:
        kernel = self._checked(kernel)
        if has_started(self.started):
            scale = tf.convert_to_tensor(self.scale)
        else:
            scale = positive(_mean(kernel))
        return self._codes(kernel).numpy(), scale.numpy()


def _mean(kernel: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(kernel), [-2, -1], keepdims=True)
