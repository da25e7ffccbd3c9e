"""Convolutions as sums of binary ones, for Larq Compute Engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlqat_tf.export.integer.network import Convolution
from dlqat_tf.quantizers import ActivationGrid, ActivationPlanes


@dataclass(frozen=True)
class BinaryPart:
    """One binary convolution: output = sums of (signs * input signs) * multiplier + bias.

    Attributes:
        weight_bit: Which plane of the weights.
        activation_bit: Which bit of the activation's codes.
        signs: int8 (height, width, input channels, output channels) of -1 and +1.
        multiplier: float32 (output channels,).
        bias: float32 (output channels,).
    """

    weight_bit: int
    activation_bit: int
    signs: np.ndarray
    multiplier: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class BinaryLayer:
    """A layer as binary convolutions: output = (sum of the parts) * scale + bias.

    Attributes:
        parts: The binary convolutions.
        scale: float32 (output channels,), or None where one part does all of it.
        bias: float32 (output channels,), or None likewise.
    """

    parts: list[BinaryPart]
    scale: np.ndarray | None
    bias: np.ndarray | None


def binary_layer(
    node: Convolution, source: ActivationGrid | ActivationPlanes | None
) -> BinaryLayer:
    """Return the binary convolutions of a node.

    The sum of several parts is taken in codes, where float32 is exact, and scaled once: large terms
    cancel in it, and rounding each before would cost more than Keras's own rounding. Free levels
    have no codes; there each part has its factor.

    Args:
        node: The convolution.
        source: What its input is on: a grid, free levels, or signs (None).
    """
    if node.free is not None or isinstance(source, ActivationPlanes):
        return _on_free_levels(node, source)
    step = node.step.astype(np.float64) * (float(source.step) if source else 1.0)
    constant = np.zeros_like(step)
    bits = 1
    if source:
        bits = source.highest.bit_length()
        constant = (2**bits - 1) / 2 * node.weights.sum(axis=(0, 1, 2), dtype=np.float64)
    signs = planes(node)
    alone = len(signs) * bits == 1
    parts = []
    for i, each in enumerate(signs):
        for j in range(bits):
            factor = np.full_like(step, -(2.0 ** (i + j - 1)) if source else 2.0**i)
            bias = np.zeros_like(step) if parts else constant
            if alone:
                factor, bias = factor * step, bias * step + node.bias
            parts.append(BinaryPart(i, j, each, np.float32(factor), np.float32(bias)))
    if alone:
        return BinaryLayer(parts, None, None)
    return BinaryLayer(parts, step.astype(np.float32), node.bias.astype(np.float32))


def _on_free_levels(node: Convolution, source) -> BinaryLayer:
    """Return parts with a factor of their own; the first one has all constants in its bias."""
    signs = planes(node)
    if node.free is None:
        scales = [node.step.astype(np.float64) * 2.0**i for i in range(len(signs))]
    else:
        scales = list(node.free.scales.astype(np.float64))
    terms = _terms(source)
    constant = sum(offset for offset, _ in terms)
    bias = node.bias + sum(
        scale * constant * each.sum(axis=(0, 1, 2), dtype=np.float64)
        for each, scale in zip(signs, scales, strict=True)
    )
    parts = []
    for i, (each, scale) in enumerate(zip(signs, scales, strict=True)):
        for j, (_, factor) in enumerate(terms):
            first = np.zeros_like(bias) if parts else bias
            parts.append(BinaryPart(i, j, each, np.float32(scale * factor), np.float32(first)))
    return BinaryLayer(parts, None, None)


def _terms(source) -> list[tuple[float, float]]:
    """Return offset and factor of the sign of each bit: values are the sum of both.

    A bit's sign is -1 where it is set.
    """
    if source is None:
        return [(0.0, 1.0)]
    if isinstance(source, ActivationPlanes):
        scales = [float(scale) for scale in source.scales]
        return [(0.0, -scale) if source.signed else (scale / 2, -scale / 2) for scale in scales]
    scales = [float(source.step) * 2.0**j for j in range(source.highest.bit_length())]
    return [(scale / 2, -scale / 2) for scale in scales]


def planes(node: Convolution) -> list[np.ndarray]:
    """Return int8 arrays of -1 and +1: free ones, or codes = sum_i 2^i planes[i]."""
    if node.free is not None:
        return [each.reshape(node.weights.shape) for each in node.free.signs]
    offsets = (node.weights.astype(np.int32) + 2**node.bits - 1) // 2
    return [(2 * ((offsets >> i) & 1) - 1).astype(np.int8) for i in range(node.bits)]
