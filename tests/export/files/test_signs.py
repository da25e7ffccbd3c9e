"""Signs and what sums them, on stock kernels."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.export import parity, to_tflite
from tests.export.networks import randomize

layers = tf.keras.layers
BINARY = dict(input_quantizer="ste_sign", kernel_quantizer="ste_sign")


def binary_network():
    """Convolutions padded by zeros and by ones, a norm between, a pooled sign and a dense layer."""
    inputs = tf.keras.Input((9, 9, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, use_bias=False)(inputs))
    y = lq.layers.QuantConv2D(16, 3, padding="same", use_bias=False, name="zeros", **BINARY)(x)
    x = layers.Add()([x, layers.BatchNormalization()(y)])
    x = lq.layers.QuantConv2D(
        16, 3, 2, padding="same", pad_values=1.0, activation="relu", name="ones", **BINARY
    )(x)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPool2D(2)(lq.quantizers.SteSign(name="pooled")(x))
    x = lq.layers.QuantDense(8, kernel_quantizer=lq.quantizers.MagnitudeAwareSign(), name="dense")(
        layers.Flatten()(x)
    )
    x = layers.BatchNormalization()(x)
    x = lq.layers.QuantDense(4, name="last", **BINARY)(x)
    return randomize(tf.keras.Model(inputs, x))


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_the_file_equals_the_simulation_and_keras(tmp_path, kernels):
    model = binary_network()
    images = np.random.default_rng(0).integers(0, 256, (64, 9, 9, 3)).astype(np.uint8)
    report = to_tflite(model, tmp_path / "model.tflite", kernels=kernels)
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, report.path, images, trained=model)
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100
    assert found.first_diverging is None
    stored = {layer.layer: layer.bytes for layer in report.census.layers}
    weights = 4 if kernels == "builtin" else 1  # microcontrollers get floats
    assert stored["zeros"] == 3 * 3 * 16 * 16 * weights
    assert "MUL float32" in {layer.kernel for layer in report.census.layers}  # the last norm
    operators = report.census.operators
    assert operators["GREATER_EQUAL"] == operators["SELECT_V2"] == 4


def test_a_first_layer_before_signs_runs_in_float(tmp_path):
    """As in BinaryAlexNet: weights of one bit read pixels, and nothing rounds what they give."""
    inputs = tf.keras.Input((9, 9, 3))
    x = lq.layers.QuantConv2D(16, 3, kernel_quantizer="ste_sign", use_bias=False, name="first")(
        inputs
    )
    x = layers.BatchNormalization(scale=False)(layers.MaxPool2D(2)(x))
    x = lq.layers.QuantConv2D(4, 3, use_bias=False, name="second", **BINARY)(x)
    model = randomize(tf.keras.Model(inputs, layers.Flatten()(x)))
    images = np.random.default_rng(0).integers(0, 256, (16, 9, 9, 3)).astype(np.uint8)
    report = to_tflite(model, tmp_path / "model.tflite")
    found = parity(tf.keras.models.load_model(report.snapped), report.path, images)
    assert found.failures() == []
    kernels = {layer.layer: layer.kernel for layer in report.census.layers}
    assert kernels["first"] == "CONV_2D float32"


def test_the_sign_of_zero_is_one(tmp_path):
    inputs = tf.keras.Input((1, 1, 1))
    x = layers.Conv2D(3, 1, kernel_initializer="ones", name="float")(inputs)
    x = lq.layers.QuantConv2D(1, 1, use_bias=False, name="sum", **BINARY)(x)
    model = tf.keras.Model(inputs, layers.Flatten()(x))
    model.get_layer("float").bias.assign([0.0, -0.0, -0.5])
    model.get_layer("sum").kernel.assign(np.ones((1, 1, 3, 1)))
    report = to_tflite(model, tmp_path / "model.tflite", snap=False)
    found = dlqat_tf.export.parity(model, report.path, np.uint8([[[[0]]], [[[255]]]]))
    assert found.logit_difference["keras_file"] == 0
    assert model.predict(np.float32([[[[0]]], [[[1]]]]), verbose=0).ravel().tolist() == [1, 3]
