import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import LQNetActivations, LQNetWeights
from dlqat_tf.quantizers import NoGrid, TransposedWeights
from dlqat_tf.quantizers.calibration import optimal_range, rounding_error
from dlqat_tf.quantizers.ste import Codes
from tests.quantizers.methods import check_grid, fit, gradient_of, kernels, small_model


def with_basis(quantizer, basis):
    quantizer.build((1, 1))
    quantizer.basis.assign(np.float32(basis))
    return quantizer


def test_weights_by_hand():
    # levels -4, -2, 2, 4 with borders at -3, 0, 3
    kernel = np.float32([[-5, -1, 0.5, 3.5]]).T
    upstream = np.float32([[1, 2, 3, 4]]).T
    values, gradient = gradient_of(with_basis(LQNetWeights(2), [[1], [3]]), kernel, upstream)
    np.testing.assert_array_equal(values.T, [[-4, -2, 2, 4]])
    np.testing.assert_array_equal(gradient, upstream)


@pytest.mark.parametrize("training", [True, tf.constant(True)])
def test_the_basis_follows_the_kernel(training):
    quantizer = with_basis(LQNetWeights(2), [[1], [3]])
    kernel = np.float32([[-4.3, -1.9, 1.9, 4.3]]).T  # the levels of 1.2 and 3.1
    quantizer(kernel)
    quantizer(kernel, training=tf.constant(False))
    np.testing.assert_array_equal(quantizer.basis, [[1], [3]])
    values = quantizer(kernel, training=training)
    np.testing.assert_array_equal(values, np.float32([[-4, -2, 2, 4]]).T)  # the basis of before
    np.testing.assert_allclose(quantizer.basis, [[1.02], [3.01]], 1e-5)


def test_the_basis_survives_a_batch_that_diverged():
    quantizer = with_basis(LQNetWeights(2), [[1], [3]])
    quantizer(np.float32([[np.inf], [1.0]]), training=True)
    np.testing.assert_array_equal(quantizer.basis, [[1], [3]])


def test_where_the_basis_starts():
    quantizer = LQNetWeights(2)
    quantizer.build((3, 3, 5, 2))  # 9 positions times 2 channels
    largest = 0.6745 / 3
    np.testing.assert_allclose(quantizer.basis, [[largest / 2] * 2, [largest] * 2], 1e-6)
    quantizer = LQNetActivations(2)
    quantizer.build((None, 3))
    np.testing.assert_allclose(quantizer.basis, [0.6745 * 2 / 3, 0.6745 * 4 / 3], 1e-6)


@settings(max_examples=10, deadline=None)
@given(kernel=kernels, bits=st.integers(1, 4))
def test_properties(kernel, bits):
    quantizer = LQNetWeights(bits)
    before = quantizer.planes(kernel)
    values = quantizer(kernel).numpy()
    total = sum(np.float32(sign * scale) for sign, scale in quantizer.planes(kernel))
    np.testing.assert_allclose(total, values, 1e-6)
    for (sign, scale), (same_sign, same_scale) in zip(
        before, quantizer.planes(kernel), strict=True
    ):
        np.testing.assert_array_equal(sign, same_sign)
        np.testing.assert_array_equal(scale, same_scale)
        assert set(np.unique(sign)) <= {-1, 1}
        assert scale.shape == kernel.shape[-1:]
    if bits == 1:
        check_grid(quantizer, kernel)
    else:
        with pytest.raises(NoGrid, match=rf"LQNetWeights\(bits={bits}\) .* free basis"):
            quantizer.grid(kernel)
    choices = np.array(list(itertools.product((-1, 1), repeat=bits)))
    levels = (choices @ quantizer.basis.numpy()).reshape(
        -1, *[1] * (kernel.ndim - 1), kernel.shape[-1]
    )
    nearest = np.abs(levels - kernel).min(axis=0)
    np.testing.assert_allclose(np.abs(values - kernel), nearest, 1e-4, 1e-6)


def test_activations_by_hand():
    # levels 0, 1, 3, 4 with borders at 0.5, 2, 3.5
    quantizer = with_basis(LQNetActivations(2), [1, 3])
    values, gradient = gradient_of(quantizer, [-1, 0.4, 0.6, 2.5, 3.6, 9])
    np.testing.assert_array_equal(values, [0, 0, 1, 3, 4, 4])
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1, 0])
    planes = quantizer.planes()
    np.testing.assert_array_equal(planes.thresholds, [0.5, 2, 3.5])
    np.testing.assert_array_equal(planes.planes, [[0, 1, 0, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(planes.scales, [1, 3])
    np.testing.assert_array_equal(planes.values, [0, 1, 3, 4])
    assert not planes.signed
    with pytest.raises(NoGrid, match="free basis"):
        quantizer.grid()


def test_a_basis_out_of_order():
    quantizer = with_basis(LQNetActivations(2), [3, 1])
    np.testing.assert_array_equal(quantizer(tf.constant([0.6, 2.5])), [1, 3])
    np.testing.assert_array_equal(quantizer.planes().planes, [[0, 0, 1, 1], [0, 1, 0, 1]])


@pytest.mark.parametrize("training", [True, tf.constant(True)])
def test_the_activation_basis_follows_the_batches(training):
    quantizer = with_basis(LQNetActivations(2), [1, 3])
    x = tf.constant([-9.0, 0.0, 1.2, 3.1, 4.3])
    quantizer(x, training=tf.constant(False))
    np.testing.assert_array_equal(quantizer.basis, [1, 3])
    quantizer(x, training=training)
    np.testing.assert_allclose(quantizer.basis, [1.02, 3.01], 1e-4)


def test_planes_that_are_equal_in_a_large_batch():
    quantizer = with_basis(LQNetActivations(2), [1, 3])
    quantizer(tf.repeat(tf.constant([0.0, 5.0]), 500_000), training=True)
    # 4 becomes 5, by equal shares of what is missing
    np.testing.assert_allclose(quantizer.basis, [1.05, 3.05], 1e-3)


@settings(max_examples=10, deadline=None)
@given(
    x=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8),
    basis=st.lists(st.floats(0.125, 2, width=32), min_size=1, max_size=4),
)
def test_planes_say_what_is_computed(x, basis):
    quantizer = with_basis(LQNetActivations(len(basis)), basis)
    planes, x = quantizer.planes(), np.float32(x)
    index = np.searchsorted(planes.thresholds, x, side="left")
    values = quantizer(tf.constant(x)).numpy()
    np.testing.assert_array_equal(planes.values[index], values)
    np.testing.assert_array_equal(tf.function(quantizer)(tf.constant(x)), values)


def test_bases_are_in_the_file_and_a_run_goes_on(tmp_path):
    model = small_model(LQNetWeights(2), LQNetActivations(2))
    start = model.get_weights()
    fit(model, 1).save(tmp_path / "model.keras")
    loaded = fit(tf.keras.models.load_model(tmp_path / "model.keras"), 2, initial_epoch=1)
    whole = small_model(LQNetWeights(2), LQNetActivations(2))
    whole.set_weights(start)
    fit(whole, 2)
    for one, other in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)
    assert np.any(loaded.layers[1].kernel_quantizer.basis != LQNetWeights(2)._start((1, 1, 2, 4)))
    assert loaded.layers[3].trainable_weights == []


def test_widths():
    for quantizer in (LQNetWeights, LQNetActivations):
        with pytest.raises(ValueError, match=r"defines 1, 2, 3, 4 bits, and 32 for no rounding"):
            quantizer(5)
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(LQNetWeights(32)(x), x)
    np.testing.assert_array_equal(LQNetActivations(32)(x), np.maximum(x, 0))


def test_a_value_at_a_threshold_is_below_it():
    quantizer = LQNetActivations(2)
    quantizer.build((None, 4))
    quantizer.basis.assign([1.0, 2.0])
    x = tf.Variable([[0.0, 0.5, 1.5, 2.5, 3.0]])
    with tf.GradientTape() as tape:
        y = quantizer(x)
    assert y.numpy().tolist() == [[0, 0, 1, 2, 3]]
    assert tape.gradient(y, x).numpy().tolist() == [[0, 1, 1, 1, 0]]


def test_activations_start_where_the_basis_rests_on_images():
    quantizer = with_basis(LQNetActivations(2), [0.1, 0.2])
    quantizer.start(np.float32([-3, 0, 2, 5, 7] * 20))
    np.testing.assert_allclose(quantizer.basis, [2, 5], 1e-3)
    quantizer.start(np.float32([0, 0.002, 0.005, 0.007] * 20))  # far below what it starts at
    np.testing.assert_allclose(quantizer.basis, [0.002, 0.005], 1e-2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0.01, 1.0, 9.0])
def test_activations_lose_no_more_than_on_the_best_grid(bits, size):
    values = np.float32(size * np.random.default_rng(0).exponential(size=5000))
    quantizer = LQNetActivations(bits)
    quantizer.build((None, 1))
    quantizer.start(values)
    step = optimal_range(values, 0, 2**bits - 1) / (2**bits - 1)
    error = np.square(quantizer(values) - values).mean()
    assert error <= rounding_error(values, Codes(0, 2**bits - 1), step)
    before = quantizer.basis.numpy()
    quantizer(values, training=True)  # it is at rest
    np.testing.assert_allclose(quantizer.basis, before, 1e-2)


def test_images_of_nothing_leave_a_basis():
    quantizer = LQNetActivations(2)
    quantizer.build((None, 1))
    quantizer.start(np.zeros(10, np.float32))
    assert np.all(np.isfinite(quantizer.basis))
    assert np.all(quantizer.basis > 0)


def test_weights_start_where_the_basis_rests_on_the_kernel():
    quantizer = LQNetWeights(2)
    kernel = np.float32([[-4, -2, 2, 4], [-40, -20, 20, 40], [0, 0, 0, 0]]).T
    quantizer.start(kernel)
    np.testing.assert_allclose(quantizer.basis, [[1, 10, 0], [3, 30, 0]], 1e-2, 1e-5)
    np.testing.assert_allclose(quantizer(kernel), kernel, 1e-2, 1e-4)
    transposed = TransposedWeights(LQNetWeights(2))
    transposed.start(kernel[None, None].swapaxes(-1, -2))
    np.testing.assert_array_equal(transposed.quantizer.basis, quantizer.basis)


def test_the_basis_of_a_large_kernel_is_that_of_all_its_rows():
    """Of magnitudes 1 in the first half and 3 in the second: of one bit their mean."""
    kernel = np.repeat(np.float32([1, -1, 3, -3]), 1000)[:, None]
    quantizer = LQNetWeights(1)
    quantizer.start(kernel)
    np.testing.assert_allclose(quantizer.basis, [[2]], 1e-3)


def test_a_basis_below_zero_has_a_step_above_it():
    quantizer = LQNetWeights(1)
    quantizer.build((2, 1))
    quantizer.basis.assign([[-2.0]])
    grid = check_grid(quantizer, np.float32([[-1.0], [0.5]]))
    assert grid.step == 2
    np.testing.assert_array_equal(grid.codes, [[-1], [1]])
