"""What nodes compute of arrays: windows, and sums that stay exact."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf.export.integer.arithmetic import exact_product, product
from dlqat_tf.quantizers import ActivationGrid
from tests.export.integer.nodes import convolution, dense, image, transposed


@given(st.integers(0, 10_000), st.integers(1, 3000))
@settings(max_examples=20)
def test_products_are_exact_beyond_float32(seed, features):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (features, 3))
    x = rng.integers(0, 256, (2, features))
    node = dense(weights, [1, 1, 1], [0, 0, 0])
    found = exact_product(node, x, weights.astype(np.int8), ActivationGrid(0, 255, 1.0))
    np.testing.assert_array_equal(found, x @ weights)
    node = convolution(weights[np.newaxis, np.newaxis])
    for lowest in (0, -128):
        x = rng.integers(lowest, lowest + 256, (2, 1, 1, features))
        grid = ActivationGrid(lowest, lowest + 255, 1.0)
        found = exact_product(node, x, weights[np.newaxis, np.newaxis].astype(np.int8), grid)
        np.testing.assert_array_equal(found, x @ weights)


def test_sums_beyond_float32_are_exact():
    # 3000 products of 127 * 255, but one of 127 * 254; near it float32 has multiples of 8.
    node = convolution(np.full((1, 1, 3000, 1), 127))
    x = np.full((1, 1, 1, 3000), 255)
    x[..., 7] = 254
    found = exact_product(node, x, node.weights.astype(np.int8), ActivationGrid(0, 255, 1.0))
    assert found.item() == 97_154_873


def test_windows_of_depthwise_convolutions():
    """The window's four weights are the four digits of each result."""
    x = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    weights = np.array([1000, 100, 10, 1], np.float32).reshape(2, 2, 1, 1)
    near = convolution(weights, is_depthwise=True)
    assert product(near, x, weights)[0, :, :, 0].tolist() == [[1245, 2356], [4578, 5689]]
    dilated = convolution(weights, is_depthwise=True, dilation=(2, 2))
    assert product(dilated, x, weights).ravel().tolist() == [1379]
    wide = image([[1, 2, 3, 4], [5, 6, 7, 8]])
    for strides, expected in (((1, 2), [1256, 3478]), ((1, 3), [1256]), ((2, 2), [1256, 3478])):
        strided = convolution(weights, is_depthwise=True, strides=strides)
        assert product(strided, wide, weights).ravel().tolist() == expected
    tall = image([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3]])
    both = convolution(weights, is_depthwise=True, strides=(1, 2), dilation=(2, 2))
    assert product(both, tall, weights).ravel().tolist() == [1392]


def test_windows_of_convolutions_and_their_groups():
    x = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    weights = np.array([1000, 100, 10, 1], np.float32).reshape(2, 2, 1, 1)
    assert product(convolution(weights), x, weights)[0, 0].ravel().tolist() == [1245, 2356]
    dilated = convolution(weights, dilation=(2, 2))
    assert product(dilated, x, weights).ravel().tolist() == [1379]
    strided = convolution(weights, strides=(1, 2))
    assert product(strided, x, weights)[0, :, :, 0].tolist() == [[1245], [4578]]
    # Two groups of two channels: (1, 2) . (10, 1) and (3, 4) . (100, 1).
    pixel = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
    weights = np.array([[10, 100], [1, 1]], np.float32).reshape(1, 1, 2, 2)
    grouped = convolution(weights, groups=2)
    assert product(grouped, pixel, weights).ravel().tolist() == [12, 304]


def test_windows_of_a_transposed_convolution_add_up():
    x = np.float32([1, 2]).reshape(1, 1, 2, 1)
    apart = transposed(np.reshape([1, 10], (1, 2, 1, 1)), (1, 2))
    assert product(apart, x, np.float32(apart.weights)).ravel().tolist() == [1, 10, 2, 20]
    over = transposed(np.reshape([1, 10, 100], (1, 3, 1, 1)), (1, 2))
    assert product(over, x, np.float32(over.weights)).ravel().tolist() == [1, 10, 102, 20, 200]
    # Two channels in, one out.
    x = np.float32([3, 4]).reshape(1, 1, 1, 2)
    both = transposed(np.reshape([1, 10], (1, 1, 2, 1)), (1, 1))
    assert product(both, x, np.float32(both.weights)).ravel().tolist() == [43]
