import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import BWNWeights, IRNetWeights, LSQWeights, SATWeights
from dlqat_tf.convert.weights import (
    latents,
    mixture_means,
    on_kernel_of,
    projection,
    set_norm,
    started,
    unit,
)
from dlqat_tf.quantizers import DepthwiseWeights


def test_latents_use_the_whole_range_of_each_channel():
    kernel = np.array([[0.4, 2.0, 0.0], [-0.2, 1.0, 0.0]])
    expected = [[1.0, 1.0, 0.0], [-0.5, 0.5, 0.0]]
    np.testing.assert_allclose(np.tanh(latents(kernel, (0,))), np.tanh(1) * np.float32(expected))
    # Below 1 the largest weight stays itself.
    assert latents(kernel / 4, (0,))[0].tolist() == [0.5, 0.5, 0.0]
    # One maximum for both channels: 0.4 is a fifth of it.
    np.testing.assert_allclose(
        np.tanh(latents(kernel, (0, 1)))[0], np.tanh(1) * np.float32([0.2, 1.0, 0.0]), rtol=1e-6
    )


def test_projection():
    kernel = np.array([[0.5, 3.0, 1.0], [-1.5, 0.0, 1.0]])
    quantized = np.array([[1.0, 2.0, 0.0], [-1.0, 1.0, 0.0]])
    # (0.5 + 1.5) / 2, (6 + 0) / (4 + 1), and nothing to scale.
    assert projection(kernel, quantized, (0,)).tolist() == [1.0, 1.2, 0.0]
    assert projection(kernel, quantized, (0, 1)) == pytest.approx(8 / 7)


def norm(mean, variance, **options):
    layer = tf.keras.layers.BatchNormalization(epsilon=0.0, **options)
    layer.build((None, 2))
    layer.moving_mean.assign(np.broadcast_to(mean, 2))
    layer.moving_variance.assign(np.broadcast_to(variance, 2))
    return layer


@pytest.mark.parametrize("plain", [False, True])
def test_set_norm(plain):
    """With gamma 1 and beta 0, or with neither variable in the source."""
    source, made = norm([3.0, 3.0], [4.0, 4.0], scale=not plain, center=not plain), norm(0.0, 1.0)
    set_norm(made, source, np.array([0.5, 0.0]), np.array([1.0, 5.0]))
    assert made.moving_mean.numpy().tolist() == [4.0, 0.0]  # (3 - 1) / 0.5
    assert made.moving_variance.numpy().tolist() == [16.0, 1.0]  # 4 / 0.5^2
    # Of x = 8: (0.5 * 8 + 1 - 3) / 2, and of the channel without weights (5 - 3) / 2.
    assert made(tf.constant([[8.0, 8.0]])).numpy().tolist() == [[1.0, 1.0]]
    # The same function from other statistics.
    set_norm(made, source, np.array([0.5, 0.0]), np.array([1.0, 5.0]), np.ones(2), np.full(2, 9.0))
    assert made.moving_mean.numpy().tolist() == [1.0, 1.0]
    assert made.moving_variance.numpy().tolist() == [9.0, 9.0]
    assert made(tf.constant([[8.0, 8.0]])).numpy()[0] == pytest.approx([1.0, 1.0])


def test_set_norm_keeps_gamma_and_beta():
    source, made = norm([0.0, 1.0], [1.0, 4.0]), norm(0.0, 1.0)
    source.gamma.assign([2.0, -1.0])
    source.beta.assign([0.5, 0.25])
    set_norm(made, source, np.ones(2), np.zeros(2))
    for variable, expected in zip(made.weights, source.weights, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_mixture_means():
    # Scores 0 and 2 f are f mu - mu^2 / 2 of the means -1 and 1, but for the constant.
    assert mixture_means(np.array([[0.0, 2.0]]), np.zeros(2))[0] == pytest.approx([-1.0, 1.0])
    # A bias of 2 moves both: f (c + 2) + ... = 2 f + 2 where 2 c + 2 + 2 = 0.
    assert mixture_means(np.array([[0.0, 2.0]]), np.array([0.0, 2.0]))[0] == pytest.approx(
        [-2.0, 0.0]
    )


def test_unit():
    vectors = np.array([[3.0, 0.0], [4.0, 0.0]])
    assert unit(vectors, axis=0).tolist() == [[0.6, 0.0], [0.8, 0.0]]
    assert unit(vectors, axis=1).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_depthwise_kernels():
    layer = tf.keras.layers.DepthwiseConv2D((1, 2))
    for same in (BWNWeights(32), SATWeights(2), LSQWeights(2)):
        assert on_kernel_of(layer, same) is same
    # A weight less the mean of itself is nothing.
    assert isinstance(on_kernel_of(layer, IRNetWeights()), DepthwiseWeights)
    assert not isinstance(
        on_kernel_of(tf.keras.layers.DepthwiseConv2D(1), IRNetWeights()), DepthwiseWeights
    )
    kernel = np.array([[[[1.0], [-3.0]]]])  # a channel, and another
    for inner in (SATWeights(1, keep_scale=True), BWNWeights()):
        start, values = started(kernel, (0, 1), on_kernel_of(layer, inner))
        np.testing.assert_allclose(np.abs(values), np.abs(start), 1e-6)


def test_transposed_kernels():
    layer = tf.keras.layers.Conv2DTranspose(2, 1)
    for same in (BWNWeights(32), SATWeights(2)):
        assert on_kernel_of(layer, same) is same
    kernel = np.array([[[[1.0, -3.0], [0.5, 2.0]]]])  # (1, 1, 2, 2)
    quantizer = on_kernel_of(layer, SATWeights(2, keep_scale=True))
    start, _ = started(kernel, (0, 1, 3), quantizer)
    np.testing.assert_array_equal(start, latents(kernel, (0, 1, 3)))
    start, _ = started(kernel, (0, 1, 3), on_kernel_of(layer, BWNWeights()))
    np.testing.assert_array_equal(start, np.float32(kernel))
