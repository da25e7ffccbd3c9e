"""What `dlqat_tf.quantize` keeps of a float network, before and after training, and in the file.

Trains networks of keras.applications and a VGG without batch norm on scikit-learn's handwritten
digits (enlarged to 32x32) or on CIFAR-100, converts each at several widths, trains on, and exports.

    python benchmarks/conversion.py
    python benchmarks/conversion.py --data cifar100 --data-dir DIR --batch-size 128 --alpha 1
"""

from __future__ import annotations

import dataclasses
import functools
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
from dlqat_tf._host import write_whole
from dlqat_tf._script import ending
from dlqat_tf.report import check_target
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
    data: Literal["digits", "cifar100"] = "digits"
    """What is learnt; CIFAR-100 with crops and flips."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets."""
    batch_size: int = 32
    """Images per step."""
    alpha: float = 0.35
    """Width of MobileNetV2, of its paper's."""
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


class Examples:
    """Training and test images of 32x32 pixels and three channels, from 0 to ``top``.

    Attributes:
        classes: How many there are.
        steps: Batches of an epoch.
        first: Training images and labels for the conversion.
        test: Test images and labels.
    """

    def __init__(self, settings: Settings, top: int):
        self._top = top
        loaded = data.load(settings.data, data_dir=settings.data_dir)
        self.classes, self.steps = loaded.num_classes, loaded.steps_per_epoch(settings.batch_size)
        self._batches = functools.partial(loaded.train_batches, settings.batch_size, seed=0)
        self._augment = () if settings.data == "digits" else ("crop", "flip")
        seen = -(-settings.images // settings.batch_size)
        self.first = self._arrays(self._batches(augment=()).take(seen), settings.images)
        self.test = self._arrays(loaded.test_batches(settings.batch_size))

    def train(self) -> tf.data.Dataset:
        """Return endless batches."""
        return self._batches(augment=self._augment).map(
            lambda images, labels: (self._prepared(images), labels)
        )

    def _prepared(self, images: tf.Tensor) -> tf.Tensor:
        if images.shape[-1] == 1:
            images = tf.repeat(tf.image.resize(images, (_SIZE, _SIZE)), 3, axis=-1)
        return tf.round(images * 255) / (255 / self._top)  # files read pixels

    def _arrays(self, batches, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        parts = [(self._prepared(images), labels) for images, labels in batches]
        images, labels = (np.concatenate(each)[:count] for each in zip(*parts, strict=True))
        return images, labels


def build(name: str, classes: int, alpha: float) -> tf.keras.Model:
    """Return an untrained float network; ``alpha`` is the width of MobileNetV2."""
    shape = (_SIZE, _SIZE, 3)
    if name != "VGG":
        options = dict(alpha=alpha) if name == "MobileNetV2" else {}
        make = getattr(tf.keras.applications, name)
        model = make(input_shape=shape, weights=None, classes=classes, **options)
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
        _layers.Dense(classes, activation="softmax"),
    ):
        model.add(layer)
    return model


def _loss(head: str) -> tf.keras.losses.Loss:
    if head == "linear":
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return dlqat_tf.GMLoss(alpha=0.1)


def train(model: tf.keras.Model, examples: Examples, loss, rate: float, epochs: int) -> None:
    """Train with Adam, whose rate falls to zero by a cosine."""
    schedule = tf.keras.optimizers.schedules.CosineDecay(rate, epochs * examples.steps)
    model.compile(tf.keras.optimizers.Adam(schedule), loss)
    model.fit(examples.train(), steps_per_epoch=examples.steps, epochs=epochs, verbose=2)


def accuracy(model: tf.keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return top-1 in percent."""
    return 100 * float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def convert(name: str, settings: Settings, folder: Path) -> list[Row]:
    """Train one network and convert it at every width."""
    tf.keras.utils.set_random_seed(0)
    # EfficientNet divides pixels itself.
    examples = Examples(settings, top=255 if name == "EfficientNetB0" else 1)
    test, labels = examples.test
    source = build(name, examples.classes, settings.alpha)
    train(source, examples, "sparse_categorical_crossentropy", 2e-3, settings.float_epochs)
    predicted = source.predict(test, verbose=0).argmax(-1)
    rows = []
    for weight_bits, activation_bits in settings.widths:
        model, _ = dlqat_tf.quantize(
            source,
            weight_bits,
            activation_bits,
            settings.head,
            images=examples.first[0],
            labels=examples.first[1],
        )
        at_once = model.predict(test, verbose=0).argmax(-1)
        train(model, examples, _loss(settings.head), 1e-3, settings.epochs)
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
    if settings.output:
        check_target(settings.output, force=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.networks:
            rows += convert(name, settings, Path(folder))
    table = Table(
        title=f"Converted on {settings.images} images of {settings.data}, then {settings.epochs} "
        f"epochs with head {settings.head!r}; percent of the test images"
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
        write_whole(settings.output, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    with ending(data.DataError):
        main()
