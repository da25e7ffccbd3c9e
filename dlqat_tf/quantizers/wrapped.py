"""Where a layer keeps its quantizers: in itself, as Larq's layers do, or in a wrapper around it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import singledispatch

import larq as lq
import tensorflow as tf


@dataclass(frozen=True)
class Unwrapped:
    """A layer and the quantizers around it.

    Attributes:
        layer: The layer that computes, free of wrappers.
        kernel: Its latent kernel, or None where it has none.
        kernel_quantizer: What rounds the kernel, or None.
        output_quantizer: What rounds the output after the layer's own activation, or None.
    """

    layer: tf.keras.layers.Layer
    kernel: tf.Variable | None
    kernel_quantizer: lq.quantizers.Quantizer | None
    output_quantizer: lq.quantizers.Quantizer | None = None


@singledispatch
def unwrapped(layer: tf.keras.layers.Layer) -> Unwrapped:
    """Return a layer's parts, whichever interface holds them.

    Export reads layers through this function, so it need not know who wraps them: a module that
    brings a wrapper registers how to take it off.

    Args:
        layer: Any Keras layer.

    Raises:
        ValueError: The wrapper holds something that has no integer form; the message says what
            to do.
    """
    names = ("kernel", "kernel_quantizer")
    if isinstance(layer, (tf.keras.layers.DepthwiseConv1D, tf.keras.layers.DepthwiseConv2D)):
        names = ("depthwise_kernel", "depthwise_quantizer")
    return Unwrapped(layer, *(getattr(layer, name, None) for name in names))


def rounded_kernels_of(layer: tf.keras.layers.Layer) -> list[tuple]:
    """Return each kernel of a layer, latent, and what rounds it: separable ones have two.

    Args:
        layer: As for :func:`unwrapped`.
    """
    parts = unwrapped(layer)
    if not isinstance(
        parts.layer, (tf.keras.layers.SeparableConv1D, tf.keras.layers.SeparableConv2D)
    ):
        pairs = [(parts.kernel, parts.kernel_quantizer)]
    else:
        pairs = [
            (
                getattr(parts.layer, f"{name}_kernel"),
                getattr(parts.layer, f"{name}_quantizer", None),
            )
            for name in ("depthwise", "pointwise")
        ]
    return [pair for pair in pairs if pair[1] is not None]


@singledispatch
def rounding_with(layer: tf.keras.layers.Layer, quantizer) -> contextlib.AbstractContextManager:
    """Let a layer call the very quantizer of its output that :func:`unwrapped` returned.

    Wrappers may make another with each call. A module that brings such a one registers how.

    Args:
        layer: Any Keras layer.
        quantizer: What rounds its output, that layer itself or what its wrapper holds.
    """
    return contextlib.nullcontext()
