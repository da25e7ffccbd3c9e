"""Export: a trained Keras model to files that compute what was trained, and the proof."""

from dlqat_tf.export.census import Census, census
from dlqat_tf.export.lce import to_lce
from dlqat_tf.export.lower import lower
from dlqat_tf.export.network import ExportError, IntegerNetwork
from dlqat_tf.export.parity import ParityReport, parity
from dlqat_tf.export.snap import SnapReport, snap
from dlqat_tf.export.tflite import ExportReport, to_tflite

__all__ = [
    "Census",
    "ExportError",
    "ExportReport",
    "IntegerNetwork",
    "ParityReport",
    "SnapReport",
    "census",
    "lower",
    "parity",
    "snap",
    "to_lce",
    "to_tflite",
]
