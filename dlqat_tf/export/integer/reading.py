"""What the variables and quantizers of single Keras layers say: codes, steps, grids, gains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.folding import Scaled
from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.nodes import Activation, Dense, FreeLevels, Levels, Node, ReLU, Sign
from dlqat_tf.heads import Head
from dlqat_tf.quantizers import (
    ActivationQuantizer,
    NoGrid,
    WeightQuantizer,
    int8_codes,
)
from dlqat_tf.quantizers.of_larq import Steps, is_sign, steps_of, weight_grid

_SUPPORTED = (
    "Conv2D, DepthwiseConv2D, Conv2DTranspose, Dense and their larq Quant* forms, "
    "BatchNormalization, ReLU, ReLU6, quantizers of dlqat_tf and Larq, Add, Subtract, "
    "Multiply, Average, Maximum, Minimum, Concatenate, ZeroPadding2D, Cropping2D, slices, splits, "
    "MaxPool2D, AveragePooling2D, GlobalAveragePooling2D, GlobalMaxPooling2D, "
    "UpSampling2D (nearest), Flatten, Reshape, Permute, SeparableConv2D and its larq form, the "
    "one-dimensional forms of these, operators that compute the same, what changes values in "
    "training only, Rescaling, Normalization, the heads of dlqat_tf, models made of these, and any "
    "of these in TF-MOT's wrapper with the quantizers of dlqat_tf"
)
_LARGEST_STEP = 2.0**16  # far beyond it LCE's interpreter aborts the process


@dataclass(frozen=True)
class WeightLevels:
    """A kernel in integers.

    Attributes:
        weights: int16 codes, or float32 where there is no quantizer.
        step: float32, one or one for each last axis; None where there is no quantizer.
        bits: Declared width; 32 where there is no quantizer.
        free: What the codes are only near to, or None.
    """

    weights: np.ndarray
    step: np.ndarray | None
    bits: int
    free: FreeLevels | None = None


class NoIntegerForm(Exception):
    """A layer that nothing here computes in integers, so that it runs in float."""


def unsupported(name: str, layer, reason: str) -> ExportError:
    """Return the error about a layer that cannot be exported."""
    return ExportError(
        f"Layer {name!r} ({type(layer).__name__}) cannot be exported: {reason}. "
        f"Supported: {_SUPPORTED}."
    )


def values_of(variable, name: str) -> np.ndarray:
    """Return a variable's float32 (latent) value, whatever policy or strategy it lives under."""
    with lq.context.quantized_scope(False):
        value = np.asarray(tf.convert_to_tensor(variable), np.float32)
    if not np.all(np.isfinite(value)):
        raise ExportError(
            f"Layer {name!r} holds NaN or infinity in {variable.name!r}: the training diverged; "
            "export an earlier checkpoint."
        )
    return value


def levels_of(quantizer, kernel: np.ndarray, name: str, layer) -> WeightLevels:
    """Return what a quantizer, or None, makes of a latent kernel.

    Raises:
        ExportError: It says no codes.
    """
    if quantizer is None:
        return WeightLevels(kernel, None, 32)
    if not isinstance(quantizer, WeightQuantizer):
        try:
            grid, bits = weight_grid(quantizer, kernel)
        except ValueError as error:
            raise unsupported(name, layer, str(error)) from error
        return WeightLevels(grid.codes, np.atleast_1d(grid.step), bits)
    levels = _levels(quantizer.of_channels_last, quantizer.reordered(kernel), name)
    return replace(levels, weights=quantizer.in_order(levels.weights, kernel.shape))


def _levels(quantizer: WeightQuantizer, kernel: np.ndarray, name: str) -> WeightLevels:
    """Return what a quantizer makes of a latent kernel with the output channels last."""
    try:
        grid = quantizer.grid(kernel)
    except NoGrid:
        return _snapped(quantizer, kernel, name)
    except ValueError as error:
        raise ExportError(f"Layer {name!r} cannot be exported: {error}") from error
    if np.abs(grid.codes).max() > 127:  # an int8 of a symmetric grid does not hold them
        return _snapped(quantizer, kernel, name)
    return WeightLevels(grid.codes, np.atleast_1d(np.float32(grid.step)), quantizer.precision)


def _snapped(quantizer: WeightQuantizer, kernel: np.ndarray, name: str) -> WeightLevels:
    """Return the int8 codes nearest to levels that it does not hold, and planes that they are."""
    values = np.asarray(quantizer(kernel), np.float32)
    grid = int8_codes(quantizer, kernel)
    distance = np.abs(grid.codes * grid.step - values)
    largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
    relative = float((distance / np.where(largest > 0, largest, 1)).max())
    signs, scales = _planes(quantizer, kernel)
    free = FreeLevels(name, float(distance.max()), relative, signs, scales)
    return WeightLevels(grid.codes, grid.step, quantizer.precision, free)


def _planes(quantizer: WeightQuantizer, kernel: np.ndarray):
    """Return binary planes of the kernel and a scale for each output channel, or two None."""
    try:
        planes = quantizer.planes(kernel)
    except ValueError:
        return None, None
    channels = kernel.shape[-1]
    scales = []
    for _, scale in planes:
        if np.size(scale) > 1 and np.shape(scale) != (channels,):
            return None, None  # of each kernel position
        scales.append(np.broadcast_to(np.float32(scale).ravel(), channels))
    signs = [sign.reshape(-1, channels) for sign, _ in planes]
    return np.stack(signs).astype(np.int8), np.stack(scales)


def head_of(layer: Head, shared: dict) -> Node:
    """Return the node of a head, as one dense layer."""
    name = shared["name"]
    values_of(layer.kernel, name)
    kernel, bias = layer.dense()
    weights, step, bits = kernel, None, 32
    if layer.weight_bits not in (None, 32):
        grid = layer.grid()
        weights, bits = grid.codes, layer.weight_bits
        step = np.broadcast_to(np.float32(grid.step), bias.shape)
    return Dense(**shared, weights=weights, step=step, bits=bits, bias=bias.astype(np.float64))


def activation_of(quantizer, shared: dict) -> Node | None:
    """Return the node of an activation quantizer, None where it changes nothing.

    Raises:
        ExportError: It says no codes.
    """
    name = shared["name"]
    if is_sign(quantizer):
        return Sign(**shared)
    is_ours = isinstance(quantizer, ActivationQuantizer)
    if is_ours and quantizer.precision == 32:
        return ReLU(**shared, unrounded=True) if quantizer.rectifies else None
    try:
        steps = Steps(quantizer.grid(), quantizer.precision) if is_ours else steps_of(quantizer)
    except NoGrid:
        return Levels(**shared, planes=quantizer.planes(), bits=quantizer.precision)
    except ValueError as error:
        raise ExportError(f"Layer {name!r} cannot be exported: {error}") from error
    grid = steps.grid
    if not 0 < grid.step <= _LARGEST_STEP:
        raise ExportError(
            f"Layer {name!r} has the step {grid.step:g}: expected a number above zero and of at "
            f"most {_LARGEST_STEP:g}. The training diverged; export an earlier checkpoint."
        )
    if grid.highest - grid.lowest > 255 or grid.lowest > 0:
        raise ExportError(
            f"Layer {name!r} has codes from {grid.lowest} to {grid.highest}: expected at most 256 "
            "of them, zero included, as an int8 holds."
        )
    return Activation(**shared, grid=grid, bits=steps.bits)


def scaling_of(quantizer) -> tuple[float, float]:
    """Return gain and offset of what a quantizer rounds: 1 and 0 where it takes values as such."""
    if isinstance(quantizer, ActivationQuantizer) or is_sign(quantizer):
        return 1.0, 0.0
    steps = steps_of(quantizer)
    return steps.gain, steps.offset


def norm_of(layer, shared: dict) -> Node:
    """Return the node of a batch norm, before it is folded."""
    name = shared["name"]
    axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
    if axis not in (-1, layer.input_spec.ndim - 1):
        raise NoIntegerForm(name)
    mean, variance = (
        values_of(variable, name).astype(np.float64)
        for variable in (layer.moving_mean, layer.moving_variance)
    )
    if not np.all(variance + layer.epsilon > 0):
        raise ExportError(
            f"Layer {name!r} has channels of variance {variance.min():.3g} and epsilon "
            f"{layer.epsilon}, so its gain is not finite: train it, or build it with an epsilon "
            "above zero."
        )
    gain = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        gain = gain * values_of(layer.gamma, name)
    beta = values_of(layer.beta, name) if layer.center else 0.0
    return Scaled(
        **shared,
        layer=name,
        gain=gain,
        offset=beta - mean * gain,
        moments=Moments(
            np.broadcast_to(beta, gain.shape), np.abs(gain) * np.sqrt(np.maximum(variance, 0))
        ),
        is_free=layer.scale and layer.center,
    )
