"""Kinds of layers, each end to end: converted, trained for a step, exported, and proven."""

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


NETWORKS = {
    "operators": with_operators,
    "separable": lambda: images_model(
        layers.SeparableConv2D(8, 3, activation="relu", name="sep"),
    ),
    "sequences": sequences,
    "shuffled": shuffled,
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


def cut_to(value, model):
    return tf.keras.Model(model.input, value)


@pytest.mark.parametrize("name", NETWORKS)
def test_float_conversion_computes_the_same(name):
    model, images, _ = prepared(name)
    converted, _ = quantize(model, head=None, **FLOAT, images=images)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(
        converted.predict(images, verbose=0), expected, atol=0.03 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_exports_and_matches(name, tmp_path):
    model, images, labels = prepared(name)
    converted, report = quantize(model, 2, 2, "gml", images=images, labels=labels)
    assert not [note for note in report.notes if "export will refuse" in note]
    converted.compile(tf.keras.optimizers.Adam(1e-3), dlqat_tf.GMLoss())
    converted.fit(images, labels, epochs=1, verbose=0)
    for export in (to_tflite, to_lce):
        exported = export(converted, tmp_path / f"{export.__name__}.tflite")
        snapped = tf.keras.models.load_model(exported.snapped)
        assert parity(snapped, exported.path, images, labels).failures(keras_agreement=90) == []
