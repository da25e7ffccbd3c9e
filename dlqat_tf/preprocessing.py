"""How the pixels of an image become the values that a network computes with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import cast

import numpy as np
import tensorflow as tf

from dlqat_tf.graph import apply, tensors_of

PIXELS = 256
_PROBES = 16  # random images
_MOST_CHANNELS = 64  # whose order is looked for
_TOLERANCE = 1e-5  # of the largest value: float32 arithmetic in another order


@dataclass(frozen=True)
class Preprocessing:
    """What is done to pixels outside of a model: value = (pixel / scale - mean) / std.

    "tf", "caffe" and "torch" are those of ``tf.keras.applications.*.preprocess_input``:

    - "tf": scale 127.5 and mean 1, to [-1, 1];
    - "torch": scale 255, mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225);
    - "caffe": channels reversed to blue, green, red, then less (103.939, 116.779, 123.68).

    Without arguments it is pixels / 255.

    Args:
        mean: One number, or one for each channel of the result.
        std: The same, above zero.
        scale: What pixels are divided by first.
        reverse_channels: Whether the last channel of the image becomes the first.

    Raises:
        ValueError: An argument is not as above.
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    scale: float = 255.0
    reverse_channels: bool = False

    def __post_init__(self):
        for name in ("mean", "std", "scale"):
            value = getattr(self, name)
            numbers = value if isinstance(value, Sequence) or np.ndim(value) == 1 else [value]
            fits = all(isinstance(each, Real) and math.isfinite(each) for each in numbers)
            many = name == "scale" and np.ndim(value)
            if not fits or many or (name != "mean" and min(numbers) <= 0):
                above = "" if name == "mean" else " above zero"
                raise ValueError(
                    f"Expected {name} to be a finite number{above}"
                    f"{'' if name == 'scale' else ', or one for each channel'}. Received: "
                    f"{name}={value!r}."
                )
            is_one = np.ndim(value) == 0
            object.__setattr__(self, name, float(value) if is_one else tuple(map(float, value)))
        if not isinstance(self.reverse_channels, bool):
            raise ValueError(
                "Expected reverse_channels to be a boolean. Received: "
                f"reverse_channels={self.reverse_channels!r}."
            )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 values of pixels (..., channels)."""
        values = np.asarray(pixels, np.float32)
        if self.reverse_channels:
            values = values[..., ::-1]
        values = values / np.float32(self.scale) - np.asarray(self.mean, np.float32)
        return values / np.asarray(self.std, np.float32)

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Return the uint8 pixels that are nearest to values, which need not be any."""
        pixels = (np.asarray(values, np.float64) * self.std + self.mean) * self.scale
        if self.reverse_channels:
            pixels = pixels[..., ::-1]
        return np.rint(np.clip(pixels, 0, PIXELS - 1)).astype(np.uint8)

    def fits(self, values: np.ndarray) -> bool:
        """Return whether values can be of pixels, up to half the distance of two pixels."""
        half = 0.5 / (np.asarray(self.std) * self.scale)
        ends = [(end / self.scale - np.asarray(self.mean)) / self.std for end in (0, PIXELS - 1)]
        return bool(np.all(values >= ends[0] - half) and np.all(values <= ends[1] + half))

    def check_channels(self, channels: int) -> None:
        """Raise ValueError where mean or standard deviation are for other channels."""
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(
                    f"Expected {name} to be one number or {channels}, one for each channel. "
                    f"Received: {len(value)} of them."
                )

    def of_all_pixels(self, channels: int) -> np.ndarray:
        """Return the float32 values (256, channels) that the pixels 0 to 255 become."""
        return self(all_pixels(channels))


NAMED = {
    "tf": Preprocessing(mean=1.0, scale=127.5),
    "torch": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": Preprocessing((103.939, 116.779, 123.68), scale=1.0, reverse_channels=True),
}
UNIT = Preprocessing()  # pixels / 255
RAW = Preprocessing(scale=1.0)  # the pixels themselves, which the model prepares


def preprocessing_of(value) -> Preprocessing | None:
    """Return the preprocessing that a name, a configuration, one of these, or None means.

    Raises:
        ValueError: It is none of them.
    """
    if value is None or isinstance(value, Preprocessing):
        return value
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    if isinstance(value, dict) and set(value) <= {field.name for field in fields(UNIT)}:
        return Preprocessing(**value)
    raise ValueError(
        f"Expected preprocessing to be one of {', '.join(map(repr, NAMED))}, or a "
        f"Preprocessing(mean=, std=). Received: {value!r}."
    )


def is_unit(values: np.ndarray) -> bool:
    """Return whether the 256 values of all channels are pixels / 255, which files take as codes."""
    return bool(np.allclose(values, UNIT.of_all_pixels(values.shape[1]), rtol=0, atol=1e-6))


def all_pixels(channels: int) -> np.ndarray:
    """Return the pixels 0 to 255 in each channel, float32 (256, channels)."""
    return np.repeat(np.arange(PIXELS, dtype=np.float32)[:, None], channels, 1)


@dataclass(frozen=True)
class Affine:
    """Arithmetic on each value: outputs[..., c] = inputs[..., order[c]] * gain[c] + offset[c].

    Attributes:
        gain: float64 (channels,).
        offset: float64 (channels,).
        order: Source channel of each channel.
    """

    gain: np.ndarray
    offset: np.ndarray
    order: tuple[int, ...]

    @property
    def keeps_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))


def affine_of(function: Callable, shape: tuple[int | None, ...], dtype="float32") -> Affine | None:
    """Return the arithmetic that a function does on each value, found by calling it.

    Whatever operations it consists of: random values say what it does to each channel, if it is
    that and nothing else.

    Args:
        function: Maps a batch of images, or of other values, to one of the same shape.
        shape: Of one of them, channels last. None stands for any size.
        dtype: Of the images.

    Returns:
        The arithmetic, or None where it does something else.
    """
    whole, channels = [size or 2 for size in shape[:-1]], cast(int, shape[-1])
    # A few rows and columns tell where operations look at neighbours. Where sizes are fixed, an
    # operation may insist on them.
    for sizes in ([min(size, 3) for size in whole], whole):
        found = _probed(function, sizes, channels, dtype)
        if found is not None or sizes == whole:
            return found
    return None


def _probed(function, sizes: list[int], channels: int, dtype) -> Affine | None:
    lowest = 0 if tf.as_dtype(dtype).is_unsigned else -PIXELS
    shape = (_PROBES, *sizes, channels)
    values = np.random.default_rng(0).integers(lowest, PIXELS, shape)
    try:
        results = np.asarray(function(tf.cast(values, dtype)), np.float64)
    except (ValueError, TypeError, tf.errors.OpError):
        return None
    if results.shape != values.shape or not np.all(np.isfinite(results)):
        return None
    before, after = (each.reshape(-1, channels).astype(np.float64) for each in (values, results))
    found = _fitted(before, after, np.arange(channels))
    if found is None and channels <= _MOST_CHANNELS:
        centred = [each - each.mean(0) for each in (before, after)]
        unit = [each / np.maximum(np.linalg.norm(each, axis=0), 1e-30) for each in centred]
        found = _fitted(before, after, np.abs(unit[0].T @ unit[1]).argmax(0))
    return found


def _fitted(before: np.ndarray, after: np.ndarray, order: np.ndarray) -> Affine | None:
    """Return the least squares of each channel on its source, None where they leave anything."""
    before = before[:, order]
    centre = before.mean(0), after.mean(0)
    centred = before - centre[0]
    gain = (centred * (after - centre[1])).sum(0) / np.maximum((centred**2).sum(0), 1e-30)
    offset = centre[1] - gain * centre[0]
    errors = np.abs(before * gain + offset - after).max(0)
    fits = np.all(errors <= _TOLERANCE * np.maximum(np.abs(after).max(0), 1e-30))
    return Affine(gain, offset, tuple(order.tolist())) if fits else None


def arithmetic(node) -> Affine | None:
    """Return the arithmetic that the Keras node of a layer's call does, or None."""
    tensors = tensors_of(node)
    if len(tensors) != 1 or not tensors[0].shape.rank or tensors[0].shape[-1] is None:
        return None
    outputs = tf.nest.flatten(node.outputs)
    if len(outputs) != 1 or tuple(outputs[0].shape) != tuple(tensors[0].shape):
        return None  # a slice, say
    shape, dtype = tuple(tensors[0].shape[1:]), _dtype(tensors[0])
    return affine_of(lambda values: _in_float32(node, values), shape, dtype) if shape else None


def evaluated(node, values: np.ndarray) -> np.ndarray:
    """Return the float32 values (count, channels) that such a call makes of others."""
    (tensor,) = tensors_of(node)
    # By Keras itself, on images of one pixel.
    images = values.reshape(len(values), *[1] * (tensor.shape.rank - 2), -1)
    outputs = _in_float32(node, tf.cast(images, _dtype(tensor)))
    return np.reshape(outputs, values.shape).astype(np.float32)


def _dtype(tensor) -> tf.DType:
    return tf.float32 if tensor.dtype.is_floating else tensor.dtype


def _in_float32(node, values: tf.Tensor) -> tf.Tensor:
    """Call a layer as a node did, but in float32 whatever its policy."""
    layer = node.layer
    if "float16" in layer.dtype_policy.name:
        layer = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
        if node.layer.weights:
            layer.build(values.shape)
            layer.set_weights(node.layer.get_weights())
            layer.finalize_state()  # of a Normalization, the only one with weights
    return apply(node, layer, [values])[0]


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class ChannelAffine(tf.keras.layers.Layer):
    """A gain, an offset and a source for each channel: what preprocessing by operators amounts to.

    .. math:: y_c = x_{o_c} g_c + b_c

    In place of operators that Keras cannot save, such as a reversal of the channels. It computes in
    float32, whatever the global policy: 16 bits would make fewer values of 256 pixels.

    Args:
        gain: One number for each channel.
        offset: The same.
        order: Source channel of each channel.

    Input and output shape: (batch, ..., channels).
    """

    def __init__(self, gain, offset, order, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs}, autocast=False)
        self.gain, self.offset = list(map(float, gain)), list(map(float, offset))
        self.order = list(map(int, order))

    def call(self, inputs):
        values = tf.cast(inputs, tf.float32)
        if self.order != sorted(self.order):
            values = tf.gather(values, self.order, axis=-1)
        return values * self.gain + self.offset

    def get_config(self):
        return {
            **super().get_config(),
            "gain": self.gain,
            "offset": self.offset,
            "order": self.order,
        }
