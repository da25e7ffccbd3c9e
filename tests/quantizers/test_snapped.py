import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from dlqat_tf.quantizers import SnappedWeights, nearest_codes
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model


def test_nearest_codes_by_hand():
    grid = nearest_codes(np.float32([[1.27, 0.0], [-0.5, 0.0], [0.004, 0.0]]))
    np.testing.assert_array_equal(grid.codes, [[127, 0], [-50, 0], [0, 0]])
    np.testing.assert_allclose(grid.step, [0.01, 1], 1e-6)


@settings(max_examples=10, deadline=None)
@given(kernel=kernels)
def test_properties(kernel):
    grid = nearest_codes(kernel)
    assert grid.codes.dtype == np.int16
    assert np.abs(grid.codes).max() <= 127
    # Values that are codes times steps stay what they are, bit for bit.
    quantizer = SnappedWeights(2)
    quantizer.build(kernel.shape)
    quantizer.step.assign(grid.step)
    held = grid.codes * grid.step
    again = check_grid(quantizer, held)
    np.testing.assert_array_equal(again.codes, grid.codes)
    np.testing.assert_array_equal(quantizer(held), held)


def test_gradient_and_ends():
    quantizer = SnappedWeights(2)
    quantizer.build((1, 2))
    quantizer.step.assign([0.1, 1.0])
    values, gradient = gradient_of(quantizer, [[0.26, 200.0]], np.float32([[3, 4]]))
    np.testing.assert_allclose(values, [[0.3, 127]], 1e-6)
    np.testing.assert_array_equal(gradient, [[3, 4]])
    assert quantizer.precision == 2


def test_steps_are_in_the_file_and_not_trained(tmp_path):
    model = small_model(SnappedWeights(3))
    quantizer = model.layers[1].kernel_quantizer
    quantizer.step.assign([0.1, 0.2, 0.3, 0.4])
    fit(model).save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras").layers[1].kernel_quantizer
    np.testing.assert_allclose(loaded.step, [0.1, 0.2, 0.3, 0.4])
    assert loaded.bits == 3


def test_widths():
    with pytest.raises(ValueError, match=r"from 1 to 8. Received: bits=32"):
        SnappedWeights(32)
