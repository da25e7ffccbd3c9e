import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import QuantizationNetworksWeights, QuantizerProgress
from dlqat_tf.quantizers.quantization_networks import borders_by_clusters
from tests.quantizers.methods import check_grid, fit, kernels, small_model


def test_borders_by_hand():
    np.testing.assert_array_equal(borders_by_clusters(np.float32([0, 1, 10, 0]), 3), [0.5, 5.5])
    np.testing.assert_array_equal(borders_by_clusters(np.float32([-2, -4, 3, 5]), 2), [0.5])
    np.testing.assert_array_equal(borders_by_clusters(np.ones(4, np.float32), 3), [1, 1])


def started(bits, beta, factor, temperature):
    quantizer = QuantizationNetworksWeights(bits)
    quantizer.build((1, 1))
    for variable, value in (
        (quantizer.beta, beta),
        (quantizer.factor, factor),
        (quantizer.temperature, temperature),
        (quantizer.beta_started, 1),
        (quantizer.factor_started, 1),
    ):
        variable.assign(value)
    return quantizer


@pytest.mark.parametrize("training", [True, tf.constant(True)])
def test_soft_in_training_and_hard_at_inference_by_hand(training):
    quantizer = started(2, beta=2.0, factor=3.0, temperature=4.0)  # borders -0.5 and 0.5
    kernel = tf.constant([[-1.0, -0.2, 0.2, 0.25]])
    np.testing.assert_array_equal(quantizer(kernel), [[-3, 0, 0, 3]])
    np.testing.assert_array_equal(quantizer(kernel, training=tf.constant(False)), [[-3, 0, 0, 3]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        values = quantizer(kernel, training=training)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    soft = [3 * (sigmoid(4 * (2 * w - 0.5)) + sigmoid(4 * (2 * w + 0.5)) - 1) for w in (-1, 0.25)]
    np.testing.assert_allclose(values.numpy()[0, [0, 3]], soft, 1e-5)
    # the middle of a step, and the other one's tail: sigmoid' is s (1 - s), times 3 * 4 * 2
    tail = sigmoid(4.0)
    gradient = tape.gradient(values, kernel)
    assert float(gradient[0, 3]) == pytest.approx(24 * (0.25 + tail * (1 - tail)), 1e-4)


@settings(max_examples=10, deadline=None)
@given(kernel=kernels, bits=st.integers(1, 3))
def test_properties(kernel, bits):
    quantizer = QuantizationNetworksWeights(bits)
    grid = check_grid(quantizer, kernel)
    assert set(np.unique(grid.codes)) <= set([-1, 1] if bits == 1 else range(-3, 4))
    assert grid.step.shape == ()
    order = np.argsort(kernel.ravel())
    assert np.all(np.diff(grid.codes.ravel()[order]) >= 0)
    quantizer.advance(0.0, kernel)
    check_grid(quantizer, kernel)


def test_what_the_callback_does(tmp_path):
    model = fit(small_model(QuantizationNetworksWeights(2)), 3, [QuantizerProgress(4)])
    quantizer = model.layers[1].kernel_quantizer
    assert float(quantizer.temperature) == pytest.approx(10 + 990 * 5 / 8)  # before step 6 of 8
    borders = quantizer.borders.numpy()
    assert np.any(borders != np.float32([-0.5, 0.5]))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, 4, [QuantizerProgress(4)], initial_epoch=3)
    again = loaded.layers[1].kernel_quantizer
    np.testing.assert_array_equal(again.borders, borders)  # clustered once
    assert float(again.temperature) == pytest.approx(1000)  # training has ended


def test_a_run_that_was_killed_goes_on(tmp_path):
    model = small_model(QuantizationNetworksWeights(1))
    start = model.get_weights()
    fit(model, 1, [QuantizerProgress(2)]).save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, 2, [QuantizerProgress(2)], initial_epoch=1)
    whole = small_model(QuantizationNetworksWeights(1))
    whole.set_weights(start)
    fit(whole, 2, [QuantizerProgress(2)])
    for one, other in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)


def test_where_it_starts():
    quantizer = QuantizationNetworksWeights(3)
    kernel = np.float32([[-2.5, 1.0]])
    grid = quantizer.grid(kernel)  # beta 1.25 * 3 / 2.5
    assert float(grid.step) == pytest.approx(1 / 1.5)
    np.testing.assert_array_equal(grid.codes, [[-3, 2]])
    quantizer(kernel, training=True)
    assert float(quantizer.beta) == pytest.approx(1.5)
    other = quantizer.grid(np.float32([[9.0, 0.2]]))
    assert float(other.step) == pytest.approx(1 / 1.5)  # not from the kernel any more
    np.testing.assert_array_equal(other.codes, [[3, 0]])


def test_widths():
    with pytest.raises(ValueError, match=r"Quantization Networks defines 1, 2, 3 bits, and 32"):
        QuantizationNetworksWeights(4)
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(QuantizationNetworksWeights(32)(x), x)
