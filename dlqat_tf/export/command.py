"""What the scripts share: loading models and images, and one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._script import ending
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.loading import ModelFileError
from dlqat_tf.training import data


def run(
    command: Callable[[], int | None],
    mendable: tuple[type[Exception], ...] = (ExportError, ModelFileError, data.DataError),
) -> None:
    """Run a script's work and end the process as :func:`dlqat_tf._script.ending` does."""
    with ending(*mendable):
        sys.exit(command() or 0)


def snapped_and_trained(model: Path, file: Path, trained: Path | None) -> tuple[Path, Path | None]:
    """Return the model with a file's biases and the one that was trained, None where unknown.

    Args:
        model: Either of them.
        file: The .tflite file; export saves the snapped model beside it.
        trained: The trained one, where that is said.
    """
    beside = file.with_suffix(".snapped.keras")
    if trained is not None or not beside.exists() or not model.exists() or model.samefile(beside):
        return model, trained
    return beside, model


def image_shape(model: tf.keras.Model) -> tuple[int, ...]:
    """Return the shape of the images that a model takes.

    Raises:
        ExportError: It takes several, or cannot be exported.
    """
    inputs = lower(model).inputs
    if len(inputs) > 1:
        raise ExportError(
            f"The model has {len(inputs)} inputs, {', '.join(node.name for node in inputs)}, and a "
            "data set gives one image: call dlqat_tf.export.to_tflite (its calibration) and "
            "dlqat_tf.export.parity from Python, which take an array for each input."
        )
    if inputs[0].preprocessing is None:
        raise ExportError(
            f"The input {inputs[0].name!r} takes values that are no pixels, or whose preprocessing "
            "nobody said, and a data set gives images: say it (--preprocessing), or call "
            "dlqat_tf.export from Python."
        )
    return inputs[0].shape


def test_images(
    name: str, data_dir: Path | None, shape: tuple[int, ...], count: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``count`` (None: all) test images of a data set, uint8, and their labels.

    Args:
        name: A data set that :func:`dlqat_tf.training.data.load` knows.
        data_dir: Where it lies.
        shape: Image shape of the model.
        count: How many.

    Raises:
        ExportError: The name is unknown or the images have another shape.
    """
    size = shape[0] if name in ("folder", "imagenet2012") else None
    try:
        dataset = data.load(name, data_dir=data_dir, image_size=size)
    except data.DataError:
        raise
    except ValueError as error:
        raise ExportError(str(error)) from None
    if dataset.image_shape != tuple(shape):
        raise ExportError(
            f"The model takes images of shape {tuple(shape)}, {name} has {dataset.image_shape}."
        )
    if count is not None and count < 1:
        raise ExportError(f"Expected at least 1 image. Received: {count}.")
    images, labels, found = [], [], 0
    for batch, classes in dataset.test_batches(64):
        images.append(np.rint(batch.numpy() * 255).astype(np.uint8))
        labels.append(classes.numpy())
        found += len(classes)
        if count is not None and found >= count:
            break
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]
