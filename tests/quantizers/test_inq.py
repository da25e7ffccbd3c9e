import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import INQWeights, QuantizerProgress
from dlqat_tf.quantizers.inq import highest_exponent, power_codes
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model


@pytest.mark.parametrize(("largest", "exponent"), [(1.0, 0), (0.74, -1), (0.76, 0), (1.6, 1)])
def test_highest_exponent(largest, exponent):
    assert highest_exponent(np.float32([0.1, -largest])) == exponent


def test_levels_by_hand():
    # Highest level 1. Two bits: 0 and +-1, the threshold at 1/2.
    kernel = np.float32([-1.2, -0.5, -0.49, 0.0, 0.6])
    codes, bottom = power_codes(kernel, 0, 2)
    np.testing.assert_array_equal(codes, [-1, -1, 0, 0, 1])
    assert bottom == 0
    # Four bits: +-1/8 to +-1 with thresholds at 1/16, 3/16, 3/8 and 3/4.
    kernel = np.float32([0.06, 0.0625, 0.18, 0.1875, 0.37, -0.375, 0.74, 0.75, 9.0])
    codes, bottom = power_codes(kernel, 0, 4)
    np.testing.assert_array_equal(codes, [0, 1, 1, 2, 2, -4, 4, 8, 8])
    assert bottom == -3


def frozen(kernel, bits, share=1.0):
    quantizer = INQWeights(bits)
    quantizer.build(kernel.shape)
    quantizer.advance(share, kernel)
    return quantizer


def test_the_largest_are_frozen_first_and_get_no_gradient():
    kernel = np.float32([[0.1, -0.9], [0.3, 0.7]])
    quantizer = frozen(kernel, 4, share=0.0)
    values, gradient = gradient_of(quantizer, kernel)
    np.testing.assert_array_equal(values, np.float32([[0.1, -1], [0.3, 0.5]]))
    np.testing.assert_array_equal(gradient, [[1, 0], [1, 0]])
    with pytest.raises(ValueError, match="has frozen 50% of the weights"):
        quantizer.grid(kernel)
    later = np.float32([[0.2, 5.0], [8.0, 5.0]])  # beyond the highest level of the start
    quantizer.advance(0.25, later)
    values, _ = gradient_of(quantizer, later)
    np.testing.assert_array_equal(values, np.float32([[0.2, -1], [1, 0.5]]))
    quantizer.advance(1.0, later)
    np.testing.assert_array_equal(quantizer(later), np.float32([[0.25, -1], [1, 0.5]]))


@pytest.mark.parametrize(
    ("bits", "portions"),
    [(2, (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1)), (3, (0.5, 0.75, 0.875, 1))],
)
def test_phases_are_of_equal_length(bits, portions):
    kernel = np.linspace(-1, 1, 200, dtype=np.float32).reshape(2, 100)
    quantizer = INQWeights(bits)
    quantizer.build(kernel.shape)
    for phase, portion in enumerate(portions):
        quantizer.advance((phase + 0.5) / len(portions), kernel)
        assert quantizer.frozen.numpy().mean() == pytest.approx(portion)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=st.sampled_from([2, 3, 4, 5]))
def test_properties(kernel, bits):
    grid = check_grid(frozen(kernel, bits), kernel)
    magnitudes = set(np.unique(np.abs(grid.codes)))
    assert magnitudes <= {0, *(2**i for i in range(2 ** (bits - 1) // 2))}
    assert len(np.unique(grid.codes)) <= 2**bits - 1 + (bits == 5) * 2
    if kernel.any():
        top = grid.step * 2 ** (2 ** (bits - 1) // 2 - 1)
        assert 2 / 3 * top <= np.abs(kernel).max() * 1.0001 < 1.5 * top * 1.001 * 1.0001


def test_training_ends_with_all_frozen():
    model = fit(small_model(INQWeights(2)), 5, [QuantizerProgress(5)])
    layer = model.layers[1]
    assert set(np.unique(layer.kernel_quantizer.grid(layer.kernel).codes)) <= {-1, 0, 1}


def test_widths():
    for bits in (1, 6, 8):
        with pytest.raises(ValueError, match=r"INQ defines 2, 3, 4, 5 bits, and 32"):
            INQWeights(bits)
    kernel = np.float32([[0.3]])
    np.testing.assert_array_equal(INQWeights(32)(kernel), kernel)
    with pytest.raises(ValueError, match="has frozen 0% of the weights"):
        INQWeights(2).grid(kernel)
