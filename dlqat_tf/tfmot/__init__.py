"""The methods of this package for TF-MOT: quantizer, configuration of a layer, scheme.

The second face of :mod:`dlqat_tf.quantizers`: one TF-MOT quantizer makes any Larq one and calls
it, so both compute the same by construction, and export reads the same grids.

>>> import tensorflow_model_optimization as tfmot
>>> annotated = tfmot.quantization.keras.quantize_annotate_model(model)
>>> quantized = tfmot.quantization.keras.quantize_apply(annotated, dlqat_tf.tfmot.Scheme(1, 2))

No ``quantize_scope`` is needed, neither here nor to load a saved model: TF-MOT's classes and these
are registered with Keras.
"""

from __future__ import annotations

from dlqat_tf._compat import annotate_operators, freeze_wrappers
from dlqat_tf.tfmot import unwrapping  # noqa: F401  (registers TF-MOT's classes)
from dlqat_tf.tfmot.config import QuantizeConfig
from dlqat_tf.tfmot.quantizer import LarqQuantizer
from dlqat_tf.tfmot.scheme import Scheme

__all__ = ["LarqQuantizer", "QuantizeConfig", "SATQuantizeConfig", "SATScheme", "Scheme"]

annotate_operators()
freeze_wrappers()

# The names that they had while SAT was the only method.
SATScheme, SATQuantizeConfig = Scheme, QuantizeConfig
