import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import HAWQActivations, HAWQWeights
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model


def test_weights_by_hand():
    kernel = np.float32([[-6, 0.3], [1.5, -0.05], [3, 0.1]])  # 3 bits: steps 2 and 0.1
    upstream = np.float32([[1, 2], [3, 4], [5, 6]])
    values, gradient = gradient_of(HAWQWeights(3), kernel, upstream)
    np.testing.assert_allclose(values, [[-6, 0.3], [2, 0], [4, 0.1]], 1e-6, 1e-7)
    np.testing.assert_array_equal(gradient, upstream)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=st.sampled_from(range(2, 9)))
def test_properties(kernel, bits):
    grid = check_grid(HAWQWeights(bits), kernel)
    axes, top = tuple(range(kernel.ndim - 1)), 2 ** (bits - 1) - 1
    assert grid.step.shape == kernel.shape[-1:]
    np.testing.assert_array_equal(np.abs(grid.codes).max(axes), top * np.abs(kernel).any(axes))


@pytest.mark.parametrize("training", [True, tf.constant(True)])
def test_the_range_is_a_moving_average(training):
    quantizer = HAWQActivations(2)
    quantizer(tf.constant([9.0]))  # not training
    with pytest.raises(ValueError, match="train it for a step first"):
        quantizer.grid()
    quantizer(tf.constant([-9.0, 3.0]), training=training)
    assert float(quantizer.maximum) == pytest.approx(3)
    quantizer(tf.constant([5.0]), training=training)
    assert float(quantizer.maximum) == pytest.approx(0.95 * 3 + 0.05 * 5)
    quantizer(tf.constant([50.0]), training=tf.constant(False))
    grid = quantizer.grid()
    assert (grid.lowest, grid.highest, grid.step) == (0, 3, pytest.approx(3.1 / 3))


def test_activations_by_hand():
    quantizer = HAWQActivations(2)
    quantizer(tf.constant([3.0]), training=True)
    values, gradient = gradient_of(quantizer, [-1.0, 0.4, 1.6, 3.0, 4.0])
    np.testing.assert_allclose(values, [0, 0, 2, 3, 3], 1e-6)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1])


def test_the_range_is_in_the_file_and_not_trained(tmp_path):
    model = fit(small_model(HAWQWeights(4), HAWQActivations(4)))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[3].grid() == model.layers[3].grid()
    assert loaded.layers[3].trainable_weights == []


def test_widths():
    with pytest.raises(ValueError, match=r"HAWQ-V3 of weights defines 2, 3, 4, 5, 6, 7, 8 bits"):
        HAWQWeights(1)
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(HAWQWeights(32)(x), x)
    np.testing.assert_array_equal(HAWQActivations(32)(x), np.maximum(x, 0))
