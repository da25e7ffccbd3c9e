"""What a model's outputs are: logits, or what a softmax or sigmoid makes of them."""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.quantizers import unwrapped

_layers = tf.keras.layers
_KINDS = {
    tf.keras.activations.softmax: "softmax",
    tf.nn.softmax: "softmax",
    tf.keras.activations.sigmoid: "sigmoid",
    tf.nn.sigmoid: "sigmoid",
}


def end_of(tensor) -> tf.keras.layers.Layer:
    """Return the layer that an output of a model comes from, in nested models too."""
    layer = tensor.node.layer
    if hasattr(layer, "_nodes_by_depth"):
        index = [id(each) for each in tf.nest.flatten(tensor.node.outputs)].index(id(tensor))
        return end_of(layer.outputs[index])
    return layer


def ending_of(tensor) -> str:
    """Return "softmax" or "sigmoid" where an output of a model comes from one, else ""."""
    try:
        layer = unwrapped(end_of(tensor)).layer
    except ValueError:  # export says what it is
        return ""
    if type(layer) is _layers.Softmax:
        return "softmax" if layer.axis in (-1, len(tensor.shape) - 1) else ""
    activation = getattr(layer, "activation", None)
    return _KINDS.get(activation, "") if callable(activation) else ""
