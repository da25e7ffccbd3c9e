"""Keras model -> .tflite on stock kernels."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._compat import tflite_interpreter
from dlqat_tf.datasets import first_images
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.census import Census, census
from dlqat_tf.export.files.writer import INPUT_TYPES, Writer
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import ExportError, Input, IntegerNetwork, Weighted
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import by_input, measured_ranges
from dlqat_tf.export.integer.snap import Shift, SnapReport, snap
from dlqat_tf.report import Report

# One array; for a model of several inputs one for each, in their order or by their names.
Images = np.ndarray | list[np.ndarray] | tuple[np.ndarray, ...] | dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportReport(Report):
    """What an export wrote.

    Attributes:
        path: The file.
        snapped: The Keras model whose biases are those of the file, or None.
        census: Content of the file, declared against stored bits among it.
        shifts: How far the biases moved.
        calibrated: Ranges that came from images, by node: (lowest, highest) value.
        warnings: What to look at.
        proof: The comparison of trained model, snapped one and file, where one was asked for.
    """

    path: str
    snapped: str | None
    census: Census
    shifts: list[Shift]
    calibrated: dict[str, tuple[float, float]]
    warnings: list[str]
    proof: Report | None = None

    def tables(self):
        moved = SnapReport(self.shifts).largest_steps
        lines = [f"biases moved by at most {moved:.2g} output steps"] if self.shifts else []
        if self.snapped:
            lines.append(f"Keras model with these biases: {self.snapped}")
        if self.calibrated:
            lines.append(f"ranges from images, not from training: {', '.join(self.calibrated)}")
        proof = self.proof.tables() if self.proof else []
        return [
            *self.census.tables(),
            *lines,
            *(f"warning: {text}" for text in self.warnings),
            *proof,
        ]


def to_tflite(
    model: tf.keras.Model,
    path: str | Path,
    *,
    input_type: str | tf.DType = "uint8",
    weights: str = "int8",
    calibration: Images | tf.data.Dataset | None = None,
    snap: bool = True,
    force: bool = False,
) -> ExportReport:
    """Write a model as a .tflite file of stock operations that computes what was trained.

    Activations of b bits are int8 codes whose highest stands at 127, so that saturation clips;
    weights are int8 codes stretched to fill the width; requantization does the rounding. After the
    last activation quantizer everything is float32 (the head's weights are stored in 8 bits), so
    that logits have no ties that the model did not have. The logits of a cosine or Gaussian mixture
    head are those of the equivalent dense layer: same arg-max, another scale and offset.

    Args:
        model: As for :func:`dlqat_tf.export.integer.lower.lower`.
        path: The file to write.
        input_type: "uint8" pixels; "int8", pixels less 128; or "float32", pixels / 255. A dtype of
            TensorFlow or numpy is as good as its name.
        weights: "int8", or "int4" to store hidden convolutions of 1 to 3 bits at half the size.
            Those run outside XNNPACK, several times slower and with their own rounding.
        calibration: Images, uint8 or float in [0, 1] (in [0, 255] too where the model rescales
            pixels itself), (images, height, width, channels); for a model of several inputs a list
            of such arrays, or a dictionary by input name; or a batched ``tf.data.Dataset`` of them,
            with labels or without, whose first 512 images are taken. Needed only where the model
            says no range, as at residual adds without ``residual_bits``.
        snap: Move biases away from rounding ties (:func:`dlqat_tf.export.integer.snap.snap`) and
            save ``<stem>.snapped.keras`` beside the file: the model with the file's biases. Else
            they are the trained ones, to the nearest that the kernels can hold.
        force: Overwrite existing files.

    Raises:
        ExportError: An argument, the model or the folder is not as above. No file is left.
    """
    path = Path(path)
    input_type = input_type_name(input_type)
    check_choice("weights", weights, ("int8", "int4"))
    targets = targets_of(path, snap, force)
    network = lower(model)
    built = build(
        network,
        measure(calibration, network),
        input_type=input_type,
        weights=weights,
        clear=snap,
    )
    _check_runs(built.data)
    return finish(model, built, targets)


@dataclass(frozen=True)
class Built:
    """A file before it is written.

    Attributes:
        planned: The network with the kernel of every node decided.
        data: Content of the file.
        ranges: Ranges that were measured, by node: (lowest, highest) value.
    """

    planned: IntegerNetwork
    data: bytes
    ranges: dict[str, tuple[float, float]]


def build(
    network: IntegerNetwork,
    calibrate=None,
    *,
    input_type: str = "uint8",
    weights: str = "int8",
    clear: bool = True,
) -> Built:
    """Build the file of :func:`to_tflite` in memory.

    Args:
        network: What :func:`dlqat_tf.export.integer.lower.lower` returns.
        calibrate: As for :func:`dlqat_tf.export.integer.plan.plan`.
        input_type: As for :func:`to_tflite`.
        weights: As for :func:`to_tflite`.
        clear: As for :func:`dlqat_tf.export.integer.plan.plan`.

    Raises:
        ExportError: A layer has no kernel that computes what was trained.
    """
    int4 = weights == "int4"
    return assemble(Writer, network, calibrate, input_type, int4=int4, plane_limit=0, clear=clear)


def assemble(
    writer, network, calibrate, input_type: str, *, int4: bool, plane_limit: int, clear: bool
) -> Built:
    """Plan a network and write it in memory by a class of writer."""
    ranges: dict[str, tuple[float, float]] = {}

    def recording(network, names):
        ranges.update(calibrate(network, names))
        return ranges

    planned = plan(
        network,
        calibrate=None if calibrate is None else recording,
        int4=int4,
        plane_limit=plane_limit,
        clear=clear,
    )
    record = dict(input_type=input_type, int4=int4, plane_limit=plane_limit, ranges=ranges)
    return Built(planned, writer(planned, input_type).write(record), ranges)


def check_choice(name: str, value, expected: tuple[str, ...]) -> None:
    """Raise ExportError where ``value`` is not one of ``expected``."""
    if value not in expected:
        raise ExportError(
            f"Expected {name} to be one of {', '.join(expected)}. Received: {name}={value!r}."
        )


def input_type_name(input_type) -> str:
    """Return the name of one of the types that images may have in a file, given that or a dtype."""
    name = input_type
    with contextlib.suppress(TypeError):
        name = tf.as_dtype(input_type).name
    check_choice("input_type", name, INPUT_TYPES)
    return name


def targets_of(path: Path, snap: bool, force: bool) -> list[Path]:
    """Return the files that an export writes: the .tflite and, if asked for, the snapped model."""
    if path.suffix != ".tflite":
        raise ExportError(f"Expected a path that ends in .tflite. Received: {path}.")
    targets = [path, path.with_suffix(".snapped.keras")][: 2 if snap else 1]
    for target in targets:
        if target.exists() and not force:
            raise ExportError(f"{target} exists: choose another path, or overwrite with force.")
    return targets


def pixels(images: Images, network: IntegerNetwork) -> list[np.ndarray]:
    """Return images as uint8 pixels, in one array for each input.

    Args:
        images: An array; a list or tuple of one for each input; or a dictionary by input name.
        network: What takes them.

    Raises:
        ExportError: There are arrays too many or too few, they are neither uint8 nor float in
            [0, 1], of another size, or not equally many.
    """
    names = [node.name for node in network.inputs]
    if isinstance(images, dict):
        if set(images) != set(names):
            raise ExportError(
                f"Expected images by input name, for {', '.join(names)}. Received: images for "
                f"{', '.join(map(str, images))}."
            )
        images = [images[name] for name in names]
    arrays = by_input(images)
    if len(arrays) != len(names):
        raise ExportError(
            f"Expected one array of images for each input, {', '.join(names)}. Received: "
            f"{len(arrays)} for {len(names)}."
        )
    arrays = [_pixels(*each) for each in zip(arrays, network.inputs, strict=True)]
    counts = [len(each) for each in arrays]
    if len(set(counts)) > 1:
        raise ExportError(
            f"Expected as many images for each input, {', '.join(names)}. Received: "
            f"{', '.join(map(str, counts))}."
        )
    return arrays


def _pixels(images, node: Input) -> np.ndarray:
    received, images = type(images).__name__, np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != node.shape or not len(images):
        # Datasets and generators are arrays of no dimension.
        shown = f"shape {images.shape}" if images.ndim else received
        raise ExportError(
            f"Expected images of shape (images, {', '.join(map(str, node.shape))}) for the input "
            f"{node.name!r}. Received: {shown}."
        )
    if images.dtype == np.uint8:
        return images
    floats = np.issubdtype(images.dtype, np.floating)
    if floats and images.min() >= 0 and images.max() <= 1:
        return np.rint(images * 255).astype(np.uint8)
    if floats and node.raw and images.min() >= 0 and images.max() <= 255:
        return np.rint(images).astype(np.uint8)
    raise ExportError(
        "Expected uint8 images or float ones in [0, 1]. Received: "
        f"{images.dtype} from {images.min()} to {images.max()}."
    )


def measure(images: Images | tf.data.Dataset | None, network: IntegerNetwork):
    """Return the ``calibrate`` function for images, or None where there are none."""
    if isinstance(images, tf.data.Dataset):
        images, _ = first_images(images, [4] * len(network.inputs), ExportError)
    return None if images is None else measured_ranges(pixels(images, network))


def finish(model: tf.keras.Model, built: Built, targets: list[Path]) -> ExportReport:
    """Write all files of an export, or none, and return its report."""
    shifts: list[Shift] = []
    copy = None
    if len(targets) > 1:
        copy, report = snap(model, built.planned)
        shifts = report.shifts
    with _saved(copy, targets[-1]) as temporary:
        flatbuffer.write(built.data, targets[0])
        if temporary:
            os.replace(temporary, targets[1])
    return ExportReport(
        path=str(targets[0]),
        snapped=str(targets[1]) if copy is not None else None,
        census=census(targets[0]),
        shifts=shifts,
        calibrated=built.ranges,
        warnings=_dead_channels(built.planned),
    )


@contextlib.contextmanager
def _saved(model: tf.keras.Model | None, path: Path) -> Iterator[Path | None]:
    """Save a model beside ``path`` under a temporary name, which is gone in the end."""
    if model is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ExportError(f"Cannot write to the folder {path.parent}: {error.strerror}.") from None
    with folder:
        temporary = Path(folder.name) / "model.keras"
        model.save(temporary)
        yield temporary


def _dead_channels(network: IntegerNetwork) -> list[str]:
    found = []
    for node in network:
        if isinstance(node, Weighted) and not node.depthwise and node.step is not None:
            flat = node.weights.reshape(-1, node.weights.shape[-1])
            dead = int(np.sum(np.all(flat == flat[0], axis=0))) if len(flat) > 1 else 0
            if dead:
                found.append(f"{node.name}: {dead} output channels have all weights equal")
    return found


def _check_runs(data: bytes) -> None:
    """Run the file once, so that no file that cannot run is ever written."""
    try:
        tflite_interpreter(data).invoke()
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"The interpreter refuses the file that was built: {error}") from error
