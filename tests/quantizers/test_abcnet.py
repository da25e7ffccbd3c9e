import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import ABCNetActivations, ABCNetWeights
from dlqat_tf.quantizers import NoGrid
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model


def test_weights_by_hand():
    kernel = np.float32([[3, 1, -1, -3]]).T  # mean 0, deviation sqrt(5)
    upstream = np.float32([[1, 2, 3, 4]]).T
    values, gradient = gradient_of(ABCNetWeights(2), kernel, upstream)
    # bases + - - - and + + + -, at right angles, with factors of 6 / 4
    np.testing.assert_allclose(values.T, [[3, 0, 0, -3]], 1e-5, 1e-6)
    np.testing.assert_allclose(gradient, 3 * upstream, 1e-5)
    values, gradient = gradient_of(ABCNetWeights(1), kernel + 1, upstream)
    # the signs about the mean; their factor is that of (4, 2, 0, -2)
    np.testing.assert_allclose(values.T, [[2, 2, -2, -2]], 1e-5)
    np.testing.assert_allclose(gradient, 2 * upstream, 1e-5)


@settings(max_examples=10, deadline=None)
@given(kernel=kernels, bits=st.integers(1, 5))
def test_properties(kernel, bits):
    quantizer = ABCNetWeights(bits)
    values, planes = quantizer(kernel).numpy(), quantizer.planes(kernel)
    assert len(planes) == bits
    total = 0.0
    for sign, scale in planes:
        assert set(np.unique(sign)) <= {-1, 1}
        assert scale.shape == kernel.shape[-1:]
        total = total + sign * scale
    np.testing.assert_allclose(total, values, 1e-5, 1e-5)
    # least squares: no closer to the kernel by any of the bases
    rest = kernel - values
    size = kernel[..., 0].size
    for sign, _ in planes:
        left = np.abs((rest * sign).sum(axis=tuple(range(kernel.ndim - 1))))
        assert left.max() < 1e-4 * size * (np.abs(kernel).max() + 1)
    if bits == 1:
        check_grid(quantizer, kernel)
    else:
        with pytest.raises(NoGrid, match=rf"ABCNetWeights\(bits={bits}\) .* free factors"):
            quantizer.grid(kernel)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_bases_that_are_equal_are_the_same_in_xla(jit_compile):
    """Of 5 shifts by up to 1.58 the middle three give one basis; the kernel is a sum of bases."""
    kernel = np.float32([[-2.0], [-1.0], [1.0], [2.0]])
    compiled = tf.function(ABCNetWeights(5), jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(tf.constant(kernel)), kernel, 1e-5)


def test_a_channel_of_zeros_has_a_step():
    """Files hold none of zero."""
    grid = check_grid(ABCNetWeights(1), np.float32([[0, 3], [0, -1]]))
    np.testing.assert_allclose(grid.step, [1e-20, 2], 1e-5)
    np.testing.assert_array_equal(grid.codes, [[1, 1], [1, -1]])


def made(shifts, factors):
    quantizer = ABCNetActivations(len(shifts))
    quantizer.build((None, 1))
    quantizer.shifts.assign(np.float32(shifts))
    quantizer.factors.assign(np.float32(factors))
    return quantizer


@pytest.mark.parametrize("alpha", [1.0, 2.0])  # in units of which everything is
def test_activations_by_hand(alpha):
    quantizer, x = made([0, 1], [1, 2]), alpha * tf.constant([[-1.0, 0.0, 1.0, 4.0]])
    quantizer.alpha.assign(alpha)
    variables = [x, quantizer.shifts, quantizer.factors]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
    np.testing.assert_array_equal(y, alpha * np.float32([[0, 2, 3, 3]]))
    by_x, by_shifts, by_factors = tape.gradient(y, variables)
    np.testing.assert_array_equal(by_x, [[2, 3, 1, 0]])
    # of four features: half of the sum
    np.testing.assert_array_equal(by_shifts, alpha * np.float32([1, 2]))
    np.testing.assert_array_equal(by_factors, alpha * np.float32([1, 1.5]))


def test_activations_start_as_even_rounding():
    quantizer, x = ABCNetActivations(2), np.float32([-1, 0.2, 0.3, 0.7, 0.8, 2])
    values, gradient = gradient_of(quantizer, x)
    np.testing.assert_array_equal(values, [0, 0, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(gradient, [0, 0.5, 1, 1, 0.5, 0])
    np.testing.assert_array_equal(quantizer.shifts, [0.25, -0.25])
    assert len(quantizer.trainable_weights) == 2  # and not alpha


@settings(max_examples=10, deadline=None)
@given(
    x=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8),
    pairs=st.lists(
        st.tuples(st.floats(-2, 2, width=32), st.floats(0.125, 2, width=32)),
        min_size=1,
        max_size=5,
    ),
)
def test_planes_say_what_is_computed(x, pairs):
    quantizer, x = made(*zip(*pairs, strict=True)), np.float32(x)
    planes = quantizer.planes()
    assert not planes.signed
    index = np.searchsorted(planes.thresholds, x, side="left")
    values = quantizer(tf.constant(x)).numpy()
    np.testing.assert_array_equal(planes.values[index], values)
    # A graph may add equal bases before it multiplies them.
    np.testing.assert_allclose(tf.function(quantizer)(tf.constant(x)), values, 1e-6, 1e-6)
    with pytest.raises(NoGrid, match="free factors"):
        quantizer.grid()


def test_it_is_in_the_file_and_a_run_goes_on(tmp_path):
    model = small_model(ABCNetWeights(2), ABCNetActivations(2))
    start = model.get_weights()
    fit(model, 1).save(tmp_path / "model.keras")
    loaded = fit(tf.keras.models.load_model(tmp_path / "model.keras"), 2, initial_epoch=1)
    whole = small_model(ABCNetWeights(2), ABCNetActivations(2))
    whole.set_weights(start)
    fit(whole, 2)
    for one, other in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)
    trained = loaded.layers[3]
    assert np.any(trained.shifts != np.float32([0.25, -0.25]))
    assert np.all(trained.factors.numpy() > 0)


def test_widths():
    for quantizer in (ABCNetWeights, ABCNetActivations):
        with pytest.raises(ValueError, match=r"defines 1, 2, 3, 4, 5 bits, and 32"):
            quantizer(8)
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(ABCNetWeights(32)(x), x)
    np.testing.assert_array_equal(ABCNetActivations(32)(x), np.maximum(x, 0))
