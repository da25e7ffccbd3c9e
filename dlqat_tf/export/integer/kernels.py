"""The kernels of a Keras layer as those of the nodes that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dlqat_tf.export.integer.reading import levels_of, unsupported, values_of
from dlqat_tf.quantizers import Unwrapped
from dlqat_tf.quantizers.kernel_order import channels_last

_layers = tf.keras.layers
SEPARABLE = (_layers.SeparableConv1D, _layers.SeparableConv2D)
SEQUENCES = (_layers.Conv1D, _layers.SeparableConv1D)
DEPTHWISE = "/depthwise"  # after the name of a separable layer, its depthwise convolution


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what rounds it.

    Attributes:
        name: Of the node.
        layer: The Keras layer.
        variable: Latent.
        quantizer: Or None.
        order: What its axes are, as of :class:`~dlqat_tf.quantizers.WeightQuantizer`.
        attribute: Of the layer, that holds the quantizer.
    """

    name: str
    layer: tf.keras.layers.Layer
    variable: tf.Variable
    quantizer: object
    order: str
    attribute: str

    def settings(self, bias: tf.Variable | None = None) -> dict:
        """Return the arguments of a node with this kernel, and the layer's bias or none."""
        values = values_of(self.variable, self.name)
        self._check_order()
        levels = levels_of(self.quantizer, values, self.name, self.layer)
        weights, step = self._in_node(levels.weights, levels.step)
        channels = int(np.prod(weights.shape[2:])) if self._is_depthwise else weights.shape[-1]
        if step is not None:
            # A step per last axis of a depthwise kernel, where no DepthwiseWeights is, is one per
            # multiplier.
            step = np.tile(step, channels // step.size).astype(np.float32)
        offset = np.zeros(channels) if bias is None else values_of(bias, self.name)
        return dict(
            weights=weights,
            step=step,
            bits=levels.bits,
            free=levels.free,
            bias=offset.astype(np.float64),
            bias_sources=() if bias is None else (self.name,),
        )

    @property
    def _is_depthwise(self) -> bool:
        return self.order == "depthwise"

    @property
    def _read_order(self) -> str:
        """What its quantizer takes its axes for; Larq's quantizers say nothing."""
        return getattr(self.quantizer, "order", "channels last")

    def _check_order(self) -> None:
        if self._read_order not in (self.order, "channels last"):
            reason = (
                "its quantizer takes other weights for those of an output channel: "
                f"{type(self.quantizer).__name__} is for {self._read_order} convolutions"
            )
            raise unsupported(self.name, self.layer, reason)

    def _in_node(self, weights: np.ndarray, step: np.ndarray | None):
        """Return weights and steps with the output channels last, sequences as images of a row."""
        if self.order == "transposed":
            weights = channels_last(weights)
            if self._read_order != self.order and step is not None and step.size > 1:
                reason = (
                    "its quantizer has a step for each input channel, since it takes these for the "
                    "output channels: use quantizers.TransposedWeights around it"
                )
                raise unsupported(self.name, self.layer, reason)
        return (weights[None] if isinstance(self.layer, SEQUENCES) else weights), step


def kernels_of(parts: Unwrapped, name: str) -> list[Kernel]:
    """Return the kernels of a convolution or dense layer in the order that they multiply in."""
    layer = parts.layer
    if isinstance(layer, SEPARABLE):
        depthwise = (layer.depthwise_kernel, layer.depthwise_quantizer, "depthwise")
        pointwise = (layer.pointwise_kernel, layer.pointwise_quantizer, "channels last")
        return [
            Kernel(name + DEPTHWISE, layer, *depthwise, "depthwise_quantizer"),
            Kernel(name, layer, *pointwise, "pointwise_quantizer"),
        ]
    order, attribute = "channels last", "kernel_quantizer"
    if isinstance(layer, _layers.Conv2DTranspose):
        order = "transposed"
    elif isinstance(layer, _layers.DepthwiseConv2D):
        order, attribute = "depthwise", "depthwise_quantizer"
    return [Kernel(name, layer, parts.kernel, parts.kernel_quantizer, order, attribute)]


def spatial_of(layer) -> dict:
    """Return the arguments of a Convolution node that say where windows lie."""
    padding, pad_value = layer.padding.lower(), float(getattr(layer, "pad_values", 0.0))
    before = (1,) if isinstance(layer, SEQUENCES) else ()
    return dict(
        strides=(*before, *layer.strides),
        dilation=(*before, *layer.dilation_rate),
        padding="valid" if padding == "causal" else padding,
        pad_value=pad_value if padding == "same" else 0.0,
    )
