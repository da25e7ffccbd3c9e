import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings

from dlqat_tf import IRNetWeights, QuantizerProgress
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model

# Two filters, each of mean 1: deviations +-1, and +-4 and 0.
W = np.float32([[0, -3], [2, 5], [0, 1], [2, 1]])


def test_by_hand():
    # Standard deviations: sqrt(4 / 3) and sqrt(32 / 3); mean |W~| = 0.866 and 0.612: 2^0 and 2^-1.
    values, _ = gradient_of(IRNetWeights(), W)
    np.testing.assert_array_equal(values, [[-1, -0.5], [1, 0.5], [-1, 0.5], [1, 0.5]])
    np.testing.assert_array_equal(IRNetWeights().grid(W).step, [1, 0.5])


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_gradient_is_the_formula(progress):
    quantizer = IRNetWeights()
    quantizer(W)
    quantizer.progress.assign(progress)
    upstream = np.float32([[1, -2], [3, 4], [-5, 6], [7, 8]])
    _, gradient = gradient_of(quantizer, W, upstream)
    t = 10.0 ** (2 * progress - 1)
    k = max(1 / t, 1)
    centred = np.float64(W) - W.mean(0)
    std = centred.std(0, ddof=1)
    standard = centred / std
    by_standard = upstream * [1, 0.5] * k * t * (1 - np.tanh(t * standard) ** 2)
    # d W~_i / d W_j = (delta_ij - 1 / n - W~_i W~_j / (n - 1)) / std
    expected = (
        by_standard - by_standard.mean(0) - standard * (standard * by_standard).sum(0) / 3
    ) / std
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels)
def test_properties(kernel):
    grid = check_grid(IRNetWeights(), kernel)
    assert set(np.unique(grid.codes)) <= {-1, 1}
    mantissa, _ = np.frexp(grid.step)
    np.testing.assert_array_equal(mantissa, 0.5)
    assume(len(kernel) > 1)
    step = IRNetWeights().grid(kernel * 4).step
    np.testing.assert_array_equal(step, grid.step)  # standardised: the scale of W does not matter


def test_progress_follows_the_steps_and_is_in_the_file(tmp_path):
    model = fit(small_model(IRNetWeights()), 2, [QuantizerProgress(4)])
    quantizer = model.layers[1].kernel_quantizer
    assert float(quantizer.progress) == 3 / 8  # the fourth of 4 epochs of 2 steps is under way
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.layers[1].kernel_quantizer.progress) == 3 / 8
    fit(loaded, 1, [QuantizerProgress(4)])
    assert float(loaded.layers[1].kernel_quantizer.progress) == 5 / 8


def test_widths():
    with pytest.raises(ValueError, match=r"IR-Net defines 1 bit, and 32 for no rounding"):
        IRNetWeights(2)
    np.testing.assert_array_equal(IRNetWeights(32)(W), W)
