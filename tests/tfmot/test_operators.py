"""Operators, as ``x + y`` and slices, annotated with the layers around them."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.export import parity, to_tflite
from tests.tfmot.networks import applied

layers = tf.keras.layers


def beside(x):
    return layers.Conv2D(4, 1, activation="relu")(x)


def shuffled(x):
    x = tf.transpose(tf.reshape(x, (-1, 6, 6, 2, 2)), (0, 1, 2, 4, 3))
    return tf.reshape(x, (-1, 6, 6, 4))


# Each is given (6, 6, 4) and returns an image.
OPERATORS = {
    "add": lambda x: x + beside(x),
    "concat": lambda x: tf.concat([x, x], -1),
    "gate": lambda x: x * tf.sigmoid(x),
    "maximum": lambda x: tf.maximum(x, beside(x)),
    "mean": lambda x: tf.reduce_mean(x, (1, 2), keepdims=True),
    "pad": lambda x: tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
    "pool": lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
    "relu": lambda x: tf.nn.relu6(x),
    "resize": lambda x: tf.image.resize(x, (12, 12), "nearest"),
    "scale": lambda x: x * 2.0,
    "shuffle": shuffled,
    "slice": lambda x: x[:, 1:, :, 1:],
    "split": lambda x: tf.split(x, 2, -1)[1],
    "swish": lambda x: tf.nn.silu(x),
}


@pytest.mark.filterwarnings("ignore:. annotated layers stay float")  # pool and scale
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_annotated_operator_computes_what_it_did(operator):
    tf.keras.utils.set_random_seed(0)
    biases = {"bias_initializer": "random_normal"}
    inputs = tf.keras.Input((6, 6, 4))
    x = OPERATORS[operator](layers.Conv2D(4, 1, **biases)(inputs))
    x = layers.Conv2D(3, 1, **biases)(x)
    x = layers.Flatten()(x)
    model = applied(
        tf.keras.Model(inputs, layers.Dense(4)(x)), weight_bits=8, activation_bits=8, alpha_init=2.0
    )
    # The last dense layer is brought to another scale.
    features = tf.keras.Model(inputs, x), tf.keras.Model(model.input, model.layers[-1].input)
    images = np.random.default_rng(0).random((8, 6, 6, 4), np.float32)
    expected, actual = (each.predict(images, verbose=0) for each in features)
    assert np.abs(actual - expected).mean() < 0.15 * np.abs(expected).mean()


def test_files_with_operators_compute_what_was_trained(tmp_path):
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation=tf.nn.relu6, name="bounded")(inputs)
    x = x + beside(tf.nn.silu(x))
    x = layers.Conv2D(4, 1, activation=tf.nn.relu)(x[:, 1:, :, :3])
    model = applied(tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    # The range that is trained clips instead of the bound.
    assert model.get_layer("quant_bounded").layer.activation is tf.keras.activations.relu
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(pixels / np.float32(255), np.arange(64) % 3, verbose=0)
    report = to_tflite(model, tmp_path / "model.tflite")
    result = parity(tf.keras.models.load_model(report.snapped), report.path, pixels)
    assert result.agreement["keras_file"] == result.agreement["simulation_file"] == 100.0


def test_a_bound_stays_where_no_range_clips():
    inputs = tf.keras.Input((2, 2, 1))
    x = layers.Conv2D(1, 1, activation=tf.nn.relu6, name="odd")(inputs)
    x = layers.Dense(1)(layers.Flatten()(layers.Conv2D(1, 1)(x)))
    model = applied(tf.keras.Model(inputs, x), weight_bits=8, activation_bits=32)
    layer = model.get_layer("quant_odd")
    layer.layer.bias.assign([100.0])
    output = tf.keras.Model(model.input, layer.output)
    assert np.unique(output.predict(np.zeros((1, 2, 2, 1)), verbose=0)).tolist() == [6.0]
