"""Functions of single values, and what changes values in training only."""

from __future__ import annotations

import tensorflow as tf

_layers = tf.keras.layers

# What changes values in training only.
AUGMENTATIONS = (
    _layers.RandomBrightness,
    _layers.RandomContrast,
    _layers.RandomFlip,
    _layers.RandomHeight,
    _layers.RandomRotation,
    _layers.RandomTranslation,
    _layers.RandomWidth,
    _layers.RandomZoom,
)
IN_TRAINING = (
    *AUGMENTATIONS,
    _layers.ActivityRegularization,
    _layers.AlphaDropout,
    _layers.Dropout,
    _layers.GaussianDropout,
    _layers.GaussianNoise,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout2D,
    _layers.SpatialDropout3D,
)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    r"""Return :math:`\min(\max(x + 3, 0), 6) / 6`, which Keras's function of this name is not.

    Source: Howard et al. 2019 (arXiv 1905.02244), section 5.2.
    """
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
def hard_swish(x: tf.Tensor) -> tf.Tensor:
    """Return x times :func:`hard_sigmoid` of x; of the same source."""
    return x * hard_sigmoid(x)


_NAMES = (
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "leaky_relu",
    "mish",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "swish",
    "tanh",
)
# Functions of single values that are no ReLU, and their names.
_FUNCTIONS = {
    getattr(module, name): {"silu": "swish"}.get(name, name)
    for module in (tf.nn, tf.keras.activations)
    for name in _NAMES
    if hasattr(module, name)
}
_FUNCTIONS |= {hard_sigmoid: "hard_sigmoid", hard_swish: "hard_swish"}


def function_of(layer) -> str | None:
    """Return the name of the function that a layer computes of each value; None for ReLUs too.

    Args:
        layer: Or an activation.
    """
    kind = type(layer)
    if kind is _layers.Activation:
        return function_of(layer.activation)
    if kind is _layers.ReLU:
        return "leaky_relu" if layer.negative_slope or layer.threshold else None
    names = {
        _layers.ELU: "elu",
        _layers.LeakyReLU: "leaky_relu",
        _layers.PReLU: "prelu",
        _layers.ThresholdedReLU: "thresholded_relu",
    }
    name = names.get(kind) or (_FUNCTIONS.get(layer) if callable(layer) else None)
    return "scaled_elu" if kind is _layers.ELU and layer.alpha != 1 else name
