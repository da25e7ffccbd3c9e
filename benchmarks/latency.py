"""Latency on this host of our int8 file, TF-MOT's 8-bit file and the float file of one network.

ResNet-18 with random weights: latency does not depend on them. The files take turns run by run.

    python benchmarks/latency.py
    python benchmarks/latency.py --image-size 224
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

import dlqat_tf
from dlqat_tf._host import write_whole
from dlqat_tf._script import ending
from dlqat_tf.export.runtimes.benchmark import benchmark
from dlqat_tf.report import check_target

import tensorflow as tf  # isort: skip
import tensorflow_model_optimization as tfmot  # isort: skip


@dataclass(frozen=True)
class Settings:
    """Single-image latency of ResNet-18 with the 7x7 stem."""

    image_size: int = 32
    """Height and width in pixels."""
    num_classes: int = 100
    """Classes of the head."""
    runs: int = 200
    """Measured runs of each file."""
    threads: int = 1
    """CPU threads of the kernels."""
    output: Path | None = None
    """JSON file for the report."""


def plain_network(settings: Settings) -> tf.keras.Model:
    """Return the float network, with Keras's own dense layer, which TF-MOT knows."""
    size = settings.image_size
    model = dlqat_tf.resnet18(settings.num_classes, (size, size, 3), None, None, stem="imagenet")
    features = model.get_layer("features").output
    return tf.keras.Model(model.input, tf.keras.layers.Dense(settings.num_classes)(features))


def tfmot_file(model: tf.keras.Model) -> bytes:
    """Return TF-MOT's quantization-aware network, calibrated on noise, as an int8 file."""
    quantized = tfmot.quantization.keras.quantize_model(model)
    noise = np.random.default_rng(0).random((16, *model.input_shape[1:]), np.float32)
    quantized(noise, training=True)  # sets the ranges
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.uint8
    return converter.convert()


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.output:
        check_target(settings.output, force=True)
    size = settings.image_size
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, floats = (Path(folder) / f"{n}.tflite" for n in ("int8", "tfmot", "float"))
        low_bit = dlqat_tf.resnet18(
            settings.num_classes, (size, size, 3), 1, 2, "gml", "imagenet", residual_bits=8
        )
        dlqat_tf.export.to_tflite(low_bit, ours)
        plain = plain_network(settings)
        theirs.write_bytes(tfmot_file(plain))
        floats.write_bytes(tf.lite.TFLiteConverter.from_keras_model(plain).convert())
        report = benchmark([theirs, ours, floats], runs=settings.runs, threads=settings.threads)
    Console().print(report)
    if settings.output:
        write_whole(settings.output, report.to_json() + "\n")


if __name__ == "__main__":
    with ending():
        main()
