import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from dlqat_tf import BWNWeights, CentredAndClamped
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model

W = np.float32([[-0.5, 2.0], [1.5, 0.0], [1.0, -1.0]])  # two filters of three weights


def test_by_hand():
    upstream = np.float32([[1, 2], [3, 4], [5, 6]])
    values, gradient = gradient_of(BWNWeights(), W, upstream)
    np.testing.assert_array_equal(values, [[-1, 1], [1, 1], [1, -1]])  # both means are 1
    third = 1 / 3
    slope = [[1 + third, third], [third, 1 + third], [1 + third, 1 + third]]
    np.testing.assert_allclose(gradient, upstream * slope, 1e-6)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels)
def test_properties(kernel):
    grid = check_grid(BWNWeights(), kernel)
    assert set(np.unique(grid.codes)) <= {-1, 1}
    axes = tuple(range(kernel.ndim - 1))
    np.testing.assert_allclose(grid.step, np.abs(kernel).mean(axes), 1e-5, 1e-19)
    ((sign, scale),) = BWNWeights().planes(kernel)
    np.testing.assert_array_equal(sign * scale, BWNWeights()(kernel))


def test_the_constraint_by_hand():
    kernel = np.float32([[3.0, 0.5], [1.0, 0.1]])  # in, out
    np.testing.assert_allclose(CentredAndClamped()(kernel), [[1, 0.2], [-1, -0.2]], 1e-6)
    depthwise = np.float32([[3.0, 0.5]])
    np.testing.assert_array_equal(CentredAndClamped()(depthwise), [[1, 0.5]])


def test_the_constraint_holds_in_training():
    model = fit(small_model(BWNWeights(), constraint=CentredAndClamped()), 2)
    kernel = model.layers[1].get_weights()[0]
    np.testing.assert_allclose(kernel.mean(-2), 0, atol=1e-6)


def test_h5_files_hold_the_constraint(tmp_path):
    small_model(BWNWeights(), constraint=CentredAndClamped()).save(tmp_path / "model.h5")
    loaded = tf.keras.models.load_model(tmp_path / "model.h5")
    assert isinstance(loaded.layers[1].kernel_constraint, CentredAndClamped)


@pytest.mark.parametrize("bits", [2, 8, True])
def test_widths(bits):
    with pytest.raises(ValueError, match=r"BWN defines 1 bit, and 32 for no rounding. Received: b"):
        BWNWeights(bits)


def test_32_bits():
    np.testing.assert_array_equal(BWNWeights(32)(W), W)
