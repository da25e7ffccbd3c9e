"""Keras models without policies of 16 bits."""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.graph import copied


def in_float32(model: tf.keras.Model) -> tf.keras.Model:
    """Return a model, or a copy that computes in float32 where a policy of 16 bits is in force.

    Files round the sums of float32 or of integers, and 16-bit activations between a convolution and
    its quantizer would round them before.
    """
    layers = (each for each in model.submodules if isinstance(each, tf.keras.layers.Layer))
    if any("float16" in layer.dtype_policy.name for layer in layers):
        return copy_in_float32(model)
    return model


def copy_in_float32(model: tf.keras.Model) -> tf.keras.Model:
    """Return a copy of a model that computes in float32."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        return copied(model, _in_float32)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _in_float32(config):
    """Return a layer's configuration, and those within it, without policies of 16 bits."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and "float16" in str(value) else _in_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(each) for each in config)
    return config
