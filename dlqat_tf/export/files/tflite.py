"""Keras model -> .tflite on stock kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._litert import tflite_interpreter
from dlqat_tf._progress import progress, say
from dlqat_tf.export.files.assembly import (
    Built,
    ExportReport,
    assemble,
    check_choice,
    checked_batch_size,
    finish,
    measure,
    targets_of,
)
from dlqat_tf.export.files.inputs import Images, InputTypes, check_lookups
from dlqat_tf.export.files.writer import Writer
from dlqat_tf.export.integer.adapted import Size, adapted
from dlqat_tf.export.integer.endings import Outputs
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork


@progress("to_tflite")
def to_tflite(
    model: tf.keras.Model,
    path: str | Path,
    *,
    input_type: InputTypes = None,
    batch_size: int | None = 1,
    weights: str = "int8",
    kernels: str = "xnnpack",
    activations: str = "int8",
    calibration: Images | tf.data.Dataset | None = None,
    preprocessing=None,
    size: Size = None,
    outputs: Outputs = None,
    snap: bool = True,
    force: bool = False,
) -> ExportReport:
    """Write a model as a .tflite file of stock operations that computes what was trained.

    Activations of b bits are int8 codes whose highest stands at 127, so that saturation clips;
    weights are int8 codes stretched to fill the width; requantization does the rounding. After the
    last activation quantizer everything is float32 (the head's weights are stored in 8 bits), so
    that logits have no ties that the model did not have. Weights on levels that no grid holds (free
    bases, a scale for each kernel position) are at the nearest int8 codes, which the report says
    and the snapped model then has. The logits of a cosine or Gaussian mixture
    head are those of the equivalent dense layer: same arg-max, another scale and offset.

    Args:
        model: As for :func:`dlqat_tf.export.integer.lower.lower`.
        path: The file to write.
        input_type: "uint8" pixels, of images only; "int8", codes of the first quantizer (of pixels
            / 255, pixels less 128), whose scale and zero point the report says; or "float32", what
            the model takes (of images, pixels / 255 or as they are prepared). A dtype of TensorFlow
            or numpy is as good as its name. A dictionary of these by input name, or None for
            "uint8" of images and "float32" of other inputs.
        batch_size: How many images the file takes at once, which browsers and microcontrollers
            want to know, or None for any number: an interpreter then resizes it.
        weights: "int8", or "int4" to store hidden convolutions of 1 to 3 bits at half the size.
            Those run outside XNNPACK, several times slower and with their own rounding.
        kernels: Whose rounding the biases are for: "xnnpack", TFLite's kernels by default, or
            "builtin", those it has without XNNPACK and those of TFLite Micro, which round twice.
        activations: "int8", or "float32" for float kernels on weights that are stored as codes, in
            a network whose activations are not rounded: as small a file, and equal to Keras up to
            the order of float32 additions. What is rounded in training stays so.
        calibration: Images, uint8 or float in [0, 1] (in [0, 255] too where the model rescales
            pixels itself), (images, height, width, channels); for a model of several inputs a list
            of such arrays, or a dictionary by input name; or a batched ``tf.data.Dataset`` of them,
            with labels or without, whose first 512 images are taken. Needed only where the model
            says no range, as at residual adds without ``residual_bits``.
        preprocessing: How images are prepared outside of the model, where the model does not know:
            "tf", "caffe" or "torch", a :class:`~dlqat_tf.preprocessing.Preprocessing`, or a
            dictionary of these by input name. The file then takes their pixels, and both it and the
            snapped model remember.
        size: (height, width) of the file's images, where the model takes any; a dictionary by input
            name for several inputs.
        outputs: "logits", without a softmax or sigmoid at the end of the model; "probabilities",
            with one, put there where the model has none (a softmax of several scores, a sigmoid of
            one); or a dictionary of these by output name. None for what the model returns.
        snap: Move biases away from rounding ties (:func:`dlqat_tf.export.integer.snap.snap`) and
            save ``<stem>.snapped.keras`` beside the file: the model with the file's biases. Else
            they are the trained ones, to the nearest that the kernels can hold.
        force: Overwrite existing files.

    Raises:
        ExportError: An argument, the model or the folder is not as above. No file is left.
    """
    check_choice("weights", weights, ("int8", "int4"))
    check_choice("kernels", kernels, ("xnnpack", "builtin"))
    check_choice("activations", activations, ("int8", "float32"))
    batch_size = checked_batch_size(batch_size)
    targets = targets_of(path, snap, force)
    say("reads the model")
    model = adapted(model, preprocessing=preprocessing, size=size, outputs=outputs)
    network = lower(model)
    built = build(
        network,
        measure(calibration, network),
        input_type=input_type,
        batch_size=batch_size,
        weights=weights,
        kernels=kernels,
        activations=activations,
        clear=snap,
    )
    say("runs the file once")
    _check_runs(built)
    return finish(model, built, targets)


def build(
    network: IntegerNetwork,
    calibrate=None,
    *,
    input_type: InputTypes = None,
    batch_size: int | None = 1,
    weights: str = "int8",
    kernels: str = "xnnpack",
    activations: str = "int8",
    clear: bool = True,
) -> Built:
    """Build the file of :func:`to_tflite` in memory.

    Args:
        network: What :func:`dlqat_tf.export.integer.lower.lower` returns.
        calibrate: As for :func:`dlqat_tf.export.integer.plan.plan`.
        input_type: As for :func:`to_tflite`.
        batch_size: As for :func:`to_tflite`.
        weights: As for :func:`to_tflite`.
        kernels: As for :func:`to_tflite`.
        activations: As for :func:`to_tflite`.
        clear: As for :func:`dlqat_tf.export.integer.plan.plan`.

    Raises:
        ExportError: A layer has no kernel that computes what was trained.
    """
    return assemble(
        Writer,
        network,
        calibrate,
        input_type,
        batch_size=batch_size,
        int4=weights == "int4",
        floats=activations == "float32",
        kernels=kernels,
        plane_limit=0,
        clear=clear,
    )


def _opened(data: bytes, kernels: str = "xnnpack"):
    interpreter = tflite_interpreter(data, xnnpack=kernels == "xnnpack")

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        for details, each in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], each)
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]

    return run


def _check_runs(built: Built) -> None:
    """Run the file once, so that no file that cannot run is ever written."""
    try:
        interpreter = tflite_interpreter(built.data, xnnpack=built.kernels == "xnnpack")
        for each in interpreter.get_input_details():  # what is there may be no number of a word
            interpreter.set_tensor(each["index"], np.zeros(each["shape"], each["dtype"]))
        interpreter.invoke()
        check_lookups(
            built.data,
            built.planned,
            built.input_types,
            lambda data: _opened(data, built.kernels),
        )
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"The interpreter refuses the file that was built: {error}") from error
