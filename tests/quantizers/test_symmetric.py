import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dlqat_tf import SymmetricWeights

kernels = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8),
    elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-20),
)


@pytest.mark.parametrize(
    ("bits", "kernel", "codes", "step"),
    [
        (2, [-2.0, -0.9, 0.5, 1.1], [-1, 0, 0, 1], 2.0),
        (3, [-6.0, -1.5, 1.0, 3.0], [-3, -1, 0, 2], 2.0),  # -0.75, 0.5 and 1.5 to even
        (8, [-12.7, 0.04, 0.06, 5.0], [-127, 0, 1, 50], 0.1),
    ],
)
def test_by_hand(bits, kernel, codes, step):
    grid = SymmetricWeights(bits).grid(kernel)
    np.testing.assert_array_equal(grid.codes, codes)
    assert grid.step == pytest.approx(step, rel=1e-6)
    np.testing.assert_allclose(SymmetricWeights(bits)(np.float32(kernel)), np.array(codes) * step)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=st.sampled_from(range(2, 9)))
def test_properties(kernel, bits):
    quantizer, top = SymmetricWeights(bits), 2 ** (bits - 1) - 1
    values, grid = quantizer(kernel).numpy(), quantizer.grid(kernel)
    np.testing.assert_array_equal(grid.codes * grid.step, values)
    np.testing.assert_array_equal(tf.function(quantizer)(kernel), values)
    assert grid.codes.dtype == np.int16
    assert grid.step.dtype == np.float32
    assert np.abs(grid.codes).max() == (top if kernel.any() else 0)
    assert np.abs(kernel.astype(np.float64) / grid.step - grid.codes).max() <= 0.5 + 1e-4
    assert (np.diff(grid.codes.ravel()[np.argsort(kernel, axis=None)]) >= 0).all()
    np.testing.assert_array_equal(quantizer.grid(values).codes, grid.codes)  # idempotent


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_gradient_is_one_for_every_weight_the_largest_included(bits):
    kernel, upstream = tf.constant([-2.0, -0.9, 0.5, 1.1]), tf.constant([1.0, -2.0, 3.0, 4.0])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        values = SymmetricWeights(bits)(kernel)
    np.testing.assert_array_equal(tape.gradient(values, kernel, upstream), upstream)


def test_32_bits_are_the_identity():
    kernel = np.float32([[-2.0, 0.123456]])
    np.testing.assert_array_equal(SymmetricWeights(32)(kernel), kernel)


def test_an_all_zero_kernel():
    zeros = np.zeros((2, 2), np.float32)
    np.testing.assert_array_equal(SymmetricWeights()(zeros), zeros)
    grid = SymmetricWeights().grid(zeros)
    np.testing.assert_array_equal(grid.codes, zeros)
    assert grid.step == 1


def test_config_round_trip():
    config = SymmetricWeights(5).get_config()
    assert config["bits"] == 5
    assert SymmetricWeights.from_config(config).get_config() == config
