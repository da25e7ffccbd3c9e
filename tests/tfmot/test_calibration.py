"""Ranges, and codes, that start from images."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf.quantizers import BWNWeights, unwrapped
from dlqat_tf.quantizers.calibration import calibrate, optimal_range
from tests.tfmot.networks import (
    STANDARD,
    WIDTHS,
    applied,
    by_name,
    images,
    network,
)

layers = tf.keras.layers


@pytest.mark.parametrize("stage", [False, True])
def test_calibration_sets_the_ranges_in_wrappers(stage):
    """By the network before annotation, or by one in the bridge's float stage."""
    model, reference = applied(network()), network()
    if stage:
        reference = applied(reference, 32, 32, residual_bits=32)
    x = images().astype(np.float32) / np.float32(255)
    ranges = calibrate(model, reference, x)
    names = [name.removesuffix("_output") for name in WIDTHS if name.endswith("_output")]
    assert list(ranges) == [f"quant_{name}" for name in names]
    alphas = [float(v) for v in model.trainable_variables if "alpha" in v.name]
    assert alphas == [np.float32(each) for each in ranges.values()]
    for name, lowest, highest in (("second_bn", -128, 127), ("sum_relu", 0, 3), ("third", 0, 255)):
        values = tf.keras.Model(reference.input, by_name(reference)[name].output)(x)
        expected = optimal_range(values, lowest, highest)
        assert ranges[f"quant_{name}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", STANDARD)
def test_ranges_of_parts_come_from_the_model_at_32_bits(kind):
    network, middle = STANDARD[kind]
    source = network(middle)
    model = applied(source, 4, 4)
    x = np.random.default_rng(0).random((8, *source.input_shape[1:]), np.float32)
    ranges = calibrate(model, applied(source, 32, 32), x)
    trained = [v for v in model.trainable_variables if "alpha" in v.name]
    assert len(ranges) == len(trained)
    assert all(float(each) != 8.0 for each in trained)


def test_ranges_of_parts_want_a_reference_that_has_them():
    network, middle = STANDARD["separable"]
    source = network(middle)
    with pytest.raises(
        ValueError, match=r"'parts_depthwise'.*is the model with Scheme\(32, 32\)\."
    ):
        calibrate(applied(source, 4, 4), source, images(4) / np.float32(255))


def test_a_method_that_starts_from_images_is_fitted_in_wrappers():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="first")(inputs))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="hidden")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = applied(tf.keras.Model(inputs, layers.Dense(3)(x)), 1, 4, method="bwnh")
    x, wrapper = images(16) / np.float32(255), by_name(model)["hidden"]
    trained = unwrapped(wrapper).kernel.numpy()
    errors = methods.get("bwnh").prepare(model, x)
    assert list(errors) == ["quant_hidden"]
    inputs = tf.keras.Model(model.input, wrapper.input)(x)
    outputs, fitted = (
        tf.nn.conv2d(inputs, kernel, 1, "VALID").numpy()
        for kernel in (trained, BWNWeights()(unwrapped(wrapper).kernel))
    )
    error = np.sum((outputs - fitted) ** 2) / np.sum(outputs**2)
    assert errors["quant_hidden"] == pytest.approx(error, rel=1e-4)
    assert 0 < error < 1
