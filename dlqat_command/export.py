"""Export of a trained Keras model to a .tflite file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dlqat_command.metavars import COUNT, DATASET, FILE, FOLDER


@dataclass(frozen=True)
class Options:
    """What every export of a model takes."""

    input_type: Literal["uint8", "int8", "float32"] | None = None
    """uint8 pixels; int8, codes of what the network reads; or float32, what the model takes. By
    default uint8 of images and float32 of other inputs."""
    batch_size: Annotated[int | None, COUNT] = 1
    """How many images the file takes at once, or None for any number."""
    calibration: Annotated[str | None, DATASET] = None
    """Data set for ranges that the model does not say (digits, cifar10, cifar100, imagenet2012 or
    folder); without one, `dlqat export lce` runs layers that need them in float32."""
    calibration_images: Annotated[int, COUNT] = 256
    """How many of its images."""
    data: Annotated[str | None, DATASET] = None
    """Compare the trained model, the snapped one and the file on the test images of this data set,
    as `dlqat parity` does."""
    images: Annotated[int | None, COUNT] = None
    """How many of them; all by default."""
    data_dir: Annotated[Path | None, FOLDER] = None
    """Where the data sets lie."""
    preprocessing: Literal["tf", "caffe", "torch"] | None = None
    """How images are prepared outside of the model, where it does not know."""
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None
    """Height and width of the file's images, where the model takes any."""
    outputs: Literal["logits", "probabilities"] | None = None
    """Without a softmax or sigmoid at the end, or with one; by default as the model."""
    snap: bool = True
    """Save <output>.snapped.keras, the model with the file's biases."""
    trust: bool = False
    """Load a model that holds code, such as a Lambda layer, and so run it."""
    force: bool = False
    """Overwrite existing files."""
    json: Annotated[Path | None, FILE] = None
    """Write the report here too."""


_DEFAULTS = Options()


def tflite(
    model: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    weights: Literal["int8", "int4"] = "int8",
    kernels: Literal["xnnpack", "builtin"] = "xnnpack",
    activations: Literal["int8", "float32"] = "int8",
    c_array: bool = False,
    common: Annotated[Options, tyro.conf.OmitArgPrefixes] = _DEFAULTS,
) -> None:
    """Export a trained Keras model to a .tflite file of stock operations.

    Exit status: 0, 1 where --data is given and a bound is missed, 2 for what you can mend (said in
    one line), 130 after Ctrl-C.

    Args:
        model: A .keras file; with --trust also an HDF5 file or a SavedModel folder.
        output: The .tflite file to write.
        weights: int4 stores 1- to 3-bit convolutions at half the size, which run slower.
        kernels: builtin for TFLite Micro and for TFLite without XNNPACK, whose kernels round
            otherwise; --data then runs the file without XNNPACK.
        activations: float32 runs float kernels on weights that are stored as codes, in a network
            whose activations are not rounded.
        c_array: Write the file as a C++ array too, <output>.cc and <output>.h, with shapes, scales,
            the size of TFLite Micro's arena and the operations that the file needs as constants.
        common: What every export takes.
    """
    from dlqat_tf.export import to_tflite

    how = dict(weights=weights, kernels=kernels, activations=activations)
    _export(to_tflite, model, output, common, c_array=c_array, **how)


def lce(
    model: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    plane_limit: Annotated[int, COUNT] = 9,
    target: Literal["armv8.0", "dotprod", "i8mm", "all"] = "all",
    common: Annotated[Options, tyro.conf.OmitArgPrefixes] = _DEFAULTS,
) -> None:
    """Export a trained Keras model to a .tflite file with binary convolutions.

    For Larq Compute Engine. Exit status: 0, 1 where --data is given and a bound is missed, 2 for
    what you can mend (said in one line), 130 after Ctrl-C.

    Args:
        model: A .keras file; with --trust also an HDF5 file or a SavedModel folder.
        output: The .tflite file to write.
        plane_limit: Convolutions of more planes (weight bits times activation bits) stay int8.
        target: Cores that the file is for: layers that are cheaper on int8 kernels there run on
            those. armv8.0 is without the int8 dot product (Cortex-A53, A72), dotprod with it
            (A55, A75 to A78, X1), i8mm with int8 matrix products too (A710, X2 and later); all runs
            on planes whatever can, for the smallest file.
        common: What every export takes.
    """
    from dlqat_tf.export import to_lce

    _export(to_lce, model, output, common, plane_limit=plane_limit, target=target)


def _export(
    write: Callable[..., Any],
    model: Path,
    output: Path,
    options: Options,
    *,
    c_array: bool = False,
    **others: Any,
) -> None:
    """Export a stored model by ``to_tflite`` or ``to_lce``, print the report, end the process.

    Args:
        write: The one or the other.
        model: The stored model.
        output: The file to write.
        options: What every export takes.
        c_array: Write the file as a C++ array too.
        others: Keyword arguments that ``write`` alone takes.
    """
    from dlqat_tf._host import check_name, write_whole
    from dlqat_tf.export import ExportError, command, parity
    from dlqat_tf.export.files.assembly import targets_of
    from dlqat_tf.export.files.c_array import targets, to_c_array
    from dlqat_tf.export.integer.adapted import adapted
    from dlqat_tf.loading import load_model
    from dlqat_tf.report import check_target

    def work() -> int:
        check_name(output)
        written = targets_of(output, options.snap, options.force)
        if c_array:
            written += targets(output, force=options.force)
            if options.batch_size is None:
                raise ExportError(
                    "Expected files for microcontrollers (--c-array) to take a fixed number of "
                    "images at once. Received: --batch-size None."
                )
        if options.json:
            check_target(options.json, force=options.force, beside=[model, *written])
        loaded = load_model(model, trust=options.trust)
        loaded = adapted(loaded, preprocessing=options.preprocessing, size=options.size)
        calibration, shown = (
            command.test_images(name, options.data_dir, command.image_shape(loaded), count)
            if name
            else None
            for name, count in (
                (options.calibration, options.calibration_images),
                (options.data, options.images),
            )
        )
        report = write(
            loaded,
            output,
            input_type=options.input_type,
            batch_size=options.batch_size,
            calibration=calibration and calibration[0],
            outputs=options.outputs,
            snap=options.snap,
            force=options.force,
            **others,
        )
        if c_array:
            report = replace(report, c_array=to_c_array(output, force=options.force))
        if shown:
            snapped = load_model(Path(report.snapped)) if report.snapped else loaded
            trained = loaded if report.snapped else None
            report = replace(report, proof=parity(snapped, output, *shown, trained=trained))
        report.print()
        if options.json:
            write_whole(options.json, report.to_json() + "\n")
        failures = report.proof.failures() if report.proof else []
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if failures else 0

    command.run(work)
