"""Export: a trained Keras model to files that compute what was trained, and the proof."""

from dlqat_tf.export.files.assembly import ExportReport
from dlqat_tf.export.files.c_array import CArrayReport, to_c_array
from dlqat_tf.export.files.census import census
from dlqat_tf.export.files.census_report import Census
from dlqat_tf.export.files.lce import to_lce
from dlqat_tf.export.files.tflite import to_tflite
from dlqat_tf.export.files.website import WebsiteReport, to_web
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.snap import SnapReport, snap
from dlqat_tf.export.parity import parity
from dlqat_tf.export.parity_report import ParityReport

__all__ = [
    "CArrayReport",
    "Census",
    "ExportError",
    "ExportReport",
    "IntegerNetwork",
    "ParityReport",
    "SnapReport",
    "WebsiteReport",
    "census",
    "lower",
    "parity",
    "snap",
    "to_c_array",
    "to_lce",
    "to_tflite",
    "to_web",
]
