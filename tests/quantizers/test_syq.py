import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from dlqat_tf import SYQWeights
from tests.quantizers.methods import fit, gradient_of, kernels, small_model

W = np.float32([0.5, -0.1, 0.02, -2.0]).reshape(1, 2, 1, 2)  # two positions, two filters


def test_by_hand():
    upstream = np.float32([1, 2, 3, 4]).reshape(W.shape)
    for bits, signs in ((1, [1, -1, 1, -1]), (2, [1, -1, 0, -1])):  # threshold 0.1
        quantizer = SYQWeights(bits)
        values, gradient = gradient_of(quantizer, W, upstream)
        expected = np.array(signs) * [0.3, 0.3, 1.01, 1.01]
        np.testing.assert_allclose(values.ravel(), expected, 1e-6)
        np.testing.assert_array_equal(gradient, upstream)
        quantizer.started.assign(1)
        quantizer.scale.assign(np.float32([2, 5]).reshape(1, 2, 1, 1))
        with tf.GradientTape() as tape:
            values = quantizer(W)
        np.testing.assert_array_equal(values.numpy().ravel(), signs * np.array([2, 2, 5, 5]))
        by_scale = [1 * signs[0] + 2 * signs[1], 3 * signs[2] + 4 * signs[3]]
        gradient = tape.gradient(values, quantizer.scale, upstream)
        np.testing.assert_array_equal(gradient.numpy().ravel(), by_scale)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels)
def test_properties(kernel):
    quantizer = SYQWeights(1)
    values = quantizer(kernel).numpy()
    np.testing.assert_array_equal(tf.function(quantizer)(kernel), values)
    ((sign, scale),) = quantizer.planes(kernel)
    np.testing.assert_array_equal(sign * scale, values)
    assert sign.dtype == np.int8
    if kernel.ndim == 2:  # one scale: an ordinary grid
        grid = quantizer.grid(kernel)
        np.testing.assert_array_equal(grid.codes * grid.step, values)


def test_what_no_grid_and_no_plane_holds():
    with pytest.raises(ValueError, match="has 2 scales, one for each kernel position"):
        SYQWeights(1).grid(W)
    with pytest.raises(ValueError, match="is ternary"):
        SYQWeights(2).planes(W)


def test_scales_start_once_and_are_in_the_file(tmp_path):
    model = fit(small_model(SYQWeights(1)), 2)
    quantizer = model.layers[1].kernel_quantizer
    assert float(quantizer.started) == 1
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.layers[1].kernel_quantizer.scale, quantizer.scale)
    other = np.ones((*quantizer.scale.shape[:2], 2, 4), np.float32)
    ((_, scale),) = quantizer.planes(other)
    np.testing.assert_array_equal(scale, quantizer.scale)  # not from the kernel any more


def test_widths():
    with pytest.raises(ValueError, match=r"SYQ defines 1, 2 bits, and 32 for no rounding"):
        SYQWeights(3)
    np.testing.assert_array_equal(SYQWeights(32)(W), W)
