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
from dlqat_tf.quantizers.latents import meeting_step
from dlqat_tf.quantizers.pact import AtLeast
from dlqat_tf.quantizers.state import SMALLEST, positive
from dlqat_tf.quantizers.ste import Codes, features_of, per_filter, signs, straight_through

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
    factors = least_squares(flat[0], flat[1:], start, _DAMPING)
    # A channel of zeros keeps a step above zero, which codes need.
    return tf.unstack(tf.where(tf.abs(factors) < 1e-20, 1e-20, factors))


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

    of_channels = True

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

    def latent(self, grid):
        return meeting_step(self, super().latent(grid), grid)

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
        y = \alpha \sum_n \beta_n B_n, \qquad
        B_n = [\operatorname{clip}(x / \alpha + v_n, 0, 1) > 1/2], \qquad
        \chi_n = [0 \le x / \alpha + v_n \le 1] \\
        \frac{\partial y}{\partial x} = \sum_n \beta_n \chi_n, \qquad
        \frac{\partial y}{\partial v_n} = g \alpha \beta_n \chi_n, \qquad
        \frac{\partial y}{\partial \beta_n} = g \alpha B_n, \qquad
        g = 1 / \sqrt{N}

    The paper has :math:`A_n = 2 B_n - 1`, which is the same up to a constant. The batch norm after
    a convolution takes a constant away, but in a network whose shortcuts pass activations on, as
    those after a ReLU do, it would move what every later quantizer sees; so zero is zero here. With
    it the gradient is as large as the steps are: for :math:`A_n` that of the clip is half of it,
    which 17 layers in a row make a thousandth.

    The paper's activations are bounded by 1. Those of a network that was trained without bounds
    are in units of :math:`\alpha`, which starts from images, as trained ranges do, and is not
    trained; elsewhere it is 1. In these units, M shifts and factors start as the rounding of
    :math:`\operatorname{clip}(x, 0, 1)` to M + 1 even levels, :math:`v_n = 1/2 - (n - 1/2) / M`
    and :math:`\beta_n = 1 / M`, which the paper leaves open. Both are trained, and factors stay at
    or above 1e-6. Each is one number for the N features of an image, so its gradient is scaled as
    that of LSQ's step (arXiv 1902.08153); as the sum over all of them it moved thresholds by their
    distance within a few steps. 32 bits are a ReLU.

    Args:
        bits: M, the number of binary activations, 1 to 5, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 1, **kwargs):
        super().__init__(check_widths("ABC-Net of activations", bits, _WIDTHS), **kwargs)
        self.shifts = self.factors = self.alpha = None

    def build(self, input_shape):
        if self.bits != 32:
            settings = dict(dtype=tf.float32, experimental_autocast=False)
            trained = dict(shape=(self.bits,), trainable=True, **settings)
            constant = tf.keras.initializers.Constant
            thresholds = (np.arange(self.bits) + 0.5) / self.bits
            self.shifts = self.add_weight(
                "shifts", initializer=constant(0.5 - thresholds), **trained
            )
            self.factors = self.add_weight(
                "factors",
                initializer=constant(1 / self.bits),
                constraint=AtLeast(SMALLEST),
                **trained,
            )
            self.alpha = self.add_weight(
                "alpha", shape=(), trainable=False, initializer="ones", **settings
            )
        super().build(input_shape)

    @property
    def range_of_images(self):
        return self.alpha

    @property
    def codes(self) -> Codes:
        """Lowest and highest of the codes that it starts with."""
        return Codes(0, self.bits)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        slope = tf.math.rsqrt(tf.cast(features_of(values), tf.float32))
        alpha = tf.convert_to_tensor(self.alpha)
        numbers = map(tf.convert_to_tensor, (self.shifts, self.factors))
        shifts, factors = (straight_through(each, each, slope) for each in numbers)
        bases = [_binary(values, shift, alpha) for shift in tf.unstack(shifts)]
        return weighted_sum(bases, tf.unstack(alpha * positive(factors)))

    def grid(self):
        self._rounds(self.shifts is not None)
        raise NoGrid(f"ABCNetActivations(bits={self.bits}) has levels with free factors.")

    def planes(self) -> ActivationPlanes:
        self._rounds(self.shifts is not None)
        alpha = tf.convert_to_tensor(self.alpha)
        thresholds = (alpha * (0.5 - tf.convert_to_tensor(self.shifts))).numpy()
        ascending = np.sort(thresholds)
        # Between the n-th and the next threshold those are passed that are at most the n-th.
        passed = thresholds[:, None] <= np.concatenate([[-np.inf], ascending])[None, :]
        scales = (alpha * positive(tf.convert_to_tensor(self.factors))).numpy()
        return ActivationPlanes(ascending, passed.astype(np.int8), scales)


def _binary(x: tf.Tensor, shift: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Return one shifted binary activation, with gradients by the values and the shift."""

    @tf.custom_gradient
    def binary(x, shift):
        def gradient(upstream):
            moved = tf.stop_gradient(x / alpha + shift)
            inside = tf.logical_and(moved >= 0, moved <= 1)
            passed = tf.where(inside, upstream, tf.zeros_like(upstream))
            return passed / alpha, tf.reduce_sum(passed)

        # Against the threshold, as files compare it: x / alpha + shift would be rounded.
        return 0.5 - 0.5 * signs(tf.stop_gradient(alpha * (0.5 - shift) - x)), gradient

    return binary(x, shift)
