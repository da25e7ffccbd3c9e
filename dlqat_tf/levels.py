"""The levels of a network's weights and activations: codes, ranges, and what is clipped.

What is read here is what training moves beside the loss; :mod:`dlqat_tf.plots` draws it and
:mod:`dlqat_tf.training.monitoring` writes it into TensorBoard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dlqat_tf.graph import named_leaves
from dlqat_tf.quantizers import (
    ActivationGrid,
    ActivationQuantizer,
    WeightQuantizer,
    rounding_with,
    unwrapped,
)


class RoundedKernel(NamedTuple):
    """A layer's latent kernel and what rounds it."""

    kernel: tf.Variable
    quantizer: WeightQuantizer


def rounded_kernels(model: tf.keras.Model) -> dict[str, RoundedKernel]:
    """Return the kernels that a quantizer of this package rounds.

    >>> kernel, quantizer = dlqat_tf.levels.rounded_kernels(model)["head"]

    Args:
        model: Functional or Sequential model that is built; nested ones are searched too.

    Returns:
        Kernel and quantizer by the layer's name, as in :func:`dlqat_tf.summary`: after that of a
        nested model and a slash for a layer in one. Layers of 32 bits are left out.
    """
    kernels = {}
    for name, layer in _layers(model):
        parts = unwrapped(layer)
        quantizer = parts.kernel_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.bits != 32:
            kernels[name] = RoundedKernel(parts.kernel, quantizer)
    return kernels


def weight_codes(model: tf.keras.Model) -> dict[str, np.ndarray]:
    """Return the integers that the kernels of a network are rounded to.

    >>> dlqat_tf.levels.weight_codes(model)["stage1_block1_1_conv"]

    Args:
        model: As for :func:`rounded_kernels`.

    Returns:
        By layer, int16 codes of the kernel's shape. Binary planes with scales of their own count as
        if those were 1, 2, 4 and so on: one code for each combination of signs. Layers with neither
        equidistant levels nor planes (SYQ's ternary convolutions) are left out.
    """
    codes = {}
    for name, each in rounded_kernels(model).items():
        with contextlib.suppress(ValueError):  # the contract: it has none
            codes[name] = _codes(each)
    return codes


def _codes(rounded: RoundedKernel) -> np.ndarray:
    kernel, quantizer = rounded
    try:
        return quantizer.grid(kernel).codes
    except ValueError:
        planes = quantizer.planes(kernel)
        signs = [sign.astype(np.int16) << i for i, (sign, _) in enumerate(planes)]
        return np.sum(signs, axis=0, dtype=np.int16)


def flip_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Return the share of a kernel's codes that changed, 0 to 1.

    Args:
        before: What :func:`weight_codes` returned for a layer.
        after: The same, later.
    """
    return float(np.mean(before != after))


def activation_ranges(model: tf.keras.Model) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest value that each activation quantizer lets pass.

    >>> before = dlqat_tf.levels.activation_ranges(model)

    Args:
        model: As for :func:`rounded_kernels`.

    Returns:
        (lowest, highest) by the quantizer's layer, in units of the activation. Quantizers without
        a grid are left out: those of 32 bits, and those that start from the first batch before it.
    """
    ranges = {}
    for name, _, quantizer in _activation_quantizers(model):
        grid = _grid(quantizer)
        if grid is not None:
            ranges[name] = float(grid.lowest * grid.step), float(grid.highest * grid.step)
    return ranges


def clip_shares(model: tf.keras.Model, images) -> dict[str, float]:
    """Return the share of each activation quantizer's inputs that lie beyond its range.

    These are the values whose gradient is cut and that pull the range: above the highest level, and
    below the lowest where that is negative. What a rectifier takes to zero does not count.

    >>> dlqat_tf.levels.clip_shares(model, images[:256])

    Args:
        model: As for :func:`rounded_kernels`.
        images: A batch of what the model takes; it runs at once, in inference mode.

    Returns:
        Shares, 0 to 1, by the quantizer's layer.
    """
    counts: dict[str, list[int]] = {}  # beyond the range, and all

    def counting(name, quantize, grid):
        lowest = grid.lowest * grid.step if grid.lowest else -np.inf
        highest = grid.highest * grid.step
        counts[name] = [0, 0]

        def count_and_quantize(values, training=None):
            beyond = (values < lowest) | (values > highest)
            counts[name][0] += int(tf.math.count_nonzero(beyond))
            counts[name][1] += values.shape.num_elements()
            return quantize(values, training)

        return count_and_quantize

    # Eagerly, and around the quantizers themselves, since layers and wrappers hold some of them.
    with contextlib.ExitStack() as changes:
        for name, layer, quantizer in _activation_quantizers(model):
            grid = _grid(quantizer)
            if grid is not None:
                changes.enter_context(rounding_with(layer, quantizer))
                quantizer.__dict__["quantize"] = counting(name, quantizer.quantize, grid)
                changes.callback(quantizer.__dict__.pop, "quantize")
        model(images, training=False)
    return {name: beyond / total for name, (beyond, total) in counts.items() if total}


def _layers(model: tf.keras.Model) -> Iterator[tuple[str, tf.keras.layers.Layer]]:
    """Return each layer once, by its first name where several nested models have it."""
    first: dict[tf.keras.layers.Layer, str] = {}
    for name, layer in named_leaves(model):
        first.setdefault(layer, name)
    return ((name, layer) for layer, name in first.items())


def _activation_quantizers(
    model,
) -> Iterator[tuple[str, tf.keras.layers.Layer, ActivationQuantizer]]:
    """Return the activation quantizers of a model, their names, and the layers that hold them."""
    for name, layer in _layers(model):
        own = layer if isinstance(layer, ActivationQuantizer) else unwrapped(layer).output_quantizer
        for suffix, quantizer in (
            ("/input", getattr(layer, "input_quantizer", None)),
            ("", own),
        ):
            if isinstance(quantizer, ActivationQuantizer):
                yield name + suffix, layer, quantizer


def _grid(quantizer: ActivationQuantizer) -> ActivationGrid | None:
    try:
        return quantizer.grid()
    except ValueError:  # the contract: 32 bits, or not started
        return None
