"""Networks that the tests of the bridge to TF-MOT share."""

import larq as lq
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import CGPACT, SATWeights
from dlqat_tf.export import lower
from dlqat_tf.export.integer.nodes import Activation, Weighted
from dlqat_tf.quantizers import DepthwiseWeights
from dlqat_tf.tfmot import Scheme

layers = tf.keras.layers


def applied(model, *arguments, **options):
    """Annotate a whole model and apply the scheme."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = Scheme(*arguments, **options)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme=scheme)


def network():
    """A residual block, depthwise and fused activations, and a dense layer at the end."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = shortcut = layers.ReLU(name="first_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.BatchNormalization(name="second_bn")(x)
    x = layers.Activation("relu", name="sum_relu")(layers.Add(name="sum")([x, shortcut]))
    x = layers.MaxPool2D(name="pool")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="third")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(inputs, layers.Dense(5, name="last")(x))


def larq_network():
    """What the scheme should make of `network` at W1A2, by Larq's interface."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = lq.layers.QuantConv2D(
        8, 3, padding="same", use_bias=False, kernel_quantizer=SATWeights(8), name="first"
    )(inputs)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = shortcut = CGPACT(2, 2.0)(x)
    x = lq.layers.QuantConv2D(8, 3, padding="same", kernel_quantizer=SATWeights(1), name="second")(
        x
    )
    x = layers.BatchNormalization(name="second_bn")(x)
    x = CGPACT(8, 2.0, signed=True)(x)
    x = CGPACT(2, 2.0)(layers.Add()([x, shortcut]))
    x = layers.MaxPool2D()(x)
    kept = dict(keep_scale=True)  # no batch norm follows
    depthwise = DepthwiseWeights(SATWeights(1, **kept))
    x = lq.layers.QuantDepthwiseConv2D(3, depthwise_quantizer=depthwise, name="depthwise")(x)
    x = CGPACT(2, 2.0)(x)
    x = lq.layers.QuantConv2D(8, 1, kernel_quantizer=SATWeights(1, **kept), name="third")(x)
    x = CGPACT(8, 2.0)(x)
    x = layers.GlobalAveragePooling2D()(x)
    last = lq.layers.QuantDense(5, kernel_quantizer=SATWeights(8, scale_adjust=True), name="last")
    return tf.keras.Model(inputs, last(x))


def inner(layer):
    return getattr(layer, "layer", layer)


def by_name(model):
    return {inner(layer).name: layer for layer in model.layers}


def images(count=32):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def widths(model):
    """Width and lowest code of what the integer network rounds, by layer."""
    found = {}
    for node in lower(model):
        if isinstance(node, Weighted):
            found[node.name.removeprefix("quant_")] = node.bits
        elif isinstance(node, Activation):
            name = node.name.removeprefix("quant_")
            found[name] = node.bits if node.grid.lowest == 0 else -node.bits
    return found


def on_images(middle):
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="second")(middle(x))
    return tf.keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))


def on_sequences(middle):
    inputs = tf.keras.Input((12, 6), name="values")
    x = layers.Conv1D(4, 3, name="first")(inputs)
    x = middle(layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x)))
    return tf.keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))


def gated(x):
    """Squeeze and excitation."""
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Dense(4, activation="sigmoid", name="gate")(gate)])


STANDARD = {
    "separable": (on_images, layers.SeparableConv2D(4, 3, activation="relu", name="parts")),
    "swish": (on_images, layers.Conv2D(4, 1, activation="swish", name="parts")),
    "gated": (on_images, gated),
    "average": (on_images, lambda x: layers.Average()([x, x])),
    "bilinear": (on_images, layers.UpSampling2D(interpolation="bilinear")),
    "pool of sequences": (on_sequences, layers.MaxPooling1D()),
    "separable on sequences": (on_sequences, layers.SeparableConv1D(4, 3, activation="relu")),
}


WIDTHS = {
    "first": 8,
    "first_relu_output": 2,
    "second": 1,
    "second_bn_output": -8,
    "sum_relu_output": 2,
    "depthwise": 1,
    "depthwise_output": 2,
    "third": 1,
    "third_output": 8,
    "last": 8,
}
