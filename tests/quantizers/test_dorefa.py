import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import CGPACT, DoReFaActivations, DoReFaWeights, SATWeights
from tests.quantizers.methods import check_grid, gradient_of, kernels

W = np.float32([[-0.9, -0.3], [0.0, 0.2]])


def test_one_bit_by_hand():
    upstream = np.float32([[1, -2], [3, 4]])
    values, gradient = gradient_of(DoReFaWeights(1), W, upstream)
    np.testing.assert_allclose(values, [[-0.35, -0.35], [0.35, 0.35]], 1e-6)  # mean of 1.4 / 4
    np.testing.assert_array_equal(gradient, upstream)


def test_one_bit_of_small_weights_and_of_none():
    np.testing.assert_allclose(DoReFaWeights(1)(np.float32([[1e-6, -3e-6]])), [[2e-6, -2e-6]], 1e-6)
    grid = DoReFaWeights(1).grid(np.zeros((2, 2), np.float32))
    assert 0 < grid.step < 1e-10


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_bits_are_sat_without_rescaling(bits):
    for here, there in zip(
        gradient_of(DoReFaWeights(bits), W), gradient_of(SATWeights(bits), W), strict=True
    ):
        np.testing.assert_array_equal(here, there)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=st.sampled_from(range(1, 9)))
def test_properties(kernel, bits):
    grid = check_grid(DoReFaWeights(bits), kernel)
    assert np.abs(grid.codes).max() <= (127 if bits == 8 else 2**bits - 1)
    assert grid.step > 0


def test_activations_by_hand():
    values, gradient = gradient_of(DoReFaActivations(2), [-1.0, 0.2, 0.6, 1.0, 1.4])
    np.testing.assert_allclose(values, [0, 1 / 3, 2 / 3, 1, 1], 1e-6)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])
    quantizer = DoReFaActivations(2)
    quantizer(W)
    grid = quantizer.grid()
    assert (grid.lowest, grid.highest, grid.step) == (0, 3, np.float32(1 / 3))
    assert quantizer.trainable_weights == []
    quantizer.alpha.assign(3.0)
    np.testing.assert_array_equal(quantizer([-1.0, 0.4, 0.6, 2.4, 5.0]), [0, 0, 1, 2, 3])


@pytest.mark.parametrize("training", [False, True])
def test_activations_are_those_of_a_fixed_range(training):
    x = np.linspace(-1, 2, 301, dtype=np.float32)
    np.testing.assert_array_equal(
        DoReFaActivations(4)(x, training=training), CGPACT(4, 1.0)(x, training=training)
    )


def test_32_bits():
    np.testing.assert_array_equal(DoReFaWeights(32)(W), W)
    np.testing.assert_array_equal(DoReFaActivations(32)(W), np.maximum(W, 0))
    with pytest.raises(ValueError, match="no integer grid: 32 bits are not rounded"):
        DoReFaActivations(32).grid()
    with pytest.raises(ValueError, match="does not round"):
        DoReFaWeights(32).grid(W)
