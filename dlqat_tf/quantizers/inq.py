"""Incremental network quantization: powers of two, frozen group by group.

Zhou et al., "Incremental network quantization: towards lossless CNNs with low-precision weights",
ICLR 2017 (arXiv 1702.03044).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import WeightGrid, WeightQuantizer, check_widths

_PORTIONS = {2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0)}
_FEWER = (0.5, 0.75, 0.875, 1.0)


def highest_exponent(kernel: np.ndarray) -> int:
    r"""Return :math:`n_1 = \lfloor \log_2(4 \max|W| / 3) \rfloor`, and 0 for all zeros."""
    largest = float(np.abs(kernel).max(initial=0.0))
    return int(np.frexp(largest * 4 / 3)[1]) - 1 if largest else 0


def power_codes(kernel: np.ndarray, top: int, bits: int) -> tuple[np.ndarray, int]:
    r"""Round to zero and powers of two.

    The levels are 0 and :math:`\pm 2^{n_2}` to :math:`\pm 2^{n_1}` with :math:`n_2 = n_1 + 1 -
    2^{b-1} / 2` (section 2.1). Of two neighbours :math:`\alpha < \beta` the magnitude becomes
    :math:`\beta` where :math:`(\alpha + \beta) / 2 \le |W| < 3 \beta / 2`, and the highest
    level above that.

    Args:
        kernel: float32 array.
        top: n_1.
        bits: 2 to 5.

    Returns:
        Integers of the kernel's shape: 0 and +-1, 2, 4, ... in units of 2^n_2; and n_2.
    """
    bottom = top + 1 - 2 ** (bits - 1) // 2
    magnitude = np.abs(np.float64(kernel))
    # |W| from 3/4 to 3/2 of a power of two becomes it, and from half of the lowest one.
    exponent = np.clip(np.frexp(magnitude * 4 / 3)[1] - 1, bottom, top)
    powers = np.where(magnitude >= 2.0 ** (bottom - 1), 2.0 ** (exponent - bottom), 0.0)
    return (np.sign(kernel) * powers).astype(np.int16), bottom


@register_alias("inq_weights")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class INQWeights(WeightQuantizer):
    r"""INQ's weight quantizer: weights are float until they are frozen at a power of two.

    .. math::
        Q = \text{the level of } W \text{ when it was frozen, else } W, \qquad
        \partial Q / \partial W = 0 \text{ if frozen, else } 1

    :class:`dlqat_tf.QuantizerProgress` freezes the weights of largest magnitude first, in phases of
    equal length (section 2.2): of 2 bits, which are ternary, to 20, 40, 60, 70, 80, 85, 90, 95,
    97.5 and 100 percent, of more bits to 50, 75, 87.5 and 100 percent. The last phase trains what
    is no kernel. See :func:`power_codes` for the levels; their highest exponent is that of the
    kernel at the first freezing, so INQ starts from a trained network. What is frozen, and where,
    is in the model file; weight decay of the latent kernel does not reach it.

    Args:
        bits: 2 to 5, or 32 for weights that are never frozen.

    Raises:
        ValueError: ``bits`` is anything else.
    """

    def __init__(self, bits: int = 2, **kwargs):
        super().__init__(check_widths("INQ", bits, (2, 3, 4, 5)), **kwargs)
        self.frozen: tf.Variable = None  # all three from `build` on
        self.levels: tf.Variable = None
        self.top: tf.Variable = None

    def build(self, input_shape):
        if self.bits != 32:
            settings = dict(
                dtype=tf.float32,
                trainable=False,
                initializer="zeros",
                experimental_autocast=False,
            )
            self.frozen = self.add_weight("frozen", shape=input_shape, **settings)
            self.levels = self.add_weight("levels", shape=input_shape, **settings)
            self.top = self.add_weight("top", shape=(), **settings)
        super().build(input_shape)

    @property
    def phases(self) -> int:
        """Number of phases of training, each of which begins before a step."""
        return len(self.portions)

    @property
    def portions(self) -> tuple[float, ...]:
        """Share of the weights that is frozen in each phase of training."""
        return _PORTIONS.get(self.bits, _FEWER)

    def advance(self, share: float, kernel: tf.Variable) -> None:
        """Freeze as much of the kernel as the share of training asks for."""
        if self.frozen is None:
            return
        phase = min(int(share * len(self.portions)), len(self.portions) - 1)
        frozen = self.frozen.numpy().ravel() > 0
        missing = round(self.portions[phase] * frozen.size) - int(frozen.sum())
        if missing <= 0:
            return
        latent = np.float32(tf.convert_to_tensor(kernel)).ravel()
        if not frozen.any():
            self.top.assign(highest_exponent(latent))
        order = np.argsort(np.where(frozen, -np.inf, np.abs(latent)), kind="stable")
        chosen = order[-missing:]
        codes, bottom = power_codes(latent[chosen], int(self.top.numpy()), self.bits)
        levels = self.levels.numpy().ravel()
        levels[chosen], frozen[chosen] = codes * np.float32(2.0**bottom), True
        self.levels.assign(levels.reshape(self.levels.shape))
        self.frozen.assign(np.float32(frozen).reshape(self.frozen.shape))

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values
        return tf.where(self.frozen > 0, self.levels, values)

    def grid(self, kernel) -> WeightGrid:
        self._checked(kernel)
        share = 0.0 if self.frozen is None else float(tf.reduce_mean(self.frozen))
        if share < 1:
            raise ValueError(
                f"INQWeights has frozen {share:.0%} of the weights, and the others have no level: "
                "train to the end with dlqat_tf.QuantizerProgress."
            )
        bottom = int(self.top.numpy()) + 1 - 2 ** (self.bits - 1) // 2
        step = np.float32(2.0**bottom)
        return WeightGrid((self.levels.numpy() / step).astype(np.int16), np.asarray(step))
