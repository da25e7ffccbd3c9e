"""Networks of any layers in any order: converted, written, and computed as the simulation does."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlqat_tf import quantize
from dlqat_tf.export import parity, to_tflite

layers = tf.keras.layers

# Of up to six layers and images of 6x5 pixels, four of which are compared: 0.8 s of one core each.
# Fourteen times as many, over two thousand, in the long tests.
COUNT = int(os.environ.get("DLQAT_RANDOM_NETWORKS", "150"))


def merged(kind):
    def apply(x):
        y = layers.Conv2D(x.shape[-1], 1)(x)
        return kind()([layers.ReLU()(y), x])

    return apply


def excited(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)])


def split(x):
    if x.shape[-1] % 2:
        return x[..., 1:]
    kept, y = tf.split(x, 2, -1)
    return tf.concat([layers.Conv2D(y.shape[-1], 1, activation="relu")(y), kept], -1)


def shrunk(kind):
    return lambda x: kind(2, padding="valid")(x) if min(x.shape[1:3]) > 1 else x


def grown(kind, **options):
    return lambda x: kind(**options)(x) if max(x.shape[1:3]) <= 8 else x


def in_a_row(layer):
    """Return what a layer makes of the pixels as a series."""

    def apply(x):
        height, width, channels = x.shape[1:]
        x = layer(layers.Reshape((height * width, channels))(x))
        return layers.Reshape((1, *x.shape[1:]))(x)

    return apply


def shared(x):
    layer = layers.Conv2D(x.shape[-1], 1, activation="relu")
    return layer(layer(x))


def nested(x):
    inputs = tf.keras.Input(x.shape[1:])
    y = layers.Conv2D(5, 1, activation="relu")(inputs)
    return tf.keras.Model(inputs, layers.Concatenate()([y, inputs]))(x)


# Each is given an image and returns one.
VOCABULARY = {
    "conv": lambda x: layers.Conv2D(6, 3, padding="same", activation="relu")(x),
    "strided": lambda x: layers.Conv2D(8, 3, 2, padding="same", activation=tf.nn.relu6)(x),
    "linear": lambda x: layers.BatchNormalization()(layers.Conv2D(6, 1, use_bias=False)(x)),
    "grouped": lambda x: layers.Conv2D(2 * x.shape[-1], 1, groups=x.shape[-1])(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, padding="same", activation="relu")(x),
    "separable": lambda x: layers.SeparableConv2D(4, 3, padding="same")(x),
    "transposed": grown(layers.Conv2DTranspose, filters=4, kernel_size=3, strides=2),
    "norm": lambda x: layers.BatchNormalization()(x),
    "relu": lambda x: layers.ReLU(4.0)(x),
    "swish": lambda x: layers.Activation("swish")(x),
    "tanh": lambda x: layers.Activation("tanh")(x),
    "leaky": lambda x: layers.LeakyReLU(0.1)(x),
    "prelu": lambda x: layers.PReLU("uniform", shared_axes=[1, 2])(x),
    "hard_swish": lambda x: layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1 / 6)]),
    "add": merged(layers.Add),
    "subtract": merged(layers.Subtract),
    "multiply": merged(layers.Multiply),
    "maximum": merged(layers.Maximum),
    "minimum": merged(layers.Minimum),
    "average": merged(layers.Average),
    "concatenate": merged(layers.Concatenate),
    "excited": excited,
    "split": split,
    "max_pool": shrunk(layers.MaxPool2D),
    "average_pool": shrunk(layers.AveragePooling2D),
    "cropped": lambda x: x[:, 1:] if x.shape[1] > 1 else x,
    "padded": grown(layers.ZeroPadding2D, padding=((0, 1), (1, 0))),
    "upsampled": grown(layers.UpSampling2D),
    "bilinear": grown(layers.UpSampling2D, interpolation="bilinear"),
    "layer_norm": lambda x: layers.LayerNormalization()(x),  # stays float
    "turned": lambda x: layers.Permute((2, 1, 3))(x),
    "reshaped": lambda x: layers.Reshape((-1, 1, x.shape[-1]))(x),
    "conv_1d": lambda x: in_a_row(layers.Conv1D(4, 3, padding="same", activation="relu"))(x),
    "causal": lambda x: in_a_row(layers.Conv1D(4, 2, padding="causal"))(x),
    "max_pool_1d": lambda x: in_a_row(layers.MaxPool1D(2, padding="same"))(x),
    "average_pool_1d": lambda x: in_a_row(layers.AveragePooling1D(2, padding="same"))(x),
    "shared": shared,
    "nested": nested,
    "dropout": lambda x: layers.Dropout(0.1)(x),
}
ENDS = {
    "flat": lambda x: layers.Flatten()(x),
    "mean": lambda x: layers.GlobalAveragePooling2D()(x),
    "max": lambda x: layers.GlobalMaxPooling2D()(x),
    "hidden": lambda x: layers.Dense(6, activation="relu")(layers.Flatten()(x)),
}


def model_of(names, ends, seed):
    """Return a network of these layers, of as many outputs as there are ends; one is half-way."""
    tf.keras.utils.set_random_seed(seed)
    x = inputs = tf.keras.Input((6, 5, 3), name="images")
    outputs = []
    for place, name in enumerate(names):
        x = VOCABULARY[name](x)
        if place == len(names) // 2:
            outputs += [layers.Dense(3)(ENDS[end](x)) for end in ends[1:]]
    return tf.keras.Model(inputs, [layers.Dense(4)(ENDS[ends[0]](x)), *outputs])


DRAWN = st.tuples(
    st.lists(st.sampled_from(sorted(VOCABULARY)), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=2),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 1000),
)


def check(names, ends, weight_bits, activation_bits, seed):
    """Compare every integer of every layer, and the outputs."""
    model = model_of(names, ends, seed)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
    values = images.astype(np.float32) / 255
    converted, _ = quantize(model, weight_bits, activation_bits, None, images=values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        to_tflite(converted, path, snap=False)
        report = parity(converted, path, images, layer_images=4)
    assert report.first_diverging is None
    assert not report.other_constants
    assert report.agreement["simulation_file"] == 100


# A sum far below its terms; a product of what is nearly zero that is zero on all images; a
# chain of functions that ended the process; sequences that become images one after the other; and
# a step that an add moves, by less than what parity allows for rounding.
@example(
    (["shared", "add", "norm", "grouped", "norm", "average_pool_1d"], ["max", "hidden"], 8, 2, 319)
)
@example((["excited", "multiply", "multiply", "multiply"], ["flat", "flat"], 1, 2, 0))
@example((["linear", "nested", "leaky", "tanh", "leaky", "linear"], ["flat"], 4, 2, 58))
@example((["average_pool_1d", "average_pool_1d"], ["flat"], 1, 2, 0))
@example((["multiply", "add"], ["flat"], 1, 2, 0))
@settings(max_examples=COUNT, deadline=None)
@given(DRAWN)
def test_files_compute_what_the_simulation_does(drawn):
    check(*drawn)


@pytest.mark.long
@settings(max_examples=14 * COUNT, deadline=None)
@given(DRAWN)
def test_many_files_compute_what_the_simulation_does(drawn):
    check(*drawn)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_a_pool_whose_step_an_add_moves_is_the_same_in_the_snapped_model(tmp_path, kernels):
    """It has no bias that the snapped model could hold."""
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
    values = images.astype(np.float32) / 255
    model = model_of(["average_pool", "add"], ["flat"], 0)
    converted, _ = quantize(model, 1, 2, None, images=values)
    exported = to_tflite(converted, tmp_path / "model.tflite", kernels=kernels)
    snapped = tf.keras.models.load_model(exported.snapped)
    report = parity(snapped, exported.path, images, layer_images=4)
    assert report.other_constants == []
    assert report.first_diverging is None
