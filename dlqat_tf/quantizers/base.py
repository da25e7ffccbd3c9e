"""What every quantizer promises, beside being a ``larq.quantizers.Quantizer``.

Training calls the quantizer; export reads ``grid`` and ``planes`` and never asks for a class. A new
method is therefore one new file: a pure function, a class with ``call`` and ``get_config``, and its
meaning in integers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral
from types import FrameType
from typing import Literal

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf._arguments import known_to
from dlqat_tf._compat import calling_layer
from dlqat_tf.quantizers.free_levels import ActivationPlanes
from dlqat_tf.quantizers.weight_decay import exempt_from_weight_decay


class NoGrid(ValueError):
    """The levels of a method lie on no equidistant grid; ``planes`` or the values say them."""


@dataclass(frozen=True)
class WeightGrid:
    """Equidistant weight levels: ``quantizer(kernel) == codes * step``, bit for bit in float32.

    Attributes:
        codes: Integers of the kernel's shape; int16, so that `codes * step` is float32 in numpy.
        step: float32, a scalar or one value per output channel (the kernel's last axis, or (out, 1)
            of transposed and (in, multiplier) of depthwise kernels), so that it multiplies the
            codes.
    """

    codes: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class ActivationGrid:
    """Equidistant activation levels: outputs are ``step * {lowest, ..., highest}``.

    Attributes:
        lowest: Lowest integer code; 0 for the unsigned quantizers that replace a ReLU.
        highest: Highest integer code, for example ``2**bits - 1``.
        step: float32 scalar above zero, in units of the activation.
    """

    lowest: int
    highest: int
    step: np.float32


def in_training(training) -> bool:
    """Return whether a call's ``training`` says so while the graph is made."""
    return not tf.is_tensor(training) and bool(training)


def check_bits(bits: int, *, lowest: int = 1, allow_float: bool = True, name: str = "") -> int:
    """Return ``bits`` as an int when it is a supported width.

    Args:
        bits: Bit width; ``lowest`` to 8, and 32 where ``allow_float``.
        lowest: Smallest width that the method can represent.
        allow_float: Whether 32 ("not rounded") is a valid width.
        name: The caller's argument, where there are several widths, for the message.

    Raises:
        ValueError: For any other value, booleans and floats included.
    """
    expected = f"an integer from {lowest} to 8" + (", or 32 for no rounding" if allow_float else "")
    valid = isinstance(bits, Integral) and not isinstance(bits, bool)
    if not valid or not (lowest <= bits <= 8 or (allow_float and bits == 32)):
        where = f"{name}: " if name else ""
        raise ValueError(f"{where}Expected bits to be {expected}. Received: bits={bits!r}.")
    return int(bits)


def check_widths(method: str, bits: int, widths: tuple[int, ...]) -> int:
    """Return ``bits`` as an int when the method defines that width, or when it is 32.

    Args:
        method: Name for the message.
        bits: Bit width.
        widths: The widths below 32 that the method's paper gives a meaning to.

    Raises:
        ValueError: For any other value; the message names the widths.
    """
    valid = isinstance(bits, Integral) and not isinstance(bits, bool)
    if not valid or bits not in (*widths, 32):
        named = ", ".join(map(str, widths))
        raise ValueError(
            f"{method} defines {named} bit{'s' if widths != (1,) else ''}, and 32 for no rounding. "
            f"Received: bits={bits!r}."
        )
    return int(bits)


_frozen = ContextVar("_frozen", default=False)


@contextlib.contextmanager
def frozen_quantizers() -> Iterator[None]:
    """Let all quantizers compute as those that are frozen, whatever they and their layers are."""
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


class _Quantizer(lq.quantizers.Quantizer):
    """Float32 inside, whatever the global policy; the output has the input's dtype.

    Of integers it is float32. What a quantizer learns is no weight: optimizers do not decay it.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # H5 files and SavedModels name the quantizers of Larq's layers by their class alone.
        tf.keras.utils.get_custom_objects().setdefault(cls.__name__, cls)

    def __init__(self, bits: int, **kwargs):
        kwargs.setdefault("dtype", "float32")
        # Keras would cast the input to float32 and leave it there: a 16-bit layer that asked for
        # its 16-bit kernel would get a float32 one. `call` casts there and back instead.
        with known_to(type(self)):
            super().__init__(autocast=False, **kwargs)
        self.bits = bits
        self._owner: weakref.ref | None = None

    @property
    def precision(self) -> int:
        """Bit width, under the name by which Larq looks for it."""
        return self.bits

    def add_weight(self, *args, **kwargs):
        return exempt_from_weight_decay(super().add_weight(*args, **kwargs))

    def __call__(self, *args, **kwargs):
        outputs = super().__call__(*args, **kwargs)
        self._check_owner()
        return outputs

    def _check_owner(self) -> None:
        """Raise where two layers would own what is trained here: no file could say so."""
        owner, caller = self._owner and self._owner(), calling_layer()
        if isinstance(caller, tf.keras.Model):
            caller = None
        if owner is None and caller is not None:
            # Keras would take the layer itself for a part of this one.
            self._owner, owner = weakref.ref(caller), caller
        is_layer = bool(self.inbound_nodes)  # of a functional model, which may call it many times
        if self.weights and owner and (is_layer or caller not in (None, owner)):
            users = [repr(owner.name), "a model" if is_layer else repr(caller.name)]
            raise ValueError(
                f"Expected a {type(self).__name__} of its own for each layer, since its range is "
                f"trained. Received: {self.name!r} in {' and '.join(users)}. Make a new one for "
                "each; to share a range, call one quantizer as a layer of the model in both places."
            )

    def call(self, inputs, training=None):
        inputs = tf.convert_to_tensor(inputs)
        values = self.quantize(tf.cast(inputs, tf.float32), self.mode(training))
        # Integers, such as pixels, would lose what lies between them.
        return tf.cast(values, inputs.dtype if inputs.dtype.is_floating else tf.float32)

    def mode(self, training):
        """Return the ``training`` of a call for :meth:`quantize`.

        What is frozen (``trainable=False``) computes as in inference, as Keras's batch norms do:
        its variables stay, and its steps are hard.
        """
        return training if self.trainable and not _frozen.get() else False

    def quantize(self, values: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the quantized float32 ``values``, with the method's gradient.

        ``training`` may choose faster operations and move the quantizer's own variables; for given
        variables, the values and gradients must not depend on it, but for methods that train with
        soft steps and run with hard ones. These have the soft steps' gradient in inference too, for
        kernels that are trained under a frozen quantizer.
        """
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}


class WeightQuantizer(_Quantizer):
    """Base class of the quantizers that go into ``kernel_quantizer``.

    Under a 16-bit policy a layer reads its float32 kernel in 16 bits: codes are those of the
    float32 quantizer on that 16-bit kernel, and the output is their float32 value rounded to 16
    bits, the layer's type.
    """

    order: Literal["channels last", "transposed", "depthwise"] = "channels last"
    """Which kernels it reads: of layers whose output channels are last, or of these other two."""

    groups = 1
    """How many inputs have output channels of their own, which an input's fan-out leaves out."""

    @property
    def of_channels(self) -> bool:
        """Whether each output channel has a scale, a mean or levels of its own."""
        return False

    @property
    def of_channels_last(self) -> WeightQuantizer:
        """The quantizer of what :meth:`reordered` returns."""
        return self

    def reordered(self, kernel):
        """Return a kernel that this one reads with its output channels last."""
        return kernel

    def in_order(self, values, shape):
        """Return what :meth:`reordered` was, given the ``shape`` of the kernel."""
        return values

    def on_same_kernel(self, quantizer: WeightQuantizer) -> WeightQuantizer:
        """Return what makes ``quantizer``, of output channels last, read kernels as this one."""
        return quantizer

    def start(self, kernel: np.ndarray) -> None:
        """Start on a trained kernel what would start from a guess; most methods follow the kernel.

        Args:
            kernel: float32 latent weights.
        """

    def grid(self, kernel) -> WeightGrid:
        """Return the integers behind ``self(kernel)``.

        Args:
            kernel: Array, tensor or variable of latent float weights.

        Raises:
            NoGrid: The method's levels are not equidistant.
            ValueError: The quantizer does not round (32 bits), or the kernel holds NaN or infinity.
        """
        raise NoGrid(
            f"{type(self).__name__} has no equidistant levels; ask for planes(kernel) instead."
        )

    def planes(self, kernel) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return binary planes whose weighted sum is ``self(kernel)``.

        Codes that are odd integers from -(2^b - 1) to 2^b - 1 are exactly
        ``sum_i 2^i * sign_i``: there is no zero, so b bits are b planes.

        Args:
            kernel: Array, tensor or variable of latent float weights.

        Returns:
            ``[(sign, scale), ...]``, least significant plane first; ``sign`` is an int8 array of
            -1 and +1 of the kernel's shape, ``scale`` the plane's float32 factor: a scalar, one per
            output channel, or one per kernel position, in a shape that broadcasts to the kernel's.

        Raises:
            ValueError: The kernel has a code that is even or beyond 2^b - 1, which no sum of planes
                with powers of two reaches: nearly every 8-bit SAT and every symmetric kernel.
        """
        grid = self.grid(kernel)
        top = 2**self.bits - 1
        if np.any(grid.codes % 2 == 0) or np.abs(grid.codes).max(initial=0) > top:
            raise ValueError(
                f"{type(self).__name__}(bits={self.bits}) has levels other than the odd codes from "
                f"{-top} to {top}, so it is not a sum of {self.bits} binary planes."
            )
        offsets = (grid.codes + top) // 2
        return [
            ((2 * ((offsets >> i) & 1) - 1).astype(np.int8), np.float32(2**i) * grid.step)
            for i in range(self.bits)
        ]

    def latent(self, grid: WeightGrid) -> np.ndarray:
        """Return a kernel that this quantizer rounds to the integers of ``grid``.

        It is one in the middle of its levels, or where the step asks for it beside. The base class
        takes the levels themselves, for methods that leave them where they are. There may be none,
        as of a step that has not started and follows the kernel: check by ``self.grid(kernel)``.

        Args:
            grid: What :meth:`grid` returned for a kernel.

        Returns:
            float32 array of the kernel's shape.
        """
        return (grid.codes * grid.step).astype(np.float32)

    def _checked(self, kernel) -> tf.Tensor:
        """Return ``kernel`` as a float32 tensor whose integer form is well defined."""
        if self.bits == 32:
            raise ValueError(
                f"{type(self).__name__}(bits=32) does not round, so it has no integer codes; "
                "train with 1 to 8 bits before asking for a grid."
            )
        kernel = tf.cast(tf.convert_to_tensor(kernel), tf.float32)
        if not np.all(np.isfinite(kernel)):
            raise ValueError(
                "Expected a kernel of finite values. Received: NaN or infinity in a kernel of "
                f"shape {tuple(kernel.shape)}."
            )
        return kernel


class ActivationQuantizer(_Quantizer):
    """Base class of the quantizers that stand where a ReLU stood.

    Under a 16-bit policy codes are those of the float32 quantizer on the 16-bit input, and the
    output is their float32 value rounded to 16 bits, the layer's type.
    """

    @property
    def rectifies(self) -> bool:
        """Whether its 32 bits are a ReLU; else they are the identity."""
        return True

    @property
    def scaled_step(self) -> tuple[tf.Variable, int] | None:
        """The variable that the step is times a number, and that number; None for a fixed step."""
        return None

    @property
    def range_of_images(self) -> tf.Variable:
        """The range that starts where it loses least on images; None where there is none.

        One that has it also has the ``codes`` that it starts with.
        """
        return None

    def start(self, values: np.ndarray) -> None:
        """Start from the activations of images what starts from the first batch elsewhere.

        Args:
            values: float32, any shape, rectified.
        """
        self.quantize(tf.convert_to_tensor(values), training=True)

    def grid(self) -> ActivationGrid:
        """Return the integers behind the outputs.

        Raises:
            NoGrid: The method's levels are not equidistant.
            ValueError: The quantizer does not round (32 bits) or was never built.
        """
        raise NoGrid(f"{type(self).__name__} has no equidistant levels.")

    def planes(self) -> ActivationPlanes:
        """Return the levels of a method that has no ``grid``, and the thresholds between them.

        Raises:
            ValueError: The quantizer has a grid, or it does not round, or was never built.
        """
        raise ValueError(f"{type(self).__name__} says no levels but those of its grid.")

    def _rounds(self, has_started: bool = True) -> None:
        """Raise where there is no grid: not rounded, or a number that starts from data did not."""
        if self.bits == 32 or not has_started:
            start = "train it for a step first"
            if not self.trainable:
                start = f"it was frozen before it had a range; unfreeze it and {start}"
            raise ValueError(
                f"{type(self).__name__}(bits={self.bits}, name={self.name!r}) has no integer grid: "
                f"{'32 bits are not rounded' if self.bits == 32 else start}."
            )


class _NoStarvation(logging.Filter):
    """Drops Larq's warning about starved binary weights where it does not apply.

    Larq warns about any 1-bit kernel without a clipping constraint, since the gradient of its own
    ``SteSign`` vanishes outside [-1, 1]. Our weight quantizers have no such dead zone. The message
    does not say which quantizer it is about, so the filter looks at the layer that logs it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "starved weights" not in str(record.msg):
            return True
        frame: FrameType | None = sys._getframe()
        while frame and (frame.f_code.co_filename, frame.f_lineno) != (
            record.pathname,
            record.lineno,
        ):
            frame = frame.f_back
        layer = frame.f_locals.get("self") if frame else None
        # Of the two kernels of a separable layer the message names that which it is about.
        kernel = re.search(r"`(\w+)_constraint`", str(record.msg))
        quantizer = getattr(layer, f"{kernel[1]}_quantizer", None) if kernel else None
        return not isinstance(quantizer, WeightQuantizer)


logging.getLogger("larq.layers_base").addFilter(_NoStarvation())
