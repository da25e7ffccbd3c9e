"""Disentangled Loss Quantization-Aware Training in Keras: low-bit networks that run on a phone."""

from dlqat_tf import _compat, export  # noqa: F401  (_compat first: it decides which Keras all get)
from dlqat_tf._deferred import __getattr__  # noqa: F401  (dlqat_tf.tfmot)
from dlqat_tf.convert import ConversionError, ConversionReport, quantize
from dlqat_tf.distillation import distill
from dlqat_tf.heads import CosineHead, GaussianMixtureHead, LinearHead
from dlqat_tf.loading import load_weights
from dlqat_tf.losses import AMSLoss, GMLoss, MarginWarmup
from dlqat_tf.models import resnet18
from dlqat_tf.quantizers import CGPACT, PACT, SATWeights, SymmetricWeights
from dlqat_tf.summary import summary

__version__ = "0.1.0"

__all__ = [
    "CGPACT",
    "PACT",
    "AMSLoss",
    "ConversionError",
    "ConversionReport",
    "CosineHead",
    "GMLoss",
    "GaussianMixtureHead",
    "LinearHead",
    "MarginWarmup",
    "SATWeights",
    "SymmetricWeights",
    "distill",
    "export",
    "load_weights",
    "quantize",
    "resnet18",
    "summary",
    "tfmot",
]
