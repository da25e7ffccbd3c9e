"""Does the input pipeline keep up with training?

Measures images/s of the training pipeline of CIFAR-100 and of an image folder with each
augmentation, and of a training step of the W1A2 ResNet-18 on the same machine in the same run. The
pipeline runs alone here, while in training it shares the processor with the step where that has no
accelerator of its own; so the ratio should be at least 1.5.

A second table says where the time of a JPEG goes: reading, decoding all of it or only the crop that
is trained on, and what comes after; of the folder's files, and of TFRecords as tensorflow-datasets
prepares ImageNet, which are written from the same images, enlarged to 500 x 375 pixels, the size of
many of ImageNet's own. From the last rate follows how many cores feed a GPU: as many as its
images/s divided by those of one core.

    python benchmarks/data_pipeline.py --data-dir ../shared
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

import dlqat_tf
from dlqat_tf._script import ending
from dlqat_tf.training import sources
from dlqat_tf.training.data import DataError, ImageData, load
from dlqat_tf.training.images import crop_window, to_pixels

import tensorflow as tf  # isort: skip  (after dlqat_tf, which decides on the Keras version)

TARGET = 1.5
BASIC = ("crop", "flip")
IMAGENET_SIZE = (500, 375)  # pixels, width and height of most of its images
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


def write_records(folder: Path, target: Path) -> None:
    """Write the images of a folder as tensorflow-datasets writes ImageNet, at about its size."""
    import tensorflow_datasets as tfds

    def examples(split: str) -> Iterator[tuple[str, dict]]:
        for path in sorted((folder / split).glob("*/*")):
            file = io.BytesIO()
            with Image.open(path) as image:
                image.convert("RGB").resize(IMAGENET_SIZE).save(file, "JPEG", quality=96)
            file.seek(0)
            yield str(path), {"image": file, "label": path.parent.name, "file_name": path.name}

    imagenet = tfds.builder("imagenet2012", data_dir=target)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version=str(imagenet.version),
        features=imagenet.info.features,
        split_datasets={"train": list(examples("train")), "validation": list(examples("val"))},
        data_dir=target,
    )


def jpeg_stages(data: ImageData, batch_size: int) -> dict[str, tf.data.Dataset]:
    """Pipelines, of batches, that do more and more of what training does to an image."""
    train, parallel = data._train, {"num_parallel_calls": tf.data.AUTOTUNE}
    if isinstance(train, sources.Records):
        records = train.in_order().repeat()
        encoded = records.map(lambda record: train._parse(record)[0], **parallel)
    else:
        jpegs = [path for path in train.paths if path.lower().endswith((".jpg", ".jpeg"))]
        paths = tf.data.Dataset.from_tensor_slices(jpegs).repeat()
        encoded = paths.map(tf.io.read_file, **parallel)

    def decoded(image):
        return tf.io.decode_image(image, channels=3, expand_animations=False)

    def cropped(image):
        window = crop_window(tf.io.extract_jpeg_shape(image), tf.constant([0, 1], tf.int64))
        return tf.io.decode_and_crop_jpeg(image, window, channels=3)

    def resized(image):
        return to_pixels(image, data.image_shape[0], 0, tf.constant(1, tf.int64))

    stages = {
        "read": tf.strings.length,
        "read, decode all": decoded,
        "read, decode the crop": cropped,
        "read, decode the crop, resize": resized,
    }

    def first_values(work) -> tf.data.Dataset:
        one = encoded.map(lambda image: tf.reshape(work(image), [-1])[0], **parallel)
        return one.batch(batch_size)

    return {label: first_values(work) for label, work in stages.items()} | {
        "all of training's pipeline": data.train_batches(batch_size, seed=0)
    }


def per_cpu_second(batches: tf.data.Dataset, batch_size: int, settings: Settings) -> float:
    """Images per second of one core: of the processor's time, which other processes do not take."""
    batches = iter(batches)
    next(batches), next(batches)
    rates = []
    for _ in range(settings.repeats):
        start, cpu, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < settings.seconds:
            next(batches)
            images += batch_size
        rates.append(images / (time.process_time() - cpu))
    return statistics.median(rates)


def print_jpeg_stages(sets: dict[str, ImageData], settings: Settings) -> None:
    """Measure where the time of an image goes, and how many all cores prepare in a second."""
    table = Table(title="JPEGs to 224 x 224 pixels")
    columns = ("data", "work", "img / CPU second", "share of the whole time", "img/s, all cores")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right")
    batch_size = settings.folder_batch_size
    for name, data in sets.items():
        stages = jpeg_stages(data, batch_size)
        rates = {
            label: per_cpu_second(each, batch_size, settings) for label, each in stages.items()
        }
        *_, whole = rates.values()
        every = pipeline_rate(data, batch_size, BASIC, settings)
        for label, rate in rates.items():
            cores = f"{every:,.0f}" if rate == whole else ""
            table.add_row(name, label, f"{rate:,.0f}", f"{whole / rate:.0%}", cores)
        table.add_section()
    Console().print(table)


def main(settings: Settings) -> None:
    """Measure and print the tables."""
    folder = settings.data_dir / "imagenet10"
    files = load("folder", data_dir=folder)
    sets = [
        (load("cifar100", data_dir=settings.data_dir / "tfds"), settings.batch_size, settings.stem),
        (files, settings.folder_batch_size, "imagenet"),
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
    with tempfile.TemporaryDirectory() as target:
        write_records(folder, Path(target))
        records = load("imagenet2012", data_dir=target)
        print_jpeg_stages({"files": files, "TFRecords": records}, settings)


if __name__ == "__main__":
    with ending(DataError):
        main(tyro.cli(Settings))
