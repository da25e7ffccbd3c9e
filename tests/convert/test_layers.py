"""Kinds of layers, each end to end: converted, trained for a step, exported, and proven."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import quantize
from dlqat_tf.export import parity, to_lce, to_tflite
from tests.convert.networks import FLOAT, alive, conv_norm

layers = tf.keras.layers


def images_model(*middle, size=(8, 8, 3)):
    """A convolution, what is tested, another convolution, and a classifier."""
    inputs = tf.keras.Input(size, name="images")
    x = layers.ReLU(name="first_relu")(conv_norm(inputs, 8, 3, name="first"))
    for layer in middle:
        x = layer(x)
    x = layers.ReLU(name="last_relu")(conv_norm(x, 8, 3, name="last"))
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(layers.Flatten(name="flat")(x)))


def with_operators():
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = tf.nn.relu(conv_norm(inputs, 8, 3, name="first"))
    y = tf.nn.relu6(conv_norm(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 8, 3, name="second"))
    y = layers.Cropping2D(1, name="crop")(y)
    x = tf.nn.relu(x + conv_norm(y, 8, 3, name="third"))
    x = tf.concat([x, y], -1)
    x = tf.reduce_mean(conv_norm(x, 8, 3, name="fourth"), [1, 2])
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(x))


def sequences():
    inputs = tf.keras.Input((24, 3), name="values")
    x = layers.Conv1D(8, 3, padding="causal", use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="first_bn")(x))
    y = layers.SeparableConv1D(8, 5, padding="same", name="second")(layers.MaxPool1D(2)(x))
    y = layers.BatchNormalization(name="second_bn")(y)
    x = layers.Add(name="add")([layers.AveragePooling1D(2, name="pool")(x), y])
    x = layers.Dropout(0.1)(layers.Activation("relu", name="second_relu")(x))
    x = layers.Conv1D(8, 3, activation="relu", name="third")(layers.ZeroPadding1D(1)(x))
    x = layers.GlobalAveragePooling1D(name="features")(x)
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(x))


def shuffled():
    """Groups of channels shuffled as ShuffleNet does."""
    return images_model(
        layers.Reshape((8, 8, 2, 4), name="groups"),
        layers.Permute((1, 2, 4, 3), name="swap"),
        layers.Reshape((8, 8, 8), name="ungroup"),
    )


def augmented():
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3), name="images"),
            layers.RandomFlip("horizontal", name="flip"),
            layers.RandomRotation(0.1, name="turn"),
            layers.Rescaling(1 / 127.5, -1.0, name="rescale"),
            layers.GaussianNoise(0.01, name="noise"),
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.GaussianDropout(0.1, name="drop"),
            layers.ActivityRegularization(l2=1e-4, name="regularize"),
            layers.Conv2D(8, 3, activation="relu", name="second"),
            layers.GlobalMaxPooling2D(name="pool"),
            layers.Dense(5, name="scores"),
        ]
    )


def split():
    """Channels apart and together again, as in ShuffleNet v2, and what else slices and moves."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.ReLU(name="first_relu")(conv_norm(inputs, 8, 3, name="first"))
    kept, y = tf.split(x, 2, -1)
    y = layers.ReLU(name="second_relu")(conv_norm(y, 4, 3, name="second"))
    x = tf.concat([kept, y], -1)[:, 1:-1, :, 2:]
    x = tf.nn.space_to_depth(tf.image.resize(x, (12, 8), "nearest"), 2)
    x = layers.ReLU(name="last_relu")(conv_norm(x, 8, 3, name="last"))
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(layers.Flatten(name="flat")(x)))


def transposed():
    return images_model(
        layers.MaxPool2D(4, name="pool"),
        layers.Conv2DTranspose(8, 3, 2, "same", use_bias=False, name="grow"),
        layers.BatchNormalization(name="grow_bn"),
        layers.ReLU(name="grow_relu"),
        layers.Conv2DTranspose(8, (2, 3), (1, 2), activation="relu", name="grow_more"),
    )


FUNCTIONS = {
    "leaky_relu": lambda: layers.LeakyReLU(0.1, name="f"),
    "prelu": lambda: layers.PReLU("ones", shared_axes=[1, 2], name="f"),
    "swish": lambda: layers.Activation("swish", name="f"),
    "sigmoid": lambda: layers.Activation("sigmoid", name="f"),
    "tanh": lambda: layers.Activation("tanh", name="f"),
    "gelu": lambda: layers.Activation("gelu", name="f"),
}


def with_function(name):
    """The function as a layer after a batch norm, and inside of a convolution."""
    fused = {"prelu": "relu", "leaky_relu": tf.nn.leaky_relu}.get(name, name)
    return images_model(
        layers.Conv2D(8, 3, use_bias=False, name="body"),
        layers.BatchNormalization(name="body_bn"),
        FUNCTIONS[name](),
        layers.Conv2D(8, 1, activation=fused, name="fused"),
    )


# The functions whose int8 kernels give the codes that float operations would.
INT8 = {"gelu": "GELU", "sigmoid": "LOGISTIC", "tanh": "TANH"}

NETWORKS = {
    **{name: functools.partial(with_function, name) for name in FUNCTIONS},
    "operators": with_operators,
    "separable": lambda: images_model(
        layers.SeparableConv2D(8, 3, activation="relu", name="sep"),
    ),
    "sequences": sequences,
    "shuffled": shuffled,
    "split": split,
    "transposed": transposed,
    "augmented": augmented,
    "moved": lambda: images_model(
        layers.UpSampling2D((2, 3), name="up"),
        layers.Cropping2D(((1, 2), (3, 4)), name="crop"),
    ),
}


def prepared(name):
    tf.keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    shape = (64, *model.input_shape[1:])
    images = alive(model, shape)
    if name == "augmented":
        images = np.rint(images * 255).astype(np.float32)
    return model, images, np.arange(64) % 5


@pytest.mark.parametrize("name", NETWORKS)
def test_float_conversion_computes_the_same(name):
    model, images, _ = prepared(name)
    converted, _ = quantize(model, head=None, **FLOAT, images=images)
    # Not predict: TensorFlow's graphs have no batch norm before tanh on every processor.
    expected, computed = (np.asarray(each(images, training=False)) for each in (model, converted))
    np.testing.assert_allclose(computed, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_exports_and_matches(name, tmp_path):
    model, images, labels = prepared(name)
    widths = (1, 8) if name == "tanh" else (2, 2)  # its int8 kernel has one step only
    converted, report = quantize(model, *widths, "gml", images=images, labels=labels)
    assert not [note for note in report.notes if "export will refuse" in note or "float" in note]
    converted.compile(tf.keras.optimizers.Adam(1e-3), dlqat_tf.GMLoss())
    converted.fit(images, labels, epochs=1, verbose=0)
    for export in (to_tflite, to_lce):
        exported = export(converted, tmp_path / f"{export.__name__}.tflite")
        snapped = tf.keras.models.load_model(exported.snapped)
        assert parity(snapped, exported.path, images, labels).failures(keras_agreement=90) == []
        if name in INT8:
            assert exported.census.operators[INT8[name]] == 2
            assert exported.census.islands == []
