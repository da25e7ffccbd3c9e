"""What the inputs of a model take: pixels, prepared in the model or before it, or other values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import AUGMENTATIONS
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.preprocessing import (
    RAW,
    UNIT,
    Affine,
    Preprocessing,
    arithmetic,
    evaluated,
    is_unit,
    preprocessing_of,
)
from dlqat_tf.quantizers.input import range_of

_layers = tf.keras.layers

VALUES = "values"
# What Keras makes layers of where a model computes with tensors; what Lambda layers hold is code.
_OPERATORS = ("TFOpLambda", "SlicingOpLambda", "Lambda")


def check_sizes(model: tf.keras.Model) -> None:
    """Raise for inputs of any length: files have one size, and only images are given one later."""
    free = [each for each in model.inputs if len(each.shape) != 4 and None in each.shape[1:]]
    if free:
        shapes = ", ".join(f"{each.node.layer.name!r} {tuple(each.shape[1:])}" for each in free)
        raise ConversionError(
            f"Expected inputs of known lengths. Received: {shapes}. Build the network with a "
            "number in place of None, tf.keras.Input((length, channels)), and copy its weights: "
            "new.set_weights(old.get_weights())."
        )


def arithmetic_of(call) -> Affine | None:
    """Return the arithmetic that a call does to an input, or None."""
    known = type(call.layer) in (_layers.Rescaling, _layers.Normalization, *AUGMENTATIONS)
    if not (known or type(call.layer).__name__ in _OPERATORS) or len(call.inputs) != 1:
        return None
    (source, _) = call.inputs[0]
    if source.role != "input" and source.affine is None:
        return None
    if type(call.layer) in AUGMENTATIONS:  # they change nothing in inference
        channels = call.node.outputs.shape[-1]
        return Affine(np.ones(channels), np.zeros(channels), tuple(range(channels)))
    return arithmetic(call.node)


@dataclass(frozen=True)
class Taken:
    """What one input takes.

    Attributes:
        preprocessing: What is done to pixels outside of the model; None for other values.
        examples: Values (count, channels) that reach the model: all that there may be where the
            preprocessing is known, the extremes of each channel on the images, or None.
        note: What the user should know.
    """

    preprocessing: Preprocessing | None
    examples: np.ndarray | None
    note: str = ""

    @property
    def is_known(self) -> bool:
        return self.preprocessing is not None


def taken(image, setting, values: np.ndarray | None) -> Taken:
    """Return what an input takes.

    Args:
        image: The call of the input.
        setting: What the user says of its preprocessing, or None.
        values: The images, or None.

    Raises:
        ConversionError: The setting is none, or the images are not what the model takes.
    """
    shape = image.layer.output.shape[1:]
    preprocessing, note = None, ""
    if setting is not None:
        preprocessing = _of_setting(image.name, setting, shape)
    elif shape.rank == 3 or _rescales(image):
        preprocessing, note = _of_values(image, values)
    if preprocessing is not None:
        if values is not None:
            _check(image, preprocessing, values)
        return Taken(preprocessing, preprocessing.of_all_pixels(shape[-1]), note)
    if values is None:
        return Taken(None, None, note)
    flat = values.reshape(-1, values.shape[-1])
    return Taken(None, np.stack([flat.min(0), flat.max(0)]), note)


def prepared(call, examples: np.ndarray) -> np.ndarray:
    """Return what the arithmetic up to a call makes of values of its input."""
    if call.role == "input":
        return examples
    if type(call.layer) in AUGMENTATIONS:
        return prepared(call.inputs[0][0], examples)
    return evaluated(call.node, prepared(call.inputs[0][0], examples))


def too_narrow(examples: dict[str, np.ndarray]) -> str:
    """Return a note on channels of measurements that the step of their quantizer rounds away.

    Args:
        examples: By input, values (count, channels) that one quantizer rounds.
    """
    alpha, signed = range_of(np.concatenate([np.ravel(each) for each in examples.values()]))
    least = 4 * alpha / (127 if signed else 255)
    spans = {name: np.ptp(each, axis=0) for name, each in examples.items()}
    lost = {name: int(np.sum((span > 0) & (span < least))) for name, span in spans.items()}
    parts = [f"{count} of {len(spans[name])} of {name!r}" for name, count in lost.items() if count]
    if not parts:
        return ""
    return (
        f"Some channels differ by less than four of the 256 steps that they share: "
        f"{', '.join(parts)}. Put a Normalization or BatchNormalization layer behind the input of "
        "the float model, which brings them to one scale before they are rounded."
    )


def _rescales(image) -> bool:
    calls = list(_preparing(image))
    pixels = RAW.of_all_pixels(image.layer.output.shape[-1]) if calls else None
    return any(is_unit(prepared(call, pixels)) for call in calls)


def _preparing(call) -> Iterator:
    """Yield the calls that are arithmetic on an input, one behind the other."""
    for reader in call.readers:
        if reader.affine is not None:
            yield reader
            yield from _preparing(reader)


def _of_setting(name: str, setting, shape) -> Preprocessing | None:
    if isinstance(setting, str) and setting == VALUES:
        return None
    try:
        preprocessing = preprocessing_of(setting)
        preprocessing.check_channels(shape[-1])
    except ValueError as error:
        raise ConversionError(
            f'For the input {name!r}: {error} "values" stands for inputs that are no images.'
        ) from None
    return preprocessing


def _of_values(image, values: np.ndarray | None) -> tuple[Preprocessing | None, str]:
    """Return what is done to pixels outside, as the model and its images tell."""
    is_prepared = any(reader.affine is not None for reader in image.readers)
    if values is None and is_prepared and not _rescales(image):
        return RAW, (
            f"Without images: {image.name!r} is taken to be pixels from 0 to 255, which the model "
            "prepares. Where it gets pixels / 255, pass preprocessing=dlqat_tf.Preprocessing()."
        )
    if values is None:
        return (RAW if is_prepared else UNIT), ""
    is_whole = np.array_equal(values, np.rint(values))
    if _rescales(image):
        return RAW, ""
    if UNIT.fits(values) and not (is_prepared and is_whole):
        return UNIT, ""
    if RAW.fits(values) and is_prepared:
        # Resized photographs have fractions, and so have other things.
        note = (
            f"{image.name!r} is taken to be pixels from 0 to 255, which the model prepares. If "
            'they are no images, pass preprocessing="values".'
        )
        return RAW, "" if is_whole else note
    if RAW.fits(values) and is_whole:
        return UNIT, ""  # which is refused: it is likelier that a division was forgotten
    return None, (
        f"The images for {image.name!r} are from {values.min():g} to {values.max():g}, which are "
        f"not pixels{'' if is_prepared else ' / 255'}: files take these values, as float32 or "
        'int8, in the range of these images. For files that take pixels: preprocessing="tf", '
        '"caffe", "torch" or Preprocessing(mean=, std=), here or in to_tflite and to_lce.'
    )


def _check(image, preprocessing: Preprocessing, values: np.ndarray) -> None:
    """Raise unless the values can be those of pixels."""
    # Fractions up to 1 where 255 is white: they have been divided already.
    divided = preprocessing == RAW and values.max() <= 1
    divided = divided and not np.array_equal(values, np.rint(values))
    if preprocessing.fits(values) and not divided:
        return
    ends = preprocessing.of_all_pixels(values.shape[-1])
    if preprocessing == RAW:
        advice = "The model prepares pixels itself: pass them as they are."
        if _rescales(image):
            advice = "The model rescales by 1 / 255 itself: pass the pixels as they are."
    elif preprocessing == UNIT:
        advice = (
            "Divide pixels by 255, or put a Rescaling(1 / 255) directly after the input of the "
            'float model. For other preparation, pass preprocessing="tf", "caffe", "torch" or '
            'Preprocessing(mean=, std=); for what is no image, preprocessing="values".'
        )
    else:
        advice = "Prepare the images as preprocessing says."
    raise ConversionError(
        f"Expected values from {ends.min():g} to {ends.max():g} in the images for {image.name!r}, "
        "since exported files take pixels from 0 to 255 for them. Received: "
        f"{values.min():g} to {values.max():g}. {advice}"
    )


def settings_of(preprocessing, names: list[str]) -> dict[str, object]:
    """Return what the user says of each input: one thing for all, or a dict by name."""
    if not isinstance(preprocessing, dict):
        return dict.fromkeys(names, preprocessing)
    unknown = sorted(map(str, set(preprocessing) - set(names)))
    if unknown:
        raise ConversionError(
            f"Expected preprocessing by input name, of {', '.join(names)}. Received: "
            f"{', '.join(unknown)}."
        )
    return {name: preprocessing.get(name) for name in names}
