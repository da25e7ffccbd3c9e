import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import (
    CGPACT,
    ABCNetActivations,
    ABCNetWeights,
    LQNetActivations,
    LQNetWeights,
    SATWeights,
)
from dlqat_tf.export import parity, to_lce
from tests.export.networks import images_for, randomize

layers = tf.keras.layers


def network(weights, activations):
    """Levels that a convolution, an add and, after a pool, another convolution read."""

    def convolve(x, filters, quantizer, **options):
        convolution = lq.layers.QuantConv2D(
            filters, 3, padding="same", use_bias=False, kernel_quantizer=quantizer, **options
        )
        return layers.BatchNormalization()(convolution(x))

    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = shortcut = activations("first")(convolve(inputs, 35, SATWeights(8)))
    x = layers.Add()([convolve(x, 35, weights(), name="second"), shortcut])
    x = layers.MaxPool2D(2)(activations("sum")(x))
    x = CGPACT(2, 2.0)(convolve(x, 5, weights(), name="third"))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(x)))


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (lambda: LQNetWeights(2), lambda name: LQNetActivations(3, name=name)),
        (lambda: SATWeights(2), lambda name: LQNetActivations(1, name=name)),
        (lambda: ABCNetWeights(2), lambda name: ABCNetActivations(3, name=name)),
        (lambda: SATWeights(1), lambda name: ABCNetActivations(1, name=name)),
    ],
    ids=["lqnet", "lqnet_1", "abcnet", "abcnet_1"],
)
def test_free_levels_are_exact(tmp_path, weights, activations):
    model = network(weights, activations)
    if isinstance(model.get_layer("first"), LQNetActivations):
        model.get_layer("first").basis.assign(0.4 + 0.3 * np.arange(model.get_layer("first").bits))
    report = to_lce(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 16), trained=model)
    assert result.first_diverging is None
    assert result.agreement["simulation_file"] == 100.0
    assert result.agreement["trained_file"] == 100.0
    bits = model.get_layer("second").kernel_quantizer.bits * model.get_layer("first").bits
    assert report.census.operators["LceBconv2d"] == 2 * bits
    assert report.levels == []


def test_layers_of_too_many_planes_are_snapped_and_the_others_exact(tmp_path):
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = inputs
    for number, (weight_bits, activation_bits) in enumerate([(8, 2), (2, 4), (2, 2)]):
        quantizer = SATWeights(8) if number == 0 else LQNetWeights(weight_bits)
        name = f"conv_{number}"
        x = lq.layers.QuantConv2D(8, 2, kernel_quantizer=quantizer, use_bias=False, name=name)(x)
        x = CGPACT(activation_bits, 2.0)(layers.BatchNormalization()(x))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x)))
    model = randomize(model)
    report = to_lce(model, tmp_path / "model.tflite", plane_limit=4)  # 4 and 8 planes
    assert [level.layer for level in report.levels] == ["conv_2"]
    snapped = tf.keras.models.load_model(report.snapped)
    assert isinstance(snapped.get_layer("conv_1").kernel_quantizer, LQNetWeights)
    result = parity(snapped, report.path, images_for(model, 16))
    assert result.first_diverging is None
    assert result.agreement["keras_file"] == 100.0
