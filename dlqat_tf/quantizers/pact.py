"""Clipped activations with a trainable range.

PACT: Choi et al., arXiv 1805.06085. CG-PACT, its calibrated gradient: Jin et al., "Neural network
quantization with scale-adjusted training", BMVC 2020 (arXiv 1912.10207).
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import tensorflow as tf
from larq.utils import register_alias

from dlqat_tf.quantizers.base import (
    ActivationGrid,
    ActivationQuantizer,
    check_bits,
    in_training,
)
from dlqat_tf.quantizers.one_loop import clip_and_round_16, pays
from dlqat_tf.quantizers.ste import Codes, clip_and_round, codes_of, divide_exactly

ALPHA_MINIMUM = 1e-3  # below it, a float32 step underflows in the products of a small network
_DIVERGED = (
    "training has diverged, so start again from weights before that, with a lower learning rate"
)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class AtLeast(tf.keras.constraints.Constraint):
    """Keeps a variable at or above ``minimum`` after every optimizer step."""

    def __init__(self, minimum: float):
        self.minimum = minimum

    def __call__(self, variable):
        return tf.maximum(variable, self.minimum)

    def get_config(self):
        return {"minimum": self.minimum}


@register_alias("cg_pact")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class CGPACT(ActivationQuantizer):
    r"""Activation quantizer with a trainable range and calibrated gradient; replaces a ReLU.

    With range :math:`\alpha`, :math:`R = 2^b - 1` and :math:`\tilde x = \operatorname{clip}(x, 0,
    \alpha) / \alpha`:

    .. math::
        y &= \alpha \operatorname{rne}(\tilde x R) / R \\
        \partial y / \partial x &= 1 \text{ if } 0 < x \le \alpha \text{, else } 0 \\
        \partial y / \partial \alpha &= 1 \text{ if } x \ge \alpha
            \text{, else } \operatorname{rne}(\tilde x R) / R - \tilde x

    With ``signed=True`` the codes run from -(2^(b-1) - 1) to 2^(b-1) - 1, at 8 bits from -128,
    where int8 saturates, and the range is :math:`\pm \alpha`: for values that are not rectified,
    such as the branches of a residual add. With a zero point z they run from -z to R - z, which is
    :math:`\alpha`: for values that go further up than down, as those of swish.

    32 bits are a plain ReLU (the identity when signed) without ``alpha``.

    ``alpha`` is one float32 scalar per quantizer. It stays at or above 0.001, and the weight decay
    of Keras's optimizers (``AdamW``, ``SGD(weight_decay=...)``) leaves it alone; to decay it, give
    an ``alpha_regularizer``.

    Under a 16-bit policy codes and masks are those of the float32 quantizer on the 16-bit input,
    the output is code times step rounded to 16 bits, and the gradient of ``alpha`` is summed in
    float32.

    An ``alpha`` that training made NaN or infinite ends the step with a
    ``tf.errors.InvalidArgumentError`` that names the layer. XLA drops such checks: what it compiled
    outputs NaN, and so does the loss.

    Args:
        bits: 1 to 8 (2 to 8 when signed), or 32.
        alpha_init: Initial range in units of the activation; SAT starts at 8.
        signed: Whether as many codes are below zero as above.
        alpha_regularizer: Optional Keras regularizer of ``alpha``.
        zero_point: Where not ``signed``, how many codes are below zero: 0 to 2^bits - 2.

    Input and output shape: any, and the same.

    Raises:
        ValueError: ``bits`` is anything else, ``alpha_init`` is not a finite number of at least
            0.001, ``signed`` is not a boolean, or there is no such ``zero_point``.
    """

    calibrated = True

    def __init__(
        self,
        bits: int = 2,
        alpha_init: float = 8.0,
        signed: bool = False,
        alpha_regularizer=None,
        zero_point: int = 0,
        **kwargs,
    ):
        if not isinstance(signed, bool):
            raise ValueError(f"Expected signed to be a boolean. Received: {signed!r}.")
        is_number = isinstance(alpha_init, Real) and not isinstance(alpha_init, bool)
        if not is_number or not ALPHA_MINIMUM <= alpha_init < math.inf:
            raise ValueError(
                f"Expected alpha_init to be a finite number of at least {ALPHA_MINIMUM}. "
                f"Received: alpha_init={alpha_init!r}."
            )
        super().__init__(check_bits(bits, lowest=2 if signed else 1), **kwargs)
        self.alpha_init = float(alpha_init)
        self.signed = signed
        most = 0 if signed or self.bits == 32 else 2**self.bits - 2
        is_integer = isinstance(zero_point, Integral) and not isinstance(zero_point, bool)
        if not is_integer or not 0 <= zero_point <= most:
            raise ValueError(
                f"Expected zero_point to be an integer from 0 to {most} with bits={self.bits} and "
                f"signed={signed}. Received: zero_point={zero_point!r}."
            )
        self.zero_point = int(zero_point)
        self.alpha_regularizer = tf.keras.regularizers.get(alpha_regularizer)
        self.alpha: tf.Variable = None  # from `build` on

    @property
    def codes(self) -> Codes:
        """Lowest and highest integer code."""
        return codes_of(self.bits, self.signed, self.zero_point)

    @property
    def rectifies(self) -> bool:
        return not self.signed and not self.zero_point

    @property
    def range_of_images(self):
        return self.alpha

    @property
    def scaled_step(self):
        return None if self.alpha is None else (self.alpha, self.codes.highest)

    def build(self, input_shape):
        if self.bits != 32:
            self.alpha = self.add_weight("alpha", **self.alpha_settings)
        super().build(input_shape)

    @property
    def alpha_settings(self) -> dict:
        """Arguments of ``add_weight`` for ``alpha``, whichever layer owns it."""
        return dict(
            shape=(),
            dtype=tf.float32,
            trainable=True,
            initializer=tf.keras.initializers.Constant(self.alpha_init),
            regularizer=self.alpha_regularizer,
            constraint=AtLeast(ALPHA_MINIMUM),
            experimental_autocast=False,
        )

    def call(self, inputs, training=None):
        inputs = tf.convert_to_tensor(inputs)
        if self.bits != 32 and in_training(training) and pays(inputs):
            return clip_and_round_16(inputs, self._range(), **self._rounding())
        return super().call(inputs, training)

    def mode(self, training):
        return training  # chooses kernels alone, which layers before a frozen range profit from too

    def quantize(self, values, training=None):
        if self.bits == 32:
            return values if self.signed else tf.nn.relu(values)
        fused = in_training(training)
        return clip_and_round(values, self._range(), **self._rounding(), fused=fused)

    def _rounding(self) -> dict:
        """Return what both ways of rounding are told."""
        return dict(
            bits=self.bits,
            signed=self.signed,
            zero_point=self.zero_point,
            calibrated=self.calibrated,
        )

    def grid(self) -> ActivationGrid:
        if self.alpha is None:
            raise ValueError(
                f"{type(self).__name__}(bits={self.bits}, name={self.name!r}) has no integer grid: "
                + ("32 bits are not rounded." if self.bits == 32 else "call it once first.")
            )
        if not np.isfinite(self.alpha.numpy()):
            raise ValueError(
                f"{type(self).__name__}(bits={self.bits}, name={self.name!r}) has no integer grid: "
                f"its range (alpha) is {self.alpha.numpy()}; {_DIVERGED}."
            )
        step = divide_exactly(self._range(), self.codes.highest).numpy()
        return ActivationGrid(*self.codes, np.float32(step))

    def _range(self) -> tf.Tensor:
        # Of a layer that wraps this one or holds it as its input quantizer, the scope has the name.
        name = tf.get_current_name_scope() or self.name

        def checked(alpha):
            message = f"Layer {name!r} has a range (alpha) that is not finite: {_DIVERGED}"
            # The constraint holds wherever Keras applies the gradients; this guards other loops.
            return tf.maximum(tf.debugging.check_numerics(alpha, message), ALPHA_MINIMUM)

        # The gradient passes, so that alpha can come back, and unchecked: a loss scale that is too
        # large makes it infinite once in a while, and the optimizer then skips the step.
        return tf.grad_pass_through(checked)(tf.convert_to_tensor(self.alpha))

    def get_config(self):
        return {
            **super().get_config(),
            "alpha_init": self.alpha_init,
            "signed": self.signed,
            "alpha_regularizer": tf.keras.regularizers.serialize(self.alpha_regularizer),
            "zero_point": self.zero_point,
        }


@register_alias("pact")
@tf.keras.utils.register_keras_serializable("dlqat_tf")
class PACT(CGPACT):
    r"""PACT with its original, uncalibrated gradient.

    As :class:`CGPACT`, but values inside the range do not move it:

    .. math:: \partial y / \partial \alpha = 1 \text{ if } x \ge \alpha \text{, else } 0

    Arguments and errors are those of :class:`CGPACT`. The paper regularises ``alpha`` with the
    weight-decay constant: ``alpha_regularizer=tf.keras.regularizers.L2(...)``.
    """

    calibrated = False
