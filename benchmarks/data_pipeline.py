"""Does the input pipeline keep up with training?

Measures images/s of the training pipeline of CIFAR-100 and of an image folder with each
augmentation, and of a training step of the W1A2 ResNet-18 on the same machine in the same run. The
pipeline runs alone here, while in training it shares the processor with the step where that has no
accelerator of its own; so the ratio should be at least 1.5.

A second table says where the time of a JPEG goes: reading, decoding all of it or only the crop that
is trained on, and what comes after. From the last rate follows how many cores feed a GPU: as many
as its images/s divided by those of one core.

    python benchmarks/data_pipeline.py --data-dir ../shared
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

import dlqat_tf
from dlqat_tf._script import ending
from dlqat_tf.training import sources
from dlqat_tf.training.data import DataError, ImageData, load

import tensorflow as tf  # isort: skip  (after dlqat_tf, which decides on the Keras version)

TARGET = 1.5
BASIC = ("crop", "flip")
VARIANTS = {"crop, flip": BASIC} | {
    f"crop, flip, {policy}": (*BASIC, policy) for policy in ("randaugment", "cutmix", "mixup")
}


@dataclass
class Settings:
    """Benchmark of the input pipeline against the training step."""

    data_dir: Path
    """Folder that holds tfds/ (with CIFAR-100) and imagenet10/ (an image folder)."""
    batch_size: int = 128
    """Images per batch of CIFAR-100."""
    folder_batch_size: int = 16
    """Images per batch of the image folder, at 224 x 224 pixels."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """Stem of the network for CIFAR-100; the folder's network always has the ImageNet stem."""
    width: int = 64
    """Channels of the network's first stage."""
    seconds: float = 3.0
    """Least duration of one measurement."""
    repeats: int = 5
    """Measurements per row; the median counts."""


def images_per_second(step: Callable[[], int], settings: Settings) -> float:
    """Median rate of ``step``, which handles some images and returns how many.

    Two calls go first unmeasured: tracing and filling buffers are no part of the rate.
    """
    step(), step()
    rates = []
    for _ in range(settings.repeats):
        start, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < settings.seconds or not images:
            images += step()
        rates.append(images / elapsed)
    return statistics.median(rates)


def pipeline_rate(data: ImageData, batch_size: int, augment, settings: Settings) -> float:
    """Images/s of the training batches alone."""
    batches = iter(data.train_batches(batch_size, seed=0, augment=augment))
    return images_per_second(lambda: len(next(batches)[0]), settings)


def step_rate(data: ImageData, batch_size: int, stem: str, settings: Settings) -> float:
    """Images/s of one training step on a batch that is already there."""
    model = dlqat_tf.resnet18(
        data.num_classes, data.image_shape, 1, 2, stem=stem, width=settings.width
    )
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = next(iter(data.train_batches(batch_size, seed=0)))

    def step() -> int:
        model.train_on_batch(images, labels)
        return batch_size

    return images_per_second(step, settings)


def jpeg_stages(data: ImageData) -> dict[str, tf.data.Dataset]:
    """Pipelines that do more and more of what training does to an image file."""
    jpegs = [path for path in data._train.paths if path.lower().endswith((".jpg", ".jpeg"))]
    paths = tf.data.Dataset.from_tensor_slices(jpegs)
    files = paths.repeat().map(tf.io.read_file, num_parallel_calls=tf.data.AUTOTUNE)

    def decoded(encoded):
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    def cropped(encoded):
        window = sources.crop_window(
            tf.io.extract_jpeg_shape(encoded), tf.constant([0, 1], tf.int64)
        )
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

    stages = {"read": tf.size, "read, decode all": decoded, "read, decode the crop": cropped}
    return {
        label: files.map(work, num_parallel_calls=tf.data.AUTOTUNE)
        for label, work in stages.items()
    } | {"all of training's pipeline": data.train_batches(1, seed=0)}


def per_cpu_second(dataset: tf.data.Dataset, settings: Settings) -> float:
    """Images per second of one core: of the processor's time, which other processes do not take."""
    elements = iter(dataset)
    for _ in range(64):
        next(elements)
    rates = []
    for _ in range(settings.repeats):
        start, cpu, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < settings.seconds:
            next(elements)
            images += 1
        rates.append(images / (time.process_time() - cpu))
    return statistics.median(rates)


def print_jpeg_stages(data: ImageData, settings: Settings) -> None:
    """Measure where the time of an image file goes."""
    rates = {label: per_cpu_second(each, settings) for label, each in jpeg_stages(data).items()}
    *_, whole = rates.values()
    table = Table(title=f"JPEG files to {data.image_shape[0]} x {data.image_shape[1]} pixels")
    for column in ("work", "img / CPU second", "share of the whole time"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for label, rate in rates.items():
        table.add_row(label, f"{rate:,.0f}", f"{whole / rate:.0%}")
    Console().print(table)


def main(settings: Settings) -> None:
    """Measure and print the tables."""
    sets = [
        (load("cifar100", data_dir=settings.data_dir / "tfds"), settings.batch_size, settings.stem),
        (
            load("folder", data_dir=settings.data_dir / "imagenet10"),
            settings.folder_batch_size,
            "imagenet",
        ),
    ]
    table = Table(title=f"Pipeline and training step (W1A2 ResNet-18, width {settings.width})")
    for column in ("data", "batch", "augmentation", "pipeline img/s", "step img/s", "ratio"):
        table.add_column(column, justify="left" if column in ("data", "augmentation") else "right")
    for data, batch_size, stem in sets:
        step = step_rate(data, batch_size, stem, settings)
        for label, augment in VARIANTS.items():
            pipeline = pipeline_rate(data, batch_size, augment, settings)
            ratio = pipeline / step
            color = "green" if ratio >= TARGET else "red"
            table.add_row(
                f"{data.name} {data.image_shape[0]} x {data.image_shape[1]}, {stem} stem",
                str(batch_size),
                label,
                f"{pipeline:,.0f}",
                f"{step:,.1f}",
                f"[{color}]{ratio:,.1f}[/{color}]",
            )
    Console().print(table)
    print_jpeg_stages(sets[-1][0], settings)


if __name__ == "__main__":
    with ending(DataError):
        main(tyro.cli(Settings))
