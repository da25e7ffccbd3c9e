"""Disentangled Loss Quantization-Aware Training in Keras: low-bit networks that run on a phone."""

from dlqat_command import __version__
from dlqat_tf import (  # noqa: F401  (_compat first: it decides which Keras all get)
    _compat,
    export,
    levels,
)
from dlqat_tf._deferred import __getattr__  # noqa: F401  (dlqat_tf.plots and others)
from dlqat_tf.convert import ConversionError, ConversionReport, quantize
from dlqat_tf.distillation import distill
from dlqat_tf.heads import CosineHead, GaussianMixtureHead, LinearHead
from dlqat_tf.loading import load_weights
from dlqat_tf.losses import AMSLoss, GMLoss, MarginWarmup
from dlqat_tf.mixed_precision import MixedPrecisionReport, choose_bits
from dlqat_tf.models import resnet18
from dlqat_tf.preprocessing import Preprocessing
from dlqat_tf.quantizers import (
    CGPACT,
    PACT,
    ABCNetActivations,
    ABCNetWeights,
    BWNWeights,
    CentredAndClamped,
    DoReFaActivations,
    DoReFaWeights,
    DSQActivations,
    DSQWeights,
    HAWQActivations,
    HAWQWeights,
    InputQuantizer,
    INQWeights,
    IRNetWeights,
    LQNetActivations,
    LQNetWeights,
    LSQActivations,
    LSQWeights,
    QuantizationNetworksWeights,
    QuantizerProgress,
    SATWeights,
    SymmetricWeights,
    SYQWeights,
    bwnh,
)
from dlqat_tf.summary import summary

__all__ = [
    "CGPACT",
    "PACT",
    "ABCNetActivations",
    "ABCNetWeights",
    "AMSLoss",
    "BWNWeights",
    "CentredAndClamped",
    "ConversionError",
    "ConversionReport",
    "CosineHead",
    "DSQActivations",
    "DSQWeights",
    "DoReFaActivations",
    "DoReFaWeights",
    "GMLoss",
    "GaussianMixtureHead",
    "HAWQActivations",
    "HAWQWeights",
    "INQWeights",
    "IRNetWeights",
    "InputQuantizer",
    "LQNetActivations",
    "LQNetWeights",
    "LSQActivations",
    "LSQWeights",
    "LinearHead",
    "MarginWarmup",
    "MixedPrecisionReport",
    "Preprocessing",
    "QuantizationNetworksWeights",
    "QuantizerProgress",
    "SATWeights",
    "SYQWeights",
    "SymmetricWeights",
    "__version__",
    "bwnh",
    "choose_bits",
    "distill",
    "export",
    "load_weights",
    "quantize",
    "resnet18",
    "summary",
    "tfmot",
]
