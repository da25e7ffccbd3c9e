"""Quantizers, one file per method."""

from dlqat_tf.quantizers.base import (
    ActivationGrid,
    ActivationQuantizer,
    WeightGrid,
    WeightQuantizer,
)
from dlqat_tf.quantizers.input import InputQuantizer
from dlqat_tf.quantizers.pact import CGPACT, PACT
from dlqat_tf.quantizers.sat import SATWeights
from dlqat_tf.quantizers.symmetric import SymmetricWeights
from dlqat_tf.quantizers.wrapped import Unwrapped, unwrapped

__all__ = [
    "CGPACT",
    "PACT",
    "ActivationGrid",
    "ActivationQuantizer",
    "InputQuantizer",
    "SATWeights",
    "SymmetricWeights",
    "Unwrapped",
    "WeightGrid",
    "WeightQuantizer",
    "unwrapped",
]
