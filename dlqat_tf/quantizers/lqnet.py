"""LQ-Nets: levels on a basis that follows the data by least squares.

Zhang et al., "LQ-Nets: learned quantization for highly accurate and compact deep neural networks",
ECCV 2018 (arXiv 1807.10029).
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
from dlqat_tf.quantizers.calibration import optimal_range
from dlqat_tf.quantizers.free_levels import (
    ActivationPlanes,
    least_squares,
    planes_of,
    thresholds_of,
    weighted_sum,
)
from dlqat_tf.quantizers.state import positive
from dlqat_tf.quantizers.ste import straight_through

_WIDTHS = (1, 2, 3, 4)
_QUARTILE = 0.6745  # of a unit normal: half of its values are nearer to zero
_MOMENTUM = 0.9
_DAMPING = 1e-4
_ROUNDS, _REST = 50, 1e-3  # at most so many; at rest it moves by less than that share
_ROWS = 1000  # of a channel's weights


def _add_basis(quantizer, start: np.ndarray) -> tf.Variable:
    return quantizer.add_weight(
        "basis",
        shape=start.shape,
        dtype=tf.float32,
        trainable=False,
        initializer=tf.keras.initializers.Constant(start),
        aggregation=tf.VariableAggregation.MEAN,
        experimental_autocast=False,
    )


def _follow(basis: tf.Variable, new: tf.Tensor, training) -> None:
    """Move the basis by its moving average, in training."""
    if training is None or (not tf.is_tensor(training) and not training):
        return
    moved = _MOMENTUM * basis + (1 - _MOMENTUM) * tf.stop_gradient(new)
    finite = tf.reduce_all(tf.math.is_finite(moved))  # a batch that diverged does not stay in it
    use = tf.logical_and(tf.cast(training, tf.bool), finite)
    basis.assign(tf.where(use, moved, tf.convert_to_tensor(basis)))


def _at_rest(x: tf.Tensor, basis: tf.Tensor, planes_by: Callable[[tf.Tensor], list]) -> tf.Tensor:
    """Return the basis on which planes and least squares following each other come to rest.

    Args:
        x: float32 (values, channels).
        basis: float32 (planes, channels), where it starts.
        planes_by: Makes the planes of ``x`` by a basis.
    """
    for _ in range(_ROUNDS):
        new = least_squares(x, planes_by(basis), basis, _DAMPING)
        if not np.all(np.isfinite(new)):
            break
        moved = tf.reduce_max(tf.abs(new - basis) / positive(tf.abs(basis)))
        basis = new
        if moved < _REST:
            break
    return basis


@register_alias("lqnet_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LQNetWeights(WeightQuantizer):
    r"""LQ-Net's weight quantizer, a basis :math:`v` of b numbers for each output channel.

    .. math::
        Q = \sum_i v_i B_i, \qquad B_i \in \{-1, 1\}, \qquad \partial Q / \partial W = 1

    where B are those of the nearest of the :math:`2^b` levels. After each training step's
    forward pass the basis moves to that of the least squared error for these B,

    .. math::
        v \leftarrow 0.9 v + 0.1 (B^\top B / m + \delta I)^{-1} (B^\top W / m + \delta v), \qquad
        \delta = 10^{-4}

    for m weights. It starts at :math:`0.6745 \sqrt{2 / n} \, 2^i / 2^{b-1}` with n the kernel's
    positions times its output channels. Both are those of the authors' code, which has no m; delta
    then is too small for planes that are equal. The basis is in the model file.

    :func:`dlqat_tf.quantize`, which has a trained kernel, starts from the basis where this comes to
    rest on it.

    Args:
        bits: 1 to 4, or 32 for weights that are not rounded.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    of_channels = True

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_widths("LQ-Net of weights", bits, _WIDTHS), **kwargs)
        self.basis: tf.Variable = None  # from `build` on

    def build(self, input_shape):
        if self.bits != 32:
            channels = int(input_shape[-1])
            start = np.repeat(self._start(input_shape)[:, None], channels, axis=1)
            self.basis = _add_basis(self, start)
        super().build(input_shape)

    def _start(self, shape) -> np.ndarray:
        fan_out = math.prod(int(size) for size in shape[:-2]) * int(shape[-1]) // self.groups
        largest = _QUARTILE * math.sqrt(2 / fan_out)
        return np.array(
            [largest * 2.0 ** (i + 1 - self.bits) for i in range(self.bits)], np.float32
        )

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        basis = tf.convert_to_tensor(self.basis)
        planes = self._planes(values, basis)
        if training is not None and (tf.is_tensor(training) or training):
            flat = [tf.reshape(each, [-1, values.shape[-1]]) for each in (values, *planes)]
            _follow(self.basis, least_squares(flat[0], flat[1:], basis, _DAMPING), training)
        return straight_through(values, weighted_sum(planes, tf.unstack(basis)))

    @staticmethod
    def _planes(kernel: tf.Tensor, basis: tf.Tensor) -> list[tf.Tensor]:
        thresholds, planes = thresholds_of(basis, -1)
        return planes_of(kernel, tf.unstack(thresholds), planes)

    def start(self, kernel):
        if self.bits == 32:
            return
        if not self.built:
            self.build(kernel.shape)
        flat = tf.reshape(tf.constant(kernel, tf.float32), [-1, kernel.shape[-1]])
        flat = flat[:: -(-len(flat) // _ROWS)]
        deviation = positive(tf.sqrt(tf.reduce_mean(tf.square(flat), 0)))
        powers = 2.0 ** (np.arange(self.bits, dtype=np.float32) + 1 - self.bits)
        start = _QUARTILE * deviation * powers[:, None]
        self.basis.assign(_at_rest(flat, start, lambda basis: self._planes(flat, basis)))

    def grid(self, kernel) -> WeightGrid:
        planes = self.planes(kernel)
        if self.bits > 1:
            raise NoGrid(
                f"LQNetWeights(bits={self.bits}) has levels on a free basis of each output channel."
            )
        ((sign, scale),) = planes
        negative = scale < 0
        return WeightGrid(np.where(negative, -sign, sign).astype(np.int16), np.abs(scale))

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        kernel = self._checked(kernel)
        if self.basis is None:
            start = self._start(kernel.shape)[:, None]
            basis = tf.constant(np.repeat(start, kernel.shape[-1], axis=1))
        else:
            basis = tf.convert_to_tensor(self.basis)
        planes = self._planes(kernel, basis)
        return [
            (plane.numpy().astype(np.int8), scale.numpy())
            for plane, scale in zip(planes, tf.unstack(basis), strict=True)
        ]


@register_alias("lqnet_activations")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LQNetActivations(ActivationQuantizer):
    r"""LQ-Net's activation quantizer in place of a ReLU, a basis of b numbers for the layer.

    .. math::
        y = \sum_i v_i B_i, \qquad B_i \in \{0, 1\}, \qquad
        \partial y / \partial x = 1 \text{ if } 0 < x < \sum_i v_i \text{, else } 0

    where B are those of the level nearest to :math:`\max(x, 0)`. The basis follows the batches as
    that of :class:`LQNetWeights`; it starts at :math:`0.6745 \cdot 2^{i+1} / (2^b - 1)` and stays
    at or above 1e-6, which the paper leaves open. It is in the model file. 32 bits are a ReLU.

    That start suits activations of unit deviation, and a basis far from them hardly moves.
    :func:`dlqat_tf.quantize` with images starts from the grid that loses least on them, and from
    there where the basis comes to rest.

    Args:
        bits: 1 to 4, or 32.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_widths("LQ-Net of activations", bits, _WIDTHS), **kwargs)
        self.basis: tf.Variable = None  # from `build` on

    def build(self, input_shape):
        if self.bits != 32:
            powers = np.float32(2.0 ** np.arange(self.bits))
            self.basis = _add_basis(self, _QUARTILE * 2 / (2**self.bits - 1) * powers)
        super().build(input_shape)

    def quantize(self, values, training=None):
        if self.bits == 32:
            return tf.nn.relu(values)
        basis = tf.convert_to_tensor(self.basis)
        thresholds, planes = thresholds_of(basis[:, None], 0)
        found = planes_of(values, tf.unstack(thresholds[:, 0]), planes)
        if training is not None and (tf.is_tensor(training) or training):
            flat = [tf.reshape(each, [-1, 1]) for each in (tf.nn.relu(values), *found)]
            new = least_squares(flat[0], flat[1:], basis[:, None], _DAMPING)
            _follow(self.basis, positive(new[:, 0]), training)
        inside = tf.logical_and(values > 0, values < tf.reduce_sum(basis))
        outputs = weighted_sum(found, tf.unstack(basis))
        return straight_through(values, outputs, tf.cast(inside, tf.float32))

    def start(self, values):
        if self.bits == 32:
            return
        x = tf.nn.relu(tf.reshape(tf.constant(values, tf.float32), [-1, 1]))
        step = optimal_range(values, 0, 2**self.bits - 1) / (2**self.bits - 1)
        start = tf.constant(step * 2.0 ** np.arange(self.bits)[:, None], tf.float32)

        def planes_by(basis):
            thresholds, planes = thresholds_of(basis, 0)
            return planes_of(x, tf.unstack(thresholds[:, 0]), planes)

        self.basis.assign(positive(_at_rest(x, start, planes_by)[:, 0]))

    def grid(self):
        self._rounds(self.basis is not None)
        raise NoGrid(f"LQNetActivations(bits={self.bits}) has levels on a free basis.")

    def planes(self) -> ActivationPlanes:
        self._rounds(self.basis is not None)
        basis = tf.convert_to_tensor(self.basis)
        thresholds, planes = thresholds_of(basis[:, None], 0)
        return ActivationPlanes(
            thresholds[:, 0].numpy(), planes[:, :, 0].numpy().T.astype(np.int8), basis.numpy()
        )
