import itertools

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import BWNWeights, CentredAndClamped, DoReFaActivations, bwnh
from dlqat_tf.quantizers.bwnh import _is_binary, fit_binary, latent_kernel


def error(kernel, signs, factors, gram):
    rest = kernel - signs * factors
    return float((rest * (gram @ rest)).sum())


def test_independent_inputs_give_bwn():
    kernel = np.array([[1.0, -3.0], [-2.0, 0.0], [3.0, 1.5]])
    signs, factors = fit_binary(kernel, np.eye(3))
    np.testing.assert_array_equal(signs, [[1, -1], [-1, 1], [1, 1]])
    np.testing.assert_allclose(factors, [2, 1.5])


def test_inputs_that_go_together_by_hand():
    # The first two inputs are nearly one: their weights of 3 and -1 are a 2 that they share.
    inputs = np.array([[1.0, 0.99, 0.0], [1.0, 1.01, 0.0], [0.0, 0.0, 1.0]])
    gram, kernel = inputs.T @ inputs, np.array([[3.0], [-1.0], [1.0]])
    signs, factors = fit_binary(kernel, gram)
    np.testing.assert_array_equal(signs, [[1], [1], [1]])
    best = min(
        error(kernel, np.array([each]).T, _factor(np.array([each]).T, kernel, gram), gram)
        for each in itertools.product((-1.0, 1.0), repeat=3)
    )
    assert error(kernel, signs, factors, gram) == pytest.approx(best)


def test_signs_that_start_against_the_output_or_at_none_are_left():
    # Inputs of 1 and 2: weights of 3 and -1 give 1 where their signs give -1, and ones a third.
    signs, factors = fit_binary(np.array([[3.0], [-1.0]]), np.array([[1.0, 2.0], [2.0, 4.0]]))
    np.testing.assert_array_equal(signs, [[1], [1]])
    np.testing.assert_allclose(factors, [1 / 3])
    # Equal inputs: weights of 3 and -1 are two of 1, where their signs give nothing.
    signs, factors = fit_binary(np.array([[3.0], [-1.0]]), np.ones((2, 2)))
    np.testing.assert_array_equal(signs, [[1], [1]])
    np.testing.assert_allclose(factors, [1])


def test_what_the_output_does_not_tell_stays_as_the_kernel_has_it():
    # An input that is always zero: its weight keeps its sign.
    signs, factors = fit_binary(np.array([[-1.0], [2.0]]), np.diag([0.0, 1.0]))
    np.testing.assert_array_equal(signs, [[-1], [1]])
    np.testing.assert_allclose(factors, [2])
    # Inputs of 1 and -2: weights of 1 and 0.1 give 0.8, their signs -1, so no factor is near.
    _, factors = fit_binary(
        np.array([[1.0], [0.1]]), np.array([[1.0, -2.0], [-2.0, 4.0]]), sweeps=0
    )
    np.testing.assert_array_equal(factors, [0])


def test_signs_are_looked_at_until_they_rest():
    """One sweep over these inputs leaves signs that a second one changes."""
    generator = np.random.default_rng(9)
    inputs, kernel = generator.normal(size=(6, 6)), generator.normal(size=(6, 1))
    gram = inputs.T @ inputs
    once, twice, default = (
        error(kernel, *fit_binary(kernel, gram, *sweeps), gram) for sweeps in ((1,), (3,), ())
    )
    assert once > twice == default


def _factor(signs, kernel, gram):
    return (signs * (gram @ kernel)).sum(0) / (signs * (gram @ signs)).sum(0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), weights=st.integers(1, 6))
def test_it_is_never_worse_than_signs(seed, weights):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(8, weights)) @ generator.normal(size=(weights, weights))
    kernel, gram = generator.normal(size=(weights, 3)), inputs.T @ inputs
    signs, factors = fit_binary(kernel, gram)
    assert np.all(np.abs(signs) == 1)
    assert np.all(factors >= 0)
    plain = np.where(kernel >= 0, 1.0, -1.0)
    start = error(kernel, plain, np.maximum(_factor(plain, kernel, gram), 0), gram)
    assert error(kernel, signs, factors, gram) <= start * (1 + 1e-9) + 1e-12


def test_stored_magnitudes_by_hand():
    # Input channels down, output channels across. Of the first, 1 and 2 stand against 3; of the
    # second 4 alone against 1, so that both become 2.5 of 5, and 2 as there are but two signs.
    kernel = np.array([[1.0, 4.0], [-2.0, -1.0], [-3.0, 0.0]])
    signs = np.array([[1.0, 1], [1, -1], [-1, -1]])
    stored = latent_kernel(kernel, signs, np.array([2.0, 5 / 3]))
    np.testing.assert_allclose(stored, [[1, 2.5], [2, -2.5], [-3, 0]], atol=0.01)
    assert stored[2, 1] < 0  # its sign is that of a weight of zero
    # One sign only, and a kernel of zeros.
    np.testing.assert_allclose(
        latent_kernel(np.array([[1.0], [3.0]]), np.ones((2, 1)), np.array([4.0])), [[2], [6]]
    )
    np.testing.assert_array_equal(
        latent_kernel(np.zeros((2, 1)), np.array([[1.0], [-1]]), np.array([3.0])), [[3], [-3]]
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([(3, 3, 8, 4), (1, 1, 5, 3), (9, 4)]))
def test_what_is_stored_keeps_signs_and_factors_under_the_constraint(seed, shape):
    generator = np.random.default_rng(seed)
    kernel = np.copysign(generator.uniform(0.01, 0.03, shape), generator.normal(size=shape))
    signs = np.where(generator.random(shape) < 0.5, -1.0, 1.0)
    signs[..., :2, :] = np.array([[1.0], [-1.0]])  # both at each position
    factors = generator.uniform(0.01, 0.05, shape[-1])
    stored = latent_kernel(kernel, signs, factors)
    for values in (stored, CentredAndClamped()(tf.constant(stored))):
        np.testing.assert_allclose(BWNWeights()(tf.constant(values)), signs * factors, 1e-4)
    # Those of one sign at one position and for one channel keep their proportions.
    ratios = np.abs(stored / kernel)[..., 0]
    for sign in (-1, 1):
        of_sign = np.where(signs[..., 0] == sign, ratios, np.nan)
        np.testing.assert_allclose(np.nanmax(of_sign, -1), np.nanmin(of_sign, -1), 1e-5)


def network(strides=1, padding="same"):
    inputs = tf.keras.Input((6, 6, 2))
    x = lq.layers.QuantConv2D(4, 3, strides, padding, kernel_quantizer=BWNWeights(), name="first")(
        inputs
    )
    x = tf.keras.layers.ReLU()(x)
    x = lq.layers.QuantDepthwiseConv2D(3, depthwise_quantizer=BWNWeights(), name="depthwise")(x)
    x = tf.keras.layers.Flatten()(x)
    x = lq.layers.QuantDense(3, kernel_quantizer=BWNWeights(), use_bias=False, name="second")(x)
    return tf.keras.Model(inputs, x)


@pytest.mark.parametrize(("strides", "padding"), [(1, "same"), (2, "same"), (1, "valid")])
def test_a_network_layer_by_layer(strides, padding):
    tf.keras.utils.set_random_seed(0)
    model = network(strides, padding)
    images = np.random.default_rng(0).random((70, 6, 6, 2), np.float32)
    layer = model.get_layer("first")
    trained = tf.constant(layer.kernel.latent_variable)
    depthwise = model.get_layer("depthwise").depthwise_kernel.latent_variable.numpy()
    before = tf.nn.conv2d(images, trained, strides, padding.upper())
    errors = bwnh(model, images)
    assert list(errors) == ["first", "second"]
    fitted = layer.kernel.latent_variable.numpy()
    fitted = layer.kernel_quantizer(fitted)
    # The error is that of the layer's outputs, up to the bias, which is zero.
    after = tf.nn.conv2d(images, fitted, strides, padding.upper())
    left = float(tf.reduce_sum((before - after) ** 2) / tf.reduce_sum(before**2))
    assert errors["first"] == pytest.approx(left, 1e-3)
    plain = tf.nn.conv2d(images, BWNWeights()(trained), strides, padding.upper())
    assert left < float(tf.reduce_sum((before - plain) ** 2) / tf.reduce_sum(before**2))
    np.testing.assert_array_equal(
        model.get_layer("depthwise").depthwise_kernel.latent_variable, depthwise
    )


def test_later_layers_see_what_earlier_ones_became():
    tf.keras.utils.set_random_seed(0)
    model = network()
    images = np.random.default_rng(0).random((8, 6, 6, 2), np.float32)
    dense = model.get_layer("second")
    trained = dense.kernel.latent_variable.numpy()
    errors = bwnh(model, images)
    x = tf.keras.Model(model.input, dense.input)(images).numpy()
    before, after = x @ trained, x @ BWNWeights()(dense.kernel.latent_variable).numpy()
    assert errors["second"] == pytest.approx(
        ((before - after) ** 2).sum() / (before**2).sum(), 1e-3
    )


def test_inputs_are_those_of_dilated_kernels_and_rounded_as_the_layer_does():
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((6, 6, 2))
    x = lq.layers.QuantConv2D(
        4, 3, dilation_rate=2, input_quantizer=DoReFaActivations(1), kernel_quantizer=BWNWeights()
    )(inputs)
    model = tf.keras.Model(inputs, x)
    images = np.random.default_rng(0).random((8, 6, 6, 2), np.float32)
    (layer,) = model.layers[1:]
    trained = tf.constant(layer.kernel.latent_variable)
    ((_, error),) = bwnh(model, images).items()
    fitted = layer.kernel_quantizer(layer.kernel.latent_variable)
    before, after = (
        tf.nn.conv2d(np.rint(images), kernel, 1, "VALID", dilations=2)
        for kernel in (trained, tf.convert_to_tensor(fitted))
    )
    left = float(tf.reduce_sum((before - after) ** 2) / tf.reduce_sum(before**2))
    assert error == pytest.approx(left, 1e-3)


def test_grouped_convolutions_are_left_to_bwn():
    quantizer = BWNWeights(1)
    grouped = lq.layers.QuantConv2D(4, 1, groups=2, kernel_quantizer=quantizer)
    assert not _is_binary(grouped)
    assert _is_binary(lq.layers.QuantConv2D(4, 1, kernel_quantizer=quantizer))


def test_bad_arguments():
    inputs = tf.keras.Input((2,))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match=r"BWNWeights\(1\) on its kernels. Received: a model with"):
        bwnh(model, np.ones((1, 2)))
    with pytest.raises(ValueError, match="Received: none"):
        bwnh(network(), np.ones((0, 6, 6, 2)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_inputs_of_16_bits_are_summed_in_float32(policy):
    kernel = np.float32([[3.0], [1.0]])
    images = np.full((2, 625, 2), 10, np.float32)  # 1250 * 10 * 10 is beyond float16
    inputs = tf.keras.Input((625, 2))
    layer = lq.layers.QuantDense(
        1,
        kernel_quantizer=BWNWeights(),
        use_bias=False,
        dtype=tf.keras.mixed_precision.Policy(policy),
    )
    model = tf.keras.Model(inputs, layer(tf.cast(inputs, policy.removeprefix("mixed_"))))
    layer.kernel.latent_variable.assign(kernel)
    assert bwnh(model, images) == {layer.name: pytest.approx(0, abs=1e-6)}
    # Of equal inputs the weights of 3 and 1 are two of 2.
    np.testing.assert_allclose(BWNWeights()(layer.kernel.latent_variable), [[2], [2]])
