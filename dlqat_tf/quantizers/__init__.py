"""Quantizers, one file per method."""

from dlqat_tf.quantizers.abcnet import ABCNetActivations, ABCNetWeights
from dlqat_tf.quantizers.base import (
    ActivationGrid,
    ActivationQuantizer,
    NoGrid,
    WeightGrid,
    WeightQuantizer,
)
from dlqat_tf.quantizers.bwn import BWNWeights, CentredAndClamped
from dlqat_tf.quantizers.bwnh import bwnh
from dlqat_tf.quantizers.dorefa import DoReFaActivations, DoReFaWeights
from dlqat_tf.quantizers.dsq import DSQActivations, DSQWeights
from dlqat_tf.quantizers.free_levels import ActivationPlanes
from dlqat_tf.quantizers.hawq import HAWQActivations, HAWQWeights
from dlqat_tf.quantizers.input import InputQuantizer
from dlqat_tf.quantizers.inq import INQWeights
from dlqat_tf.quantizers.irnet import IRNetWeights
from dlqat_tf.quantizers.kernel_order import DepthwiseWeights, TransposedWeights
from dlqat_tf.quantizers.lqnet import LQNetActivations, LQNetWeights
from dlqat_tf.quantizers.lsq import LSQActivations, LSQWeights
from dlqat_tf.quantizers.pact import CGPACT, PACT
from dlqat_tf.quantizers.progress import QuantizerProgress
from dlqat_tf.quantizers.quantization_networks import QuantizationNetworksWeights
from dlqat_tf.quantizers.sat import SATWeights
from dlqat_tf.quantizers.snapped import SnappedWeights, int8_codes, nearest_codes
from dlqat_tf.quantizers.symmetric import SymmetricWeights
from dlqat_tf.quantizers.syq import SYQWeights
from dlqat_tf.quantizers.wrapped import Unwrapped, rounding_with, unwrapped

__all__ = [
    "CGPACT",
    "PACT",
    "ABCNetActivations",
    "ABCNetWeights",
    "ActivationGrid",
    "ActivationPlanes",
    "ActivationQuantizer",
    "BWNWeights",
    "CentredAndClamped",
    "DSQActivations",
    "DSQWeights",
    "DepthwiseWeights",
    "DoReFaActivations",
    "DoReFaWeights",
    "HAWQActivations",
    "HAWQWeights",
    "INQWeights",
    "IRNetWeights",
    "InputQuantizer",
    "LQNetActivations",
    "LQNetWeights",
    "LSQActivations",
    "LSQWeights",
    "NoGrid",
    "QuantizationNetworksWeights",
    "QuantizerProgress",
    "SATWeights",
    "SYQWeights",
    "SnappedWeights",
    "SymmetricWeights",
    "TransposedWeights",
    "Unwrapped",
    "WeightGrid",
    "WeightQuantizer",
    "bwnh",
    "int8_codes",
    "nearest_codes",
    "rounding_with",
    "unwrapped",
]
