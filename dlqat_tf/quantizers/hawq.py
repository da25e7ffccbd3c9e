"""HAWQ-V3's uniform quantizers.

Yao et al., "HAWQ-V3: Dyadic neural network quantization", ICML 2021 (arXiv 2011.10680), and
the authors' code for what the paper leaves open.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import (
    ActivationGrid,
    ActivationQuantizer,
    WeightGrid,
    WeightQuantizer,
    check_bits,
    check_widths,
)
from dlqat_tf.quantizers.state import add_number, has_started, positive, start_once
from dlqat_tf.quantizers.ste import divide_exactly, per_filter, straight_through

_MOMENTUM = 0.95


def _step(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    largest = tf.reduce_max(tf.abs(kernel), per_filter(kernel)[0])
    step = divide_exactly(largest, 2 ** (bits - 1) - 1)
    return tf.where(step > 0, step, tf.ones_like(step))


@register_alias("hawq_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class HAWQWeights(WeightQuantizer):
    r"""HAWQ-V3's weight quantizer: symmetric, with a step for each output channel.

    .. math::
        Q_o = \Delta_o \operatorname{rne}(W_o / \Delta_o), \qquad
        \Delta_o = \max|W_o| / (2^{b-1} - 1), \qquad \partial Q / \partial W = 1

    The step is a constant in the backward pass.

    Args:
        bits: 2 to 8, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    of_channels = True

    def __init__(self, bits: int = 4, **kwargs):
        super().__init__(check_widths("HAWQ-V3 of weights", bits, tuple(range(2, 9))), **kwargs)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        step = _step(values, self.bits)
        return straight_through(values, tf.round(values / step) * step)

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        step = _step(kernel, self.bits)
        return WeightGrid(tf.round(kernel / step).numpy().astype(np.int16), step.numpy())


@register_alias("hawq_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class HAWQActivations(ActivationQuantizer):
    r"""HAWQ-V3's activation quantizer in place of a ReLU, with a moving average as its range.

    .. math::
        y = \Delta \operatorname{rne}(\operatorname{clip}(x, 0, m) / \Delta), \qquad
        \Delta = m / (2^b - 1), \qquad
        \partial y / \partial x = 1 \text{ if } x > 0 \text{, else } 0

    Before each training step :math:`m \leftarrow 0.95 m + 0.05 \max x`; the first sets it to
    :math:`\max x`, and until then each batch is rounded by its own and there is no ``grid``. m and
    whether it has started are variables in the model file. 32 bits are a ReLU.

    Args:
        bits: 1 to 8, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 4, **kwargs):
        super().__init__(check_bits(bits), **kwargs)
        self.maximum: tf.Variable = None  # both from `build` on
        self.started: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            self.maximum, self.started = add_number(self, "maximum", trainable=False)
        super().build(input_shape)

    @property
    def scaled_step(self):
        return None if self.maximum is None else (self.maximum, 2**self.bits - 1)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        largest = tf.reduce_max(values)
        maximum = start_once(self.maximum, self.started, lambda: largest, training)
        if training is not None and (tf.is_tensor(training) or training):
            moved = _MOMENTUM * maximum + (1 - _MOMENTUM) * positive(largest)
            # A batch that diverged, or has no values, does not stay in it.
            moves = tf.logical_and(tf.cast(training, tf.bool), tf.math.is_finite(largest))
            maximum = tf.stop_gradient(tf.where(moves, moved, maximum))
            self.maximum.assign(maximum)
            maximum = tf.convert_to_tensor(self.maximum)
        step = divide_exactly(maximum, 2**self.bits - 1)
        rounded = tf.round(tf.clip_by_value(values / step, 0.0, 2.0**self.bits - 1)) * step
        return straight_through(values, rounded, tf.cast(values > 0, tf.float32))

    def grid(self) -> ActivationGrid:
        self._rounds(has_started(self.started))
        highest = 2**self.bits - 1
        return ActivationGrid(0, highest, divide_exactly(self.maximum, highest).numpy())
