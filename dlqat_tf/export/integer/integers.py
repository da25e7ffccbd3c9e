"""The integers that kernels compute with: stretched codes, scales, biases, and multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.nodes import (
    Activation,
    Convolution,
    Dense,
    Node,
    Sign,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.quantizers import ActivationGrid

_INT8, _INT4 = 127, 7  # the highest codes of weights, whose grids are symmetric
LARGEST = 2**30  # magnitude of sums and of biases, a bit below what an int32 holds
_COLLAPSED = (
    "A range (alpha) has collapsed or exploded: retrain the layer or initialise its range larger."
)
HIGHEST_RATIO = 256  # of the unit of sums to the output step, which XNNPACK's kernels hold
_NEGLIGIBLE = 2.0**-10  # of an output step


@dataclass(frozen=True)
class Integers:
    """What an integer kernel computes with.

    Attributes:
        codes: int8, of the node's weights' shape, stretched to fill the width.
        scale: float32 (output channels,), the step of these codes as the file stores it.
        bias: int64 (output channels,), in units of input step * scale; fits an int32.
        lead: float64 (output channels,), how far the kernel's rounding runs ahead, in the same
            units: outputs round as if the bias were ``bias + lead``.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    lead: np.ndarray


def integers(node: Weighted, source: ActivationGrid, target: ActivationGrid) -> Integers:
    """Return the integers of a node between two grids.

    The codes are multiplied by the node's stretch m, by default the largest that fits, and the step
    divided by it: biases are integers in units of input step times weight step, and unstretched
    that unit is so coarse that it moves outputs across rounding borders.

    Args:
        node: Convolution or dense layer with codes.
        source: Grid of its input.
        target: Grid of the activation that rounds its output.

    Raises:
        ExportError: The bias or the scale is outside what the kernels hold.
    """
    codes, step, largest = unstretched(node, source, target)
    stretch = largest if node.stretch is None else node.stretch
    reach = np.abs(codes).sum(axis=0) * max(source.highest, -source.lowest)
    scale, unit = units(step, source, stretch)
    ratio = unit / float(target.step)
    lead = lead_of(node, ratio)
    bias = np.rint(node.bias / unit - lead)
    limit = largest_bias(node, ratio)
    # Beyond this distance from the grid every output saturates, whatever the input is.
    saturated = np.abs(node.bias) - reach * step > 512 * float(target.step)
    bias = np.where(saturated, np.clip(bias, -np.floor(limit), np.floor(limit)), bias)
    bad = (np.abs(bias) > limit) | (ratio >= HIGHEST_RATIO) | (ratio < 2.0**-32)
    bad |= reach * stretch > limit
    if np.any(bad):
        channel = int(np.argmax(bad))
        raise ExportError(
            f"Layer {node.name!r}, channel {channel}: bias {node.bias[channel]:g} at a weight step "
            f"of {node.step[channel]:g} and an output step of {float(target.step):g} is outside "
            "what int8 kernels hold. Its range (alpha) or batch-norm gain has collapsed or "
            "exploded: retrain the layer or initialise its range larger."
        )
    stretched = (codes * stretch).reshape(node.weights.shape).astype(np.int8)
    return Integers(stretched, scale, bias.astype(np.int64), lead)


def unstretched(node: Weighted, source: ActivationGrid, target: ActivationGrid):
    """Return codes (weights, channels), the step of their sums, and the largest stretches."""
    codes = node.weights.reshape(-1, len(node.bias)).astype(np.int64)
    step = node.step.astype(np.float64) * float(source.step)
    reach = np.abs(codes).sum(axis=0) * max(source.highest, -source.lowest)
    # A batch-norm gain that decayed to nothing leaves a constant, and steps too small for biases.
    constant = reach * step < _NEGLIGIBLE * float(target.step)
    codes = np.where(constant, 0, codes)
    step = np.where(constant, _NEGLIGIBLE * float(target.step), step)
    stretch = _width(node) // np.maximum(np.abs(codes).max(axis=0), 1)
    with np.errstate(divide="ignore"):
        stretch = np.minimum(stretch, LARGEST // np.maximum(np.where(constant, 1, reach), 1))
        stretch = np.minimum(stretch, np.floor(LARGEST * step / np.abs(node.bias)))
    return codes, step, np.maximum(np.where(constant, 1, stretch), 1).astype(np.int64)


def units(step, source: ActivationGrid, stretch) -> tuple[np.ndarray, np.ndarray]:
    """Return the float32 scale that a file stores, and the float64 unit of sums and biases."""
    scale = (step / float(source.step) / stretch).astype(np.float32)
    return scale, scale.astype(np.float64) * float(source.step)


def _width(node: Weighted) -> int:
    return _INT4 if node.kernel == "int4" else _INT8


def fixed_point(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a ratio of steps as TFLite's built-in kernels hold it: multiplier * 2^(exponent - 31).

    Args:
        ratio: float64, above zero.

    Returns:
        int64 multipliers from 2^30 to 2^31 - 1, and exponents.
    """
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    exponent = np.where(multiplier == 2**31, exponent + 1, exponent)
    return np.where(multiplier == 2**31, 2**30, multiplier), exponent


def add_multipliers(
    name: str, sources: Sequence[ActivationGrid], target: ActivationGrid
) -> tuple[int, int, int]:
    """Return the multipliers of an integer add's two inputs and their common shift.

    The sum is ``(a * first + b * second) / 2^shift``; the larger multiplier has 21 bits.

    Args:
        name: Name of the add.
        sources: Grids of its inputs.
        target: Grid of the activation that rounds it.

    Raises:
        ExportError: A ratio of the steps is outside what the kernels hold.
    """
    ratios = [source.step / target.step for source in sources]
    if not all(2.0**-10 <= ratio < 2.0**8 for ratio in ratios):
        raise ExportError(
            f"Layer {name!r} adds inputs of steps {sources[0].step:g} and {sources[1].step:g} for "
            f"an output step of {target.step:g}: int8 adds hold ratios from 1/1024 to 256. "
            + _COLLAPSED
        )
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    first, second = (int(np.rint(ratio * np.float32(2.0**shift))) for ratio in ratios)
    return first, second, shift


def product_ratio(
    name: str, sources: Sequence[ActivationGrid], target: ActivationGrid
) -> np.float32:
    """Return what an integer multiplication scales products of codes by.

    Args:
        name: Name of the multiplication.
        sources: Grids of its two inputs.
        target: Grid of the activation that rounds it.

    Raises:
        ExportError: The ratio is outside what the kernels hold.
    """
    ratio = np.float32(sources[0].step) * np.float32(sources[1].step) / np.float32(target.step)
    if not 2.0**-16 <= ratio < HIGHEST_RATIO:
        raise ExportError(
            f"Layer {name!r} multiplies inputs of steps {sources[0].step:g} and "
            f"{sources[1].step:g} for an output step of {target.step:g}: int8 multiplications hold "
            "ratios of the product of the former to the latter from 1/65536 to 256. " + _COLLAPSED
        )
    return ratio


def _rounds_twice(node: Weighted) -> bool:
    return node.library == "builtin" or node.kernel == "int4"  # for which XNNPACK has no kernels


def lead_of(node: Weighted, ratio: np.ndarray) -> np.ndarray:
    """Return :attr:`Integers.lead`, which is 0 but on TFLite's built-in kernels.

    They round twice, half up: first to 2^-r of an output step, where r is the right shift, then to
    whole ones. So every threshold lies half of that first grain lower, where r is above 0. TFLite
    Micro's take halves away from zero the second time, so that thresholds below zero lie half a
    grain higher there: no bias suits those too.
    """
    if not _rounds_twice(node):
        return np.zeros_like(ratio)
    shift = np.maximum(-fixed_point(ratio)[1], 0)
    return np.where(shift > 0, 0.5 * 2.0**-shift / ratio, 0.0)


def largest_bias(node: Weighted, ratio: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of sums and biases, which some kernels shift to the left."""
    left = np.maximum(fixed_point(ratio)[1], 0) if _rounds_twice(node) else np.zeros_like(ratio)
    return LARGEST / 2.0**left


def rounding_of(node: Node, readers: dict[str, list[Node]]) -> Activation | Sign | None:
    """Return what alone reads and rounds the integer sums of a node, None where nothing does."""
    reading = readers[node.name]
    sums = is_integer(node) or (isinstance(node, Weighted) and node.kernel in ("planes", "sums"))
    rounded = len(reading) == 1 and isinstance(reading[0], (Activation, Sign))
    return reading[0] if sums and rounded else None


def target_of(node: Node, readers: dict[str, list[Node]]) -> Activation:
    """Return the activation that rounds the output of a node on an integer kernel."""
    return readers[node.name][0]


def is_integer(node: Node) -> bool:
    """Return whether an integer kernel runs this convolution or dense layer."""
    kinds = (Convolution, TransposedConvolution, Dense)
    return isinstance(node, kinds) and node.kernel in ("int8", "int4")
