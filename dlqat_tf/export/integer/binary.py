"""Convolutions as sums of binary ones, for Larq Compute Engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlqat_tf.export.integer.nodes import Convolution
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


def binary_parts(
    node: Convolution, source: ActivationGrid | ActivationPlanes | None
) -> list[BinaryPart]:
    r"""Return the binary convolutions of ``node``, whose sum, in their order, is its output.

    Multipliers hold all scales, and the first part's bias all constants, so nothing but additions
    follows. Large terms cancel in the sum: on grids with the common scale :math:`u`, weight step
    times input step, each is about :math:`2^{i+j-1} n u` for n products, off by up to
    :math:`2^{-23}` of that, in all :math:`2^{-23} n u` times half of the largest product of codes.
    That is the order of what Keras's own additions may err by, from which biases keep their
    distance (:func:`dlqat_tf.export.integer.storing.stored`).

    Args:
        node: The convolution.
        source: What its input is on: a grid, free levels, or signs (None).
    """
    signs, terms = planes(node), _terms(source)
    if node.free is None:
        scales = [node.step.astype(np.float64) * 2.0**i for i in range(len(signs))]
    else:
        scales = list(node.free.scales.astype(np.float64))
    constant = sum(offset for offset, _ in terms)
    bias = node.bias + sum(
        scale * constant * each.sum(axis=(0, 1, 2), dtype=np.float64)
        for each, scale in zip(signs, scales, strict=True)
    )
    parts = []
    for i, (each, scale) in enumerate(zip(signs, scales, strict=True)):
        for j, (_, factor) in enumerate(terms):
            multiplier = scale * factor * (1.0 if node.clipped is None else node.clipped)
            parts.append(BinaryPart(i, j, each, np.float32(multiplier), np.float32(bias)))
            bias = np.zeros_like(bias)
    return parts


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
