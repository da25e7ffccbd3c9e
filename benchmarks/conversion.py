"""What `dlqat_tf.quantize` keeps of a float network, before and after training, and in the file.

Trains networks of keras.applications and a VGG without batch norm on scikit-learn's handwritten
digits (enlarged to 32x32), converts each at several widths, trains on, and exports.

    python benchmarks/conversion.py
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import dlqat_tf
from dlqat_tf.training import data

import tensorflow as tf  # isort: skip

_layers = tf.keras.layers
_SIZE = 32


@dataclass(frozen=True)
class Settings:
    """Accuracy of converted networks at several widths."""

    networks: tuple[Literal["MobileNetV2", "EfficientNetB0", "ResNet50", "VGG"], ...] = (
        "MobileNetV2",
        "ResNet50",
        "VGG",
    )
    """Networks to convert."""
    widths: tuple[tuple[int, int], ...] = ((8, 8), (4, 4), (2, 2), (1, 2))
    """Weight and activation bits."""
    head: Literal["gml", "linear"] = "gml"
    """Head of the converted network: trained by GMLoss(0.1), or by cross-entropy."""
    float_epochs: int = 10
    """Epochs of the float network."""
    epochs: int = 5
    """Epochs after the conversion."""
    images: int = 512
    """Training images that the conversion sees."""
    output: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Row:
    """One converted network; percentages of the test images.

    Attributes:
        network: Its name.
        widths: For example "W1A2".
        float_accuracy: Of the source.
        agreement: Equal arg-maxes of source and converted network, not trained.
        converted: Accuracy of the converted network, not trained.
        trained: Accuracy after training.
        file: Accuracy of the int8 file.
        simulation_file: Equal arg-maxes of integer simulation and file.
        keras_file: Equal arg-maxes of snapped Keras model and file.
    """

    network: str
    widths: str
    float_accuracy: float
    agreement: float
    converted: float
    trained: float
    file: float
    simulation_file: float
    keras_file: float


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, labels, test images and labels; images float, three channels."""
    loaded = data.load("digits")
    parts = []
    for batches in (loaded.train_batches(64, seed=0, augment=()).take(22), loaded.test_batches(64)):
        images, labels = zip(
            *((image.numpy(), label.numpy()) for image, label in batches), strict=True
        )
        enlarged = tf.image.resize(np.concatenate(images), (_SIZE, _SIZE)).numpy()
        pixels = np.rint(np.repeat(enlarged, 3, axis=-1) * 255)  # what files read
        parts += [np.float32(pixels / 255), np.concatenate(labels)]
    return tuple(parts)


def build(name: str) -> tf.keras.Model:
    """Return an untrained float network."""
    shape = (_SIZE, _SIZE, 3)
    if name != "VGG":
        options = dict(alpha=0.35) if name == "MobileNetV2" else {}
        make = getattr(tf.keras.applications, name)
        model = make(input_shape=shape, weights=None, classes=10, **options)
        for layer in model.layers:
            if isinstance(layer, _layers.BatchNormalization):
                layer.momentum = 0.9  # 0.999 and 0.99 would need more steps than are made here
        return model
    model = tf.keras.Sequential([tf.keras.Input(shape)], name=name)
    for filters in (16, 32, 64):
        model.add(_layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(_layers.MaxPool2D())
    for layer in (
        _layers.Flatten(),
        _layers.Dense(64, activation="relu"),
        _layers.Dense(10, activation="softmax"),
    ):
        model.add(layer)
    return model


def _loss(head: str) -> tf.keras.losses.Loss:
    if head == "linear":
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return dlqat_tf.GMLoss(alpha=0.1)


def accuracy(model: tf.keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return top-1 in percent."""
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def convert(name: str, settings: Settings, folder: Path) -> list[Row]:
    """Train one network and convert it at every width."""
    tf.keras.utils.set_random_seed(0)
    train, train_labels, test, labels = digits()
    source = build(name)
    if any(isinstance(layer, _layers.Rescaling) for layer in source.layers):
        train, test = 255 * train, 255 * test  # the network divides itself
    steps = settings.float_epochs * (len(train) // 32)
    source.compile(
        tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        "sparse_categorical_crossentropy",
    )
    source.fit(train, train_labels, 32, settings.float_epochs, verbose=2)
    predicted = source.predict(test, verbose=0).argmax(-1)
    rows = []
    for weight_bits, activation_bits in settings.widths:
        model, _ = dlqat_tf.quantize(
            source,
            weight_bits,
            activation_bits,
            settings.head,
            images=train[: settings.images],
            labels=train_labels[: settings.images],
        )
        at_once = model.predict(test, verbose=0).argmax(-1)
        steps = settings.epochs * (len(train) // 32)
        model.compile(
            tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(1e-3, steps)),
            _loss(settings.head),
        )
        model.fit(train, train_labels, 32, settings.epochs, verbose=2)
        path = folder / "converted.tflite"
        exported = dlqat_tf.export.to_tflite(model, path, force=True)
        snapped = tf.keras.models.load_model(exported.snapped, compile=False)
        proof = dlqat_tf.export.parity(snapped, path, test, labels)
        rows.append(
            Row(
                network=name,
                widths=f"W{weight_bits}A{activation_bits}",
                float_accuracy=100 * float(np.mean(predicted == labels)),
                agreement=100 * float(np.mean(at_once == predicted)),
                converted=100 * float(np.mean(at_once == labels)),
                trained=accuracy(model, test, labels),
                file=proof.top1["file"],
                simulation_file=proof.agreement["simulation_file"],
                keras_file=proof.agreement["keras_file"],
            )
        )
    return rows


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, description=__doc__)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.networks:
            rows += convert(name, settings, Path(folder))
    table = Table(
        title=f"Converted on {settings.images} digits, then {settings.epochs} epochs with head "
        f"{settings.head!r}; percent of the test images"
    )
    for heading in ("network", "widths"):
        table.add_column(heading)
    for heading in ("float", "same at once", "at once", "trained", "int8 file"):
        table.add_column(heading, justify="right")
    for heading in ("simulation = file", "Keras = file"):
        table.add_column(heading, justify="right")
    for row in rows:
        name, widths, *percents = dataclasses.astuple(row)
        table.add_row(name, widths, *(f"{percent:.1f}" for percent in percents))
    Console().print(table)
    if settings.output:
        figures = [dataclasses.asdict(row) for row in rows]
        settings.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
