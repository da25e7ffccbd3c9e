"""Where a quantizer of activations stands, and what it is."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import tensorflow as tf

from dlqat_tf.methods import Method
from dlqat_tf.preprocessing import Preprocessing
from dlqat_tf.quantizers import CGPACT, InputQuantizer
from dlqat_tf.quantizers.calibration import optimal_zero_point
from dlqat_tf.quantizers.ste import Codes, codes_of

_layers = tf.keras.layers


@dataclass(eq=False, repr=False)
class Place:
    """A quantizer of activations: where it stands for which calls, and what it is.

    Attributes:
        is_relu: Whether it stands for a ReLU, which is what methods round.
        is_function: Whether it rounds what another elementwise function computes: below 8 bits,
            how many of its codes are negative follows from images.
        is_input: Whether it rounds what the model takes.
        preprocessing: Of the pixels that an input stands for; None for other values.
        range: Where all values that there may be are known.
    """

    name: str
    bits: int
    _: KW_ONLY
    signed: bool
    ceiling: float
    trainable: bool
    is_relu: bool = False
    is_function: bool = False
    is_input: bool = False
    preprocessing: Preprocessing | None = None
    range: float | None = None

    @property
    def has_zero_point(self) -> bool:
        """Whether images say how many of its codes are below zero."""
        return self.is_function and self.signed and self.bits < 8

    def codes(self, values: np.ndarray) -> Codes:
        """Return the codes that it starts with, given what it is to round on images."""
        if not self.has_zero_point:
            return codes_of(self.bits, self.signed)
        return codes_of(self.bits, zero_point=optimal_zero_point(values, self.bits))

    def make(self, method: Method | None = None):
        """Make the quantizer; that of a ReLU is the method's, CG-PACT where there is none."""
        if self.is_input:
            # A range that clips none of all values is not to be trained.
            return InputQuantizer(
                self.bits,
                self.range or 8.0,
                self.signed,
                self.preprocessing,
                trainable=self.trainable and self.range is None,
                name=self.name,
            )
        if self.bits == 32 and self.ceiling < math.inf:
            return _layers.ReLU(self.ceiling, name=self.name)
        alpha = self.range or min(8.0, self.ceiling)
        trainable = self.trainable and self.range is None
        if self.is_relu and method is not None:
            made = method.activations(self.bits, alpha_init=alpha, regularizer=None, name=self.name)
            made.trainable = trainable
            return made
        return CGPACT(self.bits, alpha, self.signed, trainable=trainable, name=self.name)
