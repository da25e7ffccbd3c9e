"""Learned step size quantization.

Esser et al., "Learned step size quantization", ICLR 2020 (arXiv 1902.08153).
"""

from __future__ import annotations

import math

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
    in_training,
)
from dlqat_tf.quantizers.state import add_number, has_started, positive, start_once
from dlqat_tf.quantizers.ste import clip_and_round, features_of, straight_through, values_of


def learned_step(
    x: tf.Tensor, step: tf.Tensor, lowest: int, highest: int, count: tf.Tensor
) -> tf.Tensor:
    r"""Round to the multiples of a trainable step.

    With the codes :math:`l` to :math:`h`:

    .. math::
        y &= s \operatorname{rne}(\operatorname{clip}(x / s, l, h)) \\
        \partial y / \partial x &= 1 \text{ if } l < x / s < h \text{, else } 0 \\
        \partial y / \partial s &= g \cdot \begin{cases}
            \operatorname{rne}(x / s) - x / s & l < x / s < h \\
            l & x / s \le l \\ h & x / s \ge h \end{cases},
            \qquad g = 1 / \sqrt{N h}

    Args:
        x: float32 tensor of any shape.
        step: float32 scalar above zero.
        lowest: Lowest code, zero or negative.
        highest: Highest code, above zero.
        count: N, the number of weights, or of features of one image.

    Returns:
        float32 tensor of the shape of ``x``, exactly ``code * step``. NaN stays NaN.
    """

    @tf.custom_gradient
    def quantize(x, step):
        values, width = values_of(x, step)
        codes = tf.round(tf.clip_by_value(values / width, lowest, highest))

        def gradient(upstream):
            scaled, constant = tf.stop_gradient(x / step), tf.stop_gradient(codes)
            inside = tf.logical_and(scaled > lowest, scaled < highest)
            from_x = tf.where(inside, upstream, tf.zeros_like(upstream))
            slope = constant - tf.where(inside, scaled, tf.zeros_like(scaled))
            return from_x, tf.reduce_sum(upstream * slope) * _gradient_scale(count, highest)

        return codes * width, gradient

    return quantize(x, step)


def _gradient_scale(count: tf.Tensor, highest: int) -> tf.Tensor:
    return tf.math.rsqrt(tf.cast(count, tf.float32) * highest)


def _initial(values: tf.Tensor, highest: int) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(values)) * (2.0 / math.sqrt(highest))


@register_alias("lsq_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LSQWeights(WeightQuantizer):
    r"""LSQ's weight quantizer; see :func:`learned_step` for the formulas.

    Codes from :math:`-2^{b-1}` to :math:`h = 2^{b-1} - 1`, one step for the kernel. The step starts
    in the first training step from the kernel of that moment, :math:`2 \operatorname{mean}|W| /
    \sqrt h`, and until then follows the kernel. It and whether it has started are variables in the
    model file. It stays at or above 1e-6, which the paper leaves open.

    Args:
        bits: 2 to 8, or 32 for weights that are not rounded. One bit has no code above zero.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_widths("LSQ of weights", bits, tuple(range(2, 9))), **kwargs)
        self.step: tf.Variable = None  # both from `build` on
        self.started: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            self.step, self.started = add_number(self, "step", trainable=True)
        super().build(input_shape)

    @property
    def highest(self) -> int:
        """Highest integer code."""
        return 2 ** (self.bits - 1) - 1

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        top = self.highest
        step = start_once(self.step, self.started, lambda: _initial(values, top), training)
        return learned_step(values, step, -top - 1, top, values.shape.num_elements())

    def grid(self, kernel) -> WeightGrid:
        kernel = self._checked(kernel)
        top = self.highest
        if has_started(self.started):
            step = tf.convert_to_tensor(self.step)
        else:
            step = positive(_initial(kernel, top))
        codes = tf.round(tf.clip_by_value(kernel / step, -top - 1, top))
        return WeightGrid(codes.numpy().astype(np.int16), step.numpy())


@register_alias("lsq_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LSQActivations(ActivationQuantizer):
    r"""LSQ's activation quantizer in place of a ReLU; see :func:`learned_step` for the formulas.

    Codes from 0 to :math:`h = 2^b - 1`, one step for the layer, N the features of one image. The
    step starts in the first training step from its batch, rectified, :math:`2 \operatorname{mean}
    \max(x, 0) / \sqrt h`; before, each batch is rounded by its own and there is no ``grid``. It and
    whether it has started are variables in the model file. 32 bits are a ReLU.

    In training h steps are a range, as of :class:`~dlqat_tf.CGPACT`, whose kernels take one pass
    over memory: outputs are those of inference up to the last place.

    Args:
        bits: 1 to 8, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_bits(bits), **kwargs)
        self.step: tf.Variable = None  # both from `build` on
        self.started: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            self.step, self.started = add_number(self, "step", trainable=True)
        super().build(input_shape)

    @property
    def scaled_step(self):
        return None if self.step is None else (self.step, 1)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        highest = 2**self.bits - 1
        step = start_once(
            self.step, self.started, lambda: _initial(tf.nn.relu(values), highest), training
        )
        count = features_of(values)
        if not in_training(training):
            return learned_step(values, step, 0, highest, count)
        # The same, with a range of h steps, by fewer passes over memory.
        step = straight_through(step, step, _gradient_scale(count, highest))
        return clip_and_round(values, step * highest, self.bits, open_ended=True, fused=True)

    def grid(self) -> ActivationGrid:
        self._rounds(has_started(self.started))
        return ActivationGrid(0, 2**self.bits - 1, np.float32(self.step.numpy()))
