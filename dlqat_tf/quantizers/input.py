"""The rounding of what a network reads: 8-bit codes of images, features or measurements."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import tensorflow as tf

from dlqat_tf.preprocessing import preprocessing_of
from dlqat_tf.quantizers.pact import ALPHA_MINIMUM, CGPACT
from dlqat_tf.quantizers.ste import codes_of


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class InputQuantizer(CGPACT):
    """A :class:`CGPACT` behind an input, or behind the arithmetic that prepares it.

    Training sees the rounding that files do to what they take. Images whose preprocessing is known
    have 256 values a channel, so files take their pixels and look the codes up.

    Args:
        bits: 2 to 8, or 32.
        alpha_init: As for :class:`CGPACT`.
        signed: As for :class:`CGPACT`.
        preprocessing: What is done to pixels before the model takes them, outside of it: a
            :class:`~dlqat_tf.preprocessing.Preprocessing`, "tf", "caffe" or "torch"; scale 1 where
            the model prepares pixels itself. None: what the model takes are no pixels.

    Raises:
        ValueError: An argument is not as above.
    """

    def __init__(
        self,
        bits: int = 8,
        alpha_init: float = 1.0,
        signed: bool = True,
        preprocessing=None,
        **kwargs,
    ):
        super().__init__(bits, alpha_init, signed, **kwargs)
        self.preprocessing = preprocessing_of(preprocessing)

    def get_config(self):
        known = self.preprocessing
        return {**super().get_config(), "preprocessing": known and asdict(known)}


def range_of(values: np.ndarray) -> tuple[float, bool]:
    """Return the smallest range that 8 bits round without clipping, and whether it is signed.

    Args:
        values: All values that there may be.
    """
    lowest, highest = float(np.min(values)), float(np.max(values))
    signed = lowest < 0
    codes = codes_of(8, signed)  # the highest one at the range
    below = -lowest * codes.highest / -codes.lowest if signed else 0.0
    return max(highest, below, ALPHA_MINIMUM), signed
