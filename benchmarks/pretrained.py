"""What `dlqat_tf.quantize` keeps of a network that somebody else has trained.

Converts a model file on CIFAR-100's images at several widths, lets the float network teach the
converted one, exports, and counts on the test images how often each decides as the float network
does. Labels are not used: the classes may be any.

    python benchmarks/pretrained.py model.keras --data-dir DIR --scale 255

Such a file is in the package `cifar-10-model` of PyPI, for pixels from 0 to 255 (`--scale 1`), and
of a format that may hold code (`--trust`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import dlqat_tf
from dlqat_tf._script import ending
from dlqat_tf.loading import ModelFileError, load_model
from dlqat_tf.preprocessing import Preprocessing
from dlqat_tf.training import data

import tensorflow as tf  # isort: skip

_RATE = 1e-4


@dataclass(frozen=True)
class Settings:
    """Decisions of a converted network that are the float network's."""

    model: Annotated[Path, tyro.conf.Positional]
    """The model file, for images of 32x32 pixels."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets."""
    widths: tuple[tuple[int, int], ...] = ((8, 8), (4, 4), (2, 2))
    """Weight and activation bits."""
    scale: float = 255.0
    """What the network's pixels were divided by."""
    epochs: int = 1
    """Epochs after the conversion."""
    train_size: int = 20000
    """Training images."""
    batch_size: int = 128
    """Images per step."""
    images: int = 512
    """Training images that the conversion sees."""
    trust: bool = False
    """Load formats that may hold code."""


def _teach(model: tf.keras.Model, source: tf.keras.Model, batches, epochs: int, steps: int):
    """Train on the float network's outputs, its batch norms as they are: they saw other images."""
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.trainable = False
    trainer = dlqat_tf.distill(model, source, temperature=1.0)
    schedule = tf.keras.optimizers.schedules.CosineDecay(_RATE, epochs * steps)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(tf.keras.optimizers.Adam(schedule), loss)
    trainer.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=2)


def measure(settings: Settings) -> Table:
    """Return the figures of every width as a table."""
    tf.keras.utils.set_random_seed(0)
    source = load_model(settings.model, trust=settings.trust)
    images = data.load("cifar100", data_dir=settings.data_dir, train_size=settings.train_size)
    top = 255.0 / settings.scale

    def decided(pixels, _):
        return pixels * top, tf.argmax(source(pixels * top, training=False), -1)

    batches = images.train_batches(settings.batch_size, seed=0, augment=("flip",)).map(decided)
    first = images.train_batches(settings.images, seed=0, augment=())
    (seen,) = (pixels.numpy() * top for pixels, _ in first.take(1))
    test = np.concatenate([pixels for pixels, _ in images.test_batches(settings.batch_size)]) * top
    decisions = source.predict(test, verbose=0).argmax(-1)

    def equal(model) -> float:
        return 100 * float(np.mean(model.predict(test, verbose=0).argmax(-1) == decisions))

    table = Table(title=f"Decisions of {settings.model.name} on {len(test):,} images, percent")
    table.add_column("widths")
    for heading in ("at once", "trained", "int8 file", "trained = file", "snapped = file", "bytes"):
        table.add_column(heading, justify="right")
    for widths in settings.widths:
        preprocessing = Preprocessing(scale=settings.scale)
        model, _ = dlqat_tf.quantize(
            source, *widths, head=None, images=seen, preprocessing=preprocessing
        )
        at_once = equal(model)
        steps = images.steps_per_epoch(settings.batch_size)
        _teach(model, source, batches, settings.epochs, steps)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "converted.tflite"
            snapped = load_model(dlqat_tf.export.to_tflite(model, path).snapped)
            proof = dlqat_tf.export.parity(snapped, path, test, decisions, trained=model)
            size = path.stat().st_size
        assert proof.agreement["simulation_file"] == 100, widths
        figures = (at_once, equal(model), proof.top1["file"])
        figures += (proof.agreement["trained_file"], proof.agreement["keras_file"])
        percents = (f"{each:.1f}" for each in figures)
        table.add_row(f"W{widths[0]}A{widths[1]}", *percents, f"{size:,}")
    return table


if __name__ == "__main__":
    with ending(data.DataError, ModelFileError):
        Console().print(measure(tyro.cli(Settings, description=__doc__)))
