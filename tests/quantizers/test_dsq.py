import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import DSQActivations, DSQWeights
from tests.quantizers.methods import check_grid, fit, kernels, small_model


def started(quantizer, limit, alpha=0.2):
    quantizer.build((1, 1))
    quantizer.range.assign(limit)
    quantizer.started.assign(1)
    quantizer.alpha.assign(alpha)
    return quantizer


def soft_steps(x, low, high, alpha, intervals):
    """The staircase of the paper, whose derivatives TensorFlow finds."""
    width = (high - low) / intervals
    clipped = tf.minimum(tf.maximum(x, low), high)
    index = tf.floor(tf.stop_gradient((clipped - low) / width))
    index = tf.clip_by_value(index, 0.0, intervals - 1.0)
    sharpness = tf.math.log(2.0 / alpha - 1.0) / width
    middle = low + (index + 0.5) * width
    phi = tf.tanh(sharpness * (clipped - middle)) / (1.0 - alpha)
    return low + width * (index + (phi + 1.0) / 2.0)


def test_soft_steps_by_hand():
    # two intervals of width 1; at alpha 0.2 tanh(k / 2) = 0.8
    x = tf.constant([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0])
    y = soft_steps(x, tf.constant(0.0), tf.constant(2.0), tf.constant(0.2), 2)
    np.testing.assert_allclose(y, [0, 0, 0.5, 1, 1.5, 2, 2], 1e-6, 1e-6)
    quarter = soft_steps(tf.constant(0.75), tf.constant(0.0), tf.constant(2.0), tf.constant(0.2), 2)
    assert float(quarter) == pytest.approx(0.5 + math.tanh(math.log(9) / 4) / 0.8 / 2)


def test_weights_by_hand():
    quantizer = started(DSQWeights(1), 1.0)
    kernel = tf.constant([[0.0, -0.2, 1.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        values = quantizer(kernel)
    np.testing.assert_array_equal(values, [[1, -1, 1, 1]])
    gradient = tape.gradient(values, kernel).numpy().ravel()
    steepest = math.log(9) / 2 / 0.8  # k of one interval from -1 to 1, over 1 - alpha
    slope = [steepest, steepest * (1 - math.tanh(0.1 * math.log(9)) ** 2)]
    np.testing.assert_allclose(gradient[:2], slope, 1e-5)
    assert gradient[3] == 0


@settings(max_examples=10, deadline=None)
@given(x=st.floats(-2, 2, width=32), limit=st.floats(0.5, 2, width=32), alpha=st.floats(0.1, 0.4))
def test_gradients_are_those_of_the_soft_steps(x, limit, alpha):
    quantizer = started(DSQWeights(2), limit, alpha)
    kernel = tf.constant([[x]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        values = quantizer(kernel)
    variables = [kernel, quantizer.range, quantizer.alpha]
    gradients = [float(tf.squeeze(each)) for each in tape.gradient(values, variables)]
    at = [x, limit, float(np.float32(alpha))]

    def soft(x, limit, alpha):
        width = 2 * limit / 3
        clipped = min(max(x, -limit), limit)
        index = min(max(math.floor((clipped + limit) / width), 0), 2)
        k = math.log(2 / alpha - 1) / width
        phi = math.tanh(k * (clipped + limit - (index + 0.5) * width)) / (1 - alpha)
        return -limit + width * (index + (phi + 1) / 2)

    place = (min(max(x, -limit), limit) + limit) / (2 * limit / 3)
    if min(place % 1, 1 - place % 1) < 1e-3 or abs(abs(x) - limit) < 1e-3:
        return  # at the ends of intervals differences are of two branches
    for i, gradient in enumerate(gradients):
        step = [1e-5 * (i == j) for j in range(3)]
        high = soft(*(a + b for a, b in zip(at, step, strict=True)))
        low = soft(*(a - b for a, b in zip(at, step, strict=True)))
        assert gradient == pytest.approx((high - low) / 2e-5, rel=1e-2, abs=1e-2)


@settings(max_examples=10, deadline=None)
@given(kernel=kernels, bits=st.integers(1, 8))
def test_properties(kernel, bits):
    grid = check_grid(DSQWeights(bits), kernel)
    assert np.all(grid.codes % 2)
    assert np.abs(grid.codes).max() <= 2**bits - 1
    assert float(grid.step) == pytest.approx(
        max(bits * np.abs(kernel).mean(), 1e-6) / (2**bits - 1), 1e-5
    )
    if bits < 8:
        total = sum(sign * scale for sign, scale in DSQWeights(bits).planes(kernel))
        np.testing.assert_allclose(total, grid.codes * grid.step, 1e-5)


def test_activations_by_hand():
    quantizer = started(DSQActivations(2), 3.0)
    x = tf.constant([-1.0, 0.4, 0.5, 1.5, 2.6, 9.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
    np.testing.assert_allclose(y, [0, 0, 0, 2, 3, 3], 1e-6)
    gradient = tape.gradient(y, x)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[5], 0)
    np.testing.assert_allclose(gradient[2], math.log(9) / 2 / 0.8, 1e-5)  # the middle of a step
    grid = quantizer.grid()
    assert (grid.lowest, grid.highest, grid.step) == (0, 3, 1)


def test_the_range_starts_once_and_a_run_goes_on(tmp_path):
    quantizer = DSQActivations(2)
    quantizer(tf.constant([9.0]))
    with pytest.raises(ValueError, match="train it for a step first"):
        quantizer.grid()
    quantizer(tf.constant([1.0, -3.0]), training=True)
    assert float(quantizer.range) == 4.0  # twice the mean magnitude
    quantizer(tf.constant([50.0]), training=True)
    assert float(quantizer.range) == 4.0

    model = small_model(DSQWeights(1), DSQActivations(2))
    start = model.get_weights()
    fit(model, 1).save(tmp_path / "model.keras")
    loaded = fit(tf.keras.models.load_model(tmp_path / "model.keras"), 2, initial_epoch=1)
    whole = small_model(DSQWeights(1), DSQActivations(2))
    whole.set_weights(start)
    fit(whole, 2)
    for one, other in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)
    assert float(loaded.layers[3].alpha) != pytest.approx(0.2)


def test_alpha_stays_where_steps_are_defined():
    quantizer = started(DSQWeights(1), 1.0)
    for value, expected in ((0.9, 0.5), (-1.0, 1e-3), (0.3, 0.3)):
        assert float(quantizer.alpha.constraint(value)) == pytest.approx(expected)


def test_widths():
    for quantizer in (DSQWeights, DSQActivations):
        with pytest.raises(ValueError, match=r"from 1 to 8"):
            quantizer(9)
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(DSQWeights(32)(x), x)
    np.testing.assert_array_equal(DSQActivations(32)(x), np.maximum(x, 0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", [DSQWeights, DSQActivations])
def test_gradients_are_tensorflows_own_of_the_soft_steps(kind, bits, training):
    """At both ends, between them and beyond."""
    limit = 0.75
    quantizer = started(kind(bits), limit, 0.3)
    x = tf.constant(np.random.default_rng(0).normal(0, limit, (4, 5, 5, 3)), tf.float32)
    ends = [tf.fill([4, 5, 5, 1], end) for end in (limit, 0.0, -limit)]
    x = tf.concat([x, *ends], axis=-1)
    upstream = tf.random.stateless_normal(x.shape, (0, 1))
    lowest = -limit if kind is DSQWeights else 0.0

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function()
        return tape.gradient(y, [x, quantizer.range, quantizer.alpha], upstream)

    def soft():
        high, alpha = map(tf.convert_to_tensor, (quantizer.range, quantizer.alpha))
        return soft_steps(x, high * (lowest / limit), high, alpha, 2**bits - 1)

    expected = gradients(soft)
    for call in (gradients, tf.function(gradients, autograph=False)):
        found = call(lambda: quantizer(x, training=training))
        for each, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-5)
    levels = np.linspace(lowest, limit, 2**bits)
    distance = np.abs(np.asarray(x)[..., None] - levels)
    found = np.asarray(quantizer(x, training=training))
    np.testing.assert_allclose(np.abs(found - x), distance.min(-1), 1e-5, 1e-6)
    np.testing.assert_allclose(np.abs(found[..., None] - levels).min(-1), 0, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3])
def test_weights_are_the_same_bits_in_training(bits):
    quantizer = started(DSQWeights(bits), 0.7)
    kernel = tf.random.stateless_normal((3, 3, 4, 8), (0, 1))
    grid = quantizer.grid(kernel)
    for training in (True, False):
        values = tf.function(quantizer)(kernel, training=training)
        np.testing.assert_array_equal(values, grid.codes * grid.step)


def test_activations_start_where_they_lose_least_on_images():
    quantizer = DSQActivations(2)
    quantizer.build((None, 1))
    quantizer.start(np.float32([0, 1, 2, 3] * 10))
    assert quantizer.grid().step == pytest.approx(1)
