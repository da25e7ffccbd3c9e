"""ABC-Net: weights and activations as sums of binary bases.

Lin et al., "Towards accurate binary convolutional neural network", NeurIPS 2017 (arXiv 1711.11294).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import (
    ActivationQuantizer,
    NoGrid,
    WeightGrid,
    WeightQuantizer,
    check_widths,
)
from dlqat_tf.quantizers.free_levels import ActivationPlanes, least_squares, weighted_sum
from dlqat_tf.quantizers.pact import AtLeast
from dlqat_tf.quantizers.state import SMALLEST, positive
from dlqat_tf.quantizers.ste import per_filter, signs, straight_through

_WIDTHS = (1, 2, 3, 4, 5)
_DAMPING = 1e-6  # two bases may be equal


def _shifts(count: int) -> np.ndarray:
    return np.asarray(np.linspace(-1, 1, count) if count > 1 else [0.0], np.float32)


def _bases(kernel: tf.Tensor, count: int) -> list[tf.Tensor]:
    axes, size = per_filter(kernel)
    mean = tf.reduce_sum(kernel, axes) * (1.0 / size)
    centred = kernel - mean
    deviation = tf.sqrt(tf.reduce_sum(centred * centred, axes) * (1.0 / size))
    return [signs(centred + shift * deviation) for shift in _shifts(count)]


def _factors(kernel: tf.Tensor, bases: list[tf.Tensor]) -> list[tf.Tensor]:
    channels = kernel.shape[-1]
    flat = [tf.reshape(each, [-1, channels]) for each in (kernel, *bases)]
    start = tf.zeros([len(bases), channels])
    return tf.unstack(least_squares(flat[0], flat[1:], start, _DAMPING))


def abcnet_weights(kernel: tf.Tensor, count: int) -> tf.Tensor:
    r"""Return a kernel's approximation by binary bases, for each output channel by itself.

    .. math::
        Q = \sum_i \alpha_i B_i, \qquad
        B_i = \operatorname{sign}(W - \operatorname{mean} W + u_i \operatorname{std} W), \qquad
        u_i = -1 + 2 (i - 1) / (M - 1) \\
        \alpha = \arg\min \lVert W - Q \rVert^2, \qquad
        \partial Q / \partial W = \sum_i \alpha_i

    Of one basis u = 0, and sign(0) = 1. The factors are constants in the backward pass, which goes
    through each sign as through the identity.

    Args:
        kernel: float32 tensor, last axis the output channels.
        count: M, the number of bases.

    Returns:
        float32 tensor of the kernel's shape.
    """
    bases = _bases(kernel, count)
    factors = _factors(kernel, bases)
    return straight_through(kernel, weighted_sum(bases, factors), tf.add_n(factors))


@register_alias("abcnet_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class ABCNetWeights(WeightQuantizer):
    """ABC-Net's weight quantizer; see :func:`abcnet_weights` for the formulas.

    Args:
        bits: Number of binary bases, 1 to 5, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("ABC-Net of weights", bits, _WIDTHS), **kwargs)

    def quantize(self, values, training=None):
        return values if self.bits == 32 else abcnet_weights(values, self.bits)

    def grid(self, kernel) -> WeightGrid:
        planes = self.planes(kernel)
        if self.bits > 1:
            raise NoGrid(
                f"ABCNetWeights(bits={self.bits}) has levels with free factors of each output "
                "channel."
            )
        ((sign, scale),) = planes
        negative = scale < 0
        return WeightGrid(np.where(negative, -sign, sign).astype(np.int16), np.abs(scale))

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        kernel = self._checked(kernel)
        bases = _bases(kernel, self.bits)
        factors = _factors(kernel, bases)
        return [
            (basis.numpy().astype(np.int8), factor.numpy())
            for basis, factor in zip(bases, factors, strict=True)
        ]


@register_alias("abcnet_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class ABCNetActivations(ActivationQuantizer):
    r"""ABC-Net's activation quantizer in place of a ReLU: binary, shifted, with trained factors.

    .. math::
        y = \sum_n \beta_n A_n, \qquad A_n = \operatorname{sign}(x + v_n - 1/2) \\
        \partial y / \partial x = \sum_n \beta_n 1[0 \le x + v_n \le 1], \qquad
        \partial y / \partial v_n = \beta_n 1[0 \le x + v_n \le 1], \qquad
        \partial y / \partial \beta_n = A_n

    with sign(0) = -1. Shifts v start evenly inside (-1, 1) and factors at 1 / N for N of
    them, which the paper leaves open; both are trained, and factors stay at or above 1e-6. 32 bits
    are a ReLU.

    Args:
        bits: Number of binary activations, 1 to 5, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("ABC-Net of activations", bits, _WIDTHS), **kwargs)
        self.shifts = self.factors = None

    def build(self, input_shape):
        if self.bits != 32:
            settings = dict(
                shape=(self.bits,), dtype=tf.float32, trainable=True, experimental_autocast=False
            )
            start = np.linspace(-1, 1, self.bits + 2)[1:-1]
            constant = tf.keras.initializers.Constant
            self.shifts = self.add_weight("shifts", initializer=constant(start), **settings)
            self.factors = self.add_weight(
                "factors",
                initializer=constant(1 / self.bits),
                constraint=AtLeast(SMALLEST),
                **settings,
            )
        super().build(input_shape)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        shifts = tf.unstack(tf.convert_to_tensor(self.shifts))
        factors = tf.unstack(positive(tf.convert_to_tensor(self.factors)))
        return weighted_sum([_binary(values, shift) for shift in shifts], factors)

    def grid(self):
        self._rounds(self.shifts is not None)
        raise NoGrid(f"ABCNetActivations(bits={self.bits}) has levels with free factors.")

    def planes(self) -> ActivationPlanes:
        self._rounds(self.shifts is not None)
        thresholds = np.float32(0.5) - np.asarray(tf.convert_to_tensor(self.shifts))
        ascending = np.sort(thresholds)
        # Between the n-th and the next threshold those are passed that are at most the n-th.
        passed = thresholds[:, None] <= np.concatenate([[-np.inf], ascending])[None, :]
        scales = positive(tf.convert_to_tensor(self.factors)).numpy()
        return ActivationPlanes(ascending, np.where(passed, 1, -1).astype(np.int8), scales)


def _binary(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return one shifted binary activation, with gradients by the values and the shift."""

    @tf.custom_gradient
    def binary(x, shift):
        def gradient(upstream):
            moved = tf.stop_gradient(x + shift)
            inside = tf.logical_and(moved >= 0, moved <= 1)
            passed = tf.where(inside, upstream, tf.zeros_like(upstream))
            return passed, tf.reduce_sum(passed)

        # Against the threshold, as files compare it: x + shift would be rounded.
        return -signs(tf.stop_gradient((0.5 - shift) - x)), gradient

    return binary(x, shift)
