"""Nodes of Keras's layers without variables, by exact types: a subclass could compute anything."""

from __future__ import annotations

import math

import tensorflow as tf

from dlqat_tf.export.integer.nodes import (
    Add,
    AveragePool,
    Concatenate,
    Crop,
    GlobalAveragePool,
    Maximum,
    MaxPool,
    Merge,
    Minimum,
    Multiply,
    Node,
    Pad,
    Pool,
    ReLU,
    Reshape,
    Subtract,
    Transpose,
    Upsample,
)
from dlqat_tf.export.integer.reading import NoIntegerForm

_layers = tf.keras.layers
# The activations that are a ReLU, and where they end.
RELUS = {tf.keras.activations.relu: math.inf, tf.nn.relu: math.inf, tf.nn.relu6: 6.0}
_MERGES: dict[type, type[Merge]] = {
    _layers.Add: Add,
    _layers.Maximum: Maximum,
    _layers.Minimum: Minimum,
    _layers.Multiply: Multiply,
    _layers.Subtract: Subtract,
}
_POOLS: dict[type, type[Pool]] = {
    _layers.MaxPool2D: MaxPool,
    _layers.AveragePooling2D: AveragePool,
}


def nodes_of(layer, shared: dict, shapes: list[tuple[int, ...]]) -> list[Node]:
    """Return the nodes of a layer without variables; each reads the one before it.

    Args:
        layer: The layer, whose channels are last.
        shared: Name of the first node, and the names of what it reads.
        shapes: Of what it reads, without the batch.

    Raises:
        NoIntegerForm: None computes it.
    """
    kind, name = type(layer), shared["name"]
    if kind in _MERGES and len({len(shape) for shape in shapes}) == 1:
        return [_MERGES[kind](**shared)]
    if kind in _POOLS:
        window = dict(size=layer.pool_size, strides=layer.strides, padding=layer.padding)
        return [_POOLS[kind](**shared, **window)]
    if kind is _layers.ReLU and _is_plain(layer):
        return [ReLU(**shared, highest=float(layer.max_value or math.inf))]
    if kind is _layers.Activation and layer.activation in RELUS:
        return [ReLU(**shared, highest=RELUS[layer.activation])]
    if kind is _layers.Concatenate and layer.axis in (-1, len(shapes[0])):
        return [Concatenate(**shared)]
    if kind is _layers.ZeroPadding2D:
        return [Pad(**shared, amounts=layer.padding)]
    if kind is _layers.Cropping2D:
        return [Crop(**shared, amounts=layer.cropping)]
    if kind is _layers.UpSampling2D and layer.interpolation == "nearest":
        return [Upsample(**shared, size=layer.size)]
    if kind is _layers.Permute:
        return [Transpose(**shared, order=tuple(axis - 1 for axis in layer.dims))]
    if kind is _layers.GlobalAveragePooling2D:
        return [GlobalAveragePool(**shared, keepdims=layer.keepdims)]
    if kind is _layers.GlobalMaxPooling2D:
        (*size, channels), strides = shapes[0], (1, 1)
        pooled = MaxPool(**shared, size=tuple(size), strides=strides, padding="valid")
        flat = Reshape(name=f"{name}_flat", inputs=(name,), shape=(channels,))
        return [pooled] if layer.keepdims else [pooled, flat]
    if kind in (_layers.Flatten, _layers.Reshape):
        shape = layer.compute_output_shape((None, *shapes[0]))[1:]
        return [Reshape(**shared, shape=tuple(shape))]
    raise NoIntegerForm(name)


def _is_plain(relu) -> bool:
    return relu.max_value in (None, 6) and not relu.negative_slope and not relu.threshold
