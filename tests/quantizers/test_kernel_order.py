import json

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import BWNWeights, HAWQWeights, INQWeights, IRNetWeights, LQNetWeights, SYQWeights
from dlqat_tf.quantizers import DepthwiseWeights, NoGrid, TransposedWeights
from tests.quantizers.methods import check_grid, fit, gradient_of

# A position, two output and three input channels, whose mean magnitudes are 2 and 3.
W = np.float32([[[[1.0, -2.0, 3.0], [-3.0, -5.0, 1.0]]]])


def test_by_hand():
    quantizer = TransposedWeights(BWNWeights())
    upstream = np.float32([[[[1, 2, 3], [4, 5, 6]]]])
    values, gradient = gradient_of(quantizer, W, upstream)
    np.testing.assert_array_equal(values, [[[[2, -2, 2], [-3, -3, 3]]]])
    third = 1 / 3  # and the mean where the weight is at most 1
    slope = [[2 + third, third, third], [third, third, 3 + third]]
    np.testing.assert_allclose(gradient[0, 0], upstream[0, 0] * slope, 1e-6)
    grid = check_grid(quantizer, W)
    assert grid.step.tolist() == [[2], [3]]
    ((sign, scale),) = quantizer.planes(W)
    np.testing.assert_array_equal(sign * scale, values)
    assert quantizer.precision == 1


def test_filters_of_a_depthwise_kernel_by_hand():
    # A position of two input channels with two filters each, and below it another.
    kernel = np.float32([[[[1.0, -2.0], [3.0, -3.0]]], [[[-3.0, 4.0], [1.0, 5.0]]]])
    upstream = np.arange(8, dtype=np.float32).reshape(kernel.shape)
    quantizer = DepthwiseWeights(BWNWeights())
    values, gradient = gradient_of(quantizer, kernel, upstream)
    np.testing.assert_array_equal(values, [[[[2, -3], [2, -4]]], [[[-2, 3], [2, 4]]]])
    slope = [[[[2.5, 0.5], [0.5, 0.5]]], [[[0.5, 0.5], [2.5, 0.5]]]]  # a half is of two weights
    np.testing.assert_allclose(gradient, upstream * slope, 1e-6)
    grid = check_grid(quantizer, kernel)
    assert grid.step.tolist() == [[2, 3], [2, 4]]
    ((sign, scale),) = quantizer.planes(kernel)
    np.testing.assert_array_equal(sign * scale, values)
    # Without it each of the two multipliers has one.
    assert BWNWeights().grid(kernel).step.tolist() == [2, 3.5]


def turned(kernel):
    return np.swapaxes(kernel, 2, 3)


# What each shows to the other quantizer of a (2, 3, 3, 4) kernel, and back.
SHOWN = {
    TransposedWeights: (turned, turned),
    DepthwiseWeights: (
        lambda kernel: kernel.reshape(2, 3, 1, 12),
        lambda kernel: kernel.reshape(2, 3, 3, 4),
    ),
}


@pytest.mark.parametrize("order", SHOWN)
@pytest.mark.parametrize(
    ("make", "bits"), [(HAWQWeights, 3), (IRNetWeights, 1), (SYQWeights, 2), (LQNetWeights, 2)]
)
def test_it_is_the_other_one_on_what_it_shows(make, bits, order):
    generator = np.random.default_rng(0)
    kernel, upstream = generator.normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    inner, (show, back) = make(bits), SHOWN[order]
    quantizer = order(inner)
    quantizer(kernel, training=True)
    values, gradient = gradient_of(quantizer, kernel, upstream)
    expected = [back(each) for each in gradient_of(inner, show(kernel), show(upstream))]
    np.testing.assert_array_equal([values, gradient], expected)
    if make is LQNetWeights:
        total = sum(sign * scale for sign, scale in quantizer.planes(kernel))
        np.testing.assert_allclose(total, values, 1e-6)
    elif make is SYQWeights:
        with pytest.raises(NoGrid):
            quantizer.grid(kernel)
    else:
        check_grid(quantizer, kernel)


@pytest.mark.parametrize("order", [TransposedWeights, DepthwiseWeights])
def test_a_latent_kernel_has_the_levels(order):
    quantizer = order(HAWQWeights(3))
    grid = quantizer.grid(W)
    again = quantizer.grid(quantizer.latent(grid))
    np.testing.assert_array_equal(again.codes, grid.codes)
    np.testing.assert_array_equal(again.step, grid.step)


def test_levels_start_from_the_fan_out_of_an_input_channel():
    quantizer = DepthwiseWeights(LQNetWeights(2))
    quantizer.build((3, 3, 32, 2))
    expected = 0.6745 * (2 / (3 * 3 * 2)) ** 0.5
    np.testing.assert_allclose(quantizer.quantizer.basis[1], np.full(64, expected), 1e-4)
    # And so they are before it is built.
    kernel = np.ones((3, 3, 32, 2), np.float32)
    (_, largest) = DepthwiseWeights(LQNetWeights(2)).planes(kernel)[1]
    np.testing.assert_allclose(largest, np.full((32, 2), expected), 1e-4)


def test_progress_is_told_of_filters():
    kernel = tf.Variable(np.float32([[[[4.0]], [[1.0]]], [[[2.0]], [[0.25]]]]))  # (2, 2, 1, 1)
    quantizer = DepthwiseWeights(INQWeights(3))
    quantizer.build(kernel.shape)
    quantizer.advance(0.0, kernel)
    assert quantizer.quantizer.frozen.shape == (2, 2, 1, 1)
    kernel.assign_add(tf.ones_like(kernel))
    assert quantizer(kernel).numpy().ravel().tolist() == [4.0, 2.0, 2.0, 1.25]


def test_what_depends_on_progress_is_told():
    kernel = tf.Variable(np.float32([[[[4.0, 1.0]], [[2.0, 0.25]]]]))  # (1, 2, 1, 2)
    quantizer = TransposedWeights(INQWeights(3))
    quantizer.build(kernel.shape)
    quantizer.advance(0.0, kernel)  # the larger half, at powers of two
    assert quantizer.quantizer.frozen.shape == (1, 2, 2, 1)
    kernel.assign_add(tf.ones_like(kernel))
    assert quantizer(kernel).numpy().tolist() == [[[[4.0, 2.0]], [[2.0, 1.25]]]]
    assert not hasattr(TransposedWeights(BWNWeights()), "advance")


@pytest.mark.parametrize("order", [TransposedWeights, DepthwiseWeights])
def test_it_comes_back(tmp_path, order):
    inputs = tf.keras.Input((2, 2, 2))
    quantizer = order(LQNetWeights(2))
    if order is TransposedWeights:
        layer = lq.layers.QuantConv2DTranspose(4, 1, kernel_quantizer=quantizer)
    else:
        layer = lq.layers.QuantDepthwiseConv2D(1, depth_multiplier=2, depthwise_quantizer=quantizer)
    x = layer(inputs)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))
    model.compile("sgd", "mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    name = "kernel_quantizer" if order is TransposedWeights else "depthwise_quantizer"
    assert getattr(loaded.layers[1], name).quantizer.basis.shape == (2, 4)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    config = json.loads(json.dumps(quantizer.get_config()))
    assert order.from_config(config).get_config() == quantizer.get_config()


@pytest.mark.parametrize("order", [TransposedWeights, DepthwiseWeights])
@pytest.mark.parametrize("wrong", [None, 1, tf.keras.layers.ReLU()])
def test_bad_input(wrong, order):
    with pytest.raises(ValueError, match=r"Expected a weight quantizer of dlqat_tf\. Received"):
        order(wrong)
