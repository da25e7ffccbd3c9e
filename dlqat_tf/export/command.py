"""What the scripts share: loading models and images, and one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._host import check_name, write_whole
from dlqat_tf._script import ending
from dlqat_tf.export.files.tflite import ExportReport
from dlqat_tf.export.integer.adapted import adapted
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import ExportError
from dlqat_tf.export.parity import parity
from dlqat_tf.loading import ModelFileError, load_model
from dlqat_tf.report import check_target
from dlqat_tf.training import data


def run(
    command: Callable[[], int | None],
    mendable: tuple[type[Exception], ...] = (ExportError, ModelFileError, data.DataError),
) -> None:
    """Run a script's work and end the process as :func:`dlqat_tf._script.ending` does."""
    with ending(*mendable):
        sys.exit(command() or 0)


def export(
    write: Callable[..., ExportReport],
    model: Path,
    output: Path,
    *,
    calibration: tuple[str | None, Path | None, int],
    proof: tuple[str | None, int | None],
    json: Path | None,
    trust: bool,
    force: bool,
    preprocessing: str | None = None,
    size: tuple[int, int] | None = None,
    **options,
) -> None:
    """Export a stored model, print the report, and end the process as :func:`run` does.

    Args:
        write: ``to_tflite`` or ``to_lce``.
        model: A ``.keras`` file; with ``trust`` also an HDF5 file or a SavedModel folder.
        output: The file to write.
        calibration: Data set (None: no calibration), its folder, and how many of its images.
        proof: Data set whose test images the trained model, the snapped one and the file are
            compared on (None: no comparison), and how many of them (None: all).
        json: Where the report goes too, or None.
        trust: Load a model with code in it, see :func:`dlqat_tf.loading.load_model`.
        force: Overwrite existing files.
        preprocessing: How images are prepared outside of the model, or None.
        size: Height and width of the images of a model that takes any, or None.
        options: Keyword arguments of ``write``.
    """

    def work():
        if json:
            check_target(json, force=force)
        check_name(output)
        loaded = load_model(model, trust=trust)
        loaded = adapted(loaded, preprocessing=preprocessing, size=size)
        name, data_dir, count = calibration
        images = None
        if name:
            images, _ = test_images(name, data_dir, image_shape(loaded), count)
        compared, count = proof
        shown = test_images(compared, data_dir, image_shape(loaded), count) if compared else None
        report = write(loaded, output, calibration=images, force=force, **options)
        if shown:
            snapped = load_model(Path(report.snapped)) if report.snapped else loaded
            trained = loaded if report.snapped else None
            report = replace(report, proof=parity(snapped, output, *shown, trained=trained))
        report.print()
        if json:
            write_whole(json, report.to_json() + "\n")
        failures = report.proof.failures() if report.proof else []
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if failures else 0

    run(work)


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
