import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dlqat_tf import SATWeights

GOLDEN = np.float32([-0.9, -0.3, 0, 0.2, 0.7])
CLAMPED = [-1, -0.406692, 0, 0.275549, 0.843738]  # tanh(W) / tanh(0.9)
# sech^2(W) / tanh(0.9)
SLOPES = np.array([0.679769, 1.277593, 1.396067, 1.341681, 0.886139])

kernels = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8),
    elements=st.floats(-3, 3, width=32),
)
widths = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8])


def gradient(quantizer, kernel, upstream=None):
    kernel = tf.constant(kernel)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        values = quantizer(kernel)
    return tape.gradient(values, kernel, upstream).numpy()


def top_code(bits):
    return 127 if bits == 8 else 2**bits - 1


@pytest.mark.parametrize(
    ("bits", "codes"),
    [
        (1, [-1, -1, -1, 1, 1]),  # W = 0 is a tie that goes to -1
        (2, [-3, -1, 1, 1, 3]),
        (3, [-7, -3, 1, 1, 5]),
        (4, [-15, -7, 1, 5, 13]),
        (8, [-127, -52, 0, 35, 107]),
    ],
)
def test_golden_values(bits, codes):
    np.testing.assert_allclose(SATWeights(bits)(GOLDEN), np.array(codes) / top_code(bits), 1e-6)
    np.testing.assert_array_equal(SATWeights(bits).grid(GOLDEN).codes, codes)


def test_32_bits_clamp_without_rounding():
    np.testing.assert_allclose(SATWeights(32)(GOLDEN), CLAMPED, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_golden_gradient(bits):
    np.testing.assert_allclose(gradient(SATWeights(bits), GOLDEN), SLOPES, 1e-5)
    upstream = np.float32([1, -2, 3, 0, 5])
    np.testing.assert_allclose(
        gradient(SATWeights(bits), GOLDEN, upstream), upstream * SLOPES, 1e-5
    )


def test_golden_scale_adjustment():
    # The five values -1, -1/3, 1/3, 1/3, 1 have the variance 0.577778 (N - 1), so S is 2.403701 =
    # sqrt(10 * 0.577778) at ten output channels; a kernel of five values in one row has five.
    plain, adjusted = SATWeights(2)(GOLDEN[None]), SATWeights(2, scale_adjust=True)(GOLDEN[None])
    np.testing.assert_allclose(plain / adjusted, 2.403701 / np.sqrt(2), 1e-6)


def test_golden_kept_scale():
    """One bit: signs times the mean of |W|, channel by channel; the gradient by the same factor."""
    kernel = np.float32([[0.5, 0.25], [-1.5, 0.25]])
    quantizer = SATWeights(1, keep_scale=True)
    np.testing.assert_allclose(quantizer(kernel), [[1, 0.25], [-1, 0.25]], 1e-6)
    ratio = gradient(quantizer, kernel) / gradient(SATWeights(1), kernel)
    np.testing.assert_allclose(ratio, [[1, 0.25], [1, 0.25]], 1e-5)
    # Two bits: Q is 1/3, 1/3 and -1, 1/3, since M is tanh 1.5; <W, Q> / <Q, Q> is 1.5 and 0.75.
    two = SATWeights(2, keep_scale=True)(kernel)
    np.testing.assert_allclose(two, [[0.5, 0.25], [-1.5, 0.25]], 1e-6)
    # All of a channel's weights zero: next to nothing, on a grid all the same.
    grid = SATWeights(2, keep_scale=True).grid(kernel * np.float32([1, 0]))
    assert grid.step[1] > 0
    assert grid.step[1] < 1e-15


@pytest.mark.parametrize("shape", [(30, 10), (3, 3, 5, 7), (3, 3, 6, 1)])
def test_kept_scale_is_near_the_weights_and_equal_in_graphs(shape):
    kernel = np.random.default_rng(0).normal(0, 0.05, shape).astype(np.float32)
    for bits, error in ((1, 0.7), (2, 0.6), (4, 0.15), (8, 0.02), (32, 0.01)):
        quantizer = SATWeights(bits, keep_scale=True)
        values = tf.function(quantizer)(kernel).numpy()
        assert np.linalg.norm(values - kernel) < error * np.linalg.norm(kernel)
        if bits != 32:
            grid = quantizer.grid(kernel)
            np.testing.assert_array_equal(values, grid.codes * grid.step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keep_scale=1), "keep_scale to be a boolean. Received: 1"),
        (dict(keep_scale=True, scale_adjust=True), "Received: both"),
    ],
)
def test_options_of_scale_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SATWeights(2, **options)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 32])
@pytest.mark.parametrize(("shape", "fan_out"), [((30, 10), 10), ((3, 2, 5, 7), 7 * 3 * 2)])
def test_scale_adjustment_gives_variance_one_over_fan_out(bits, shape, fan_out):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    adjusted = SATWeights(bits, scale_adjust=True)
    values = adjusted(kernel)
    assert np.var(values, ddof=1) == pytest.approx(1 / fan_out, rel=1e-5)
    scale = np.max(SATWeights(bits)(kernel)) / np.max(values)
    np.testing.assert_allclose(
        gradient(adjusted, kernel), gradient(SATWeights(bits), kernel) / scale, 1e-5
    )


@pytest.mark.parametrize("shape", [(1, 1), (512, 100)])
@pytest.mark.parametrize(("value", "code"), [(0.0, 1), (0.1, 7), (-0.1, -7)])
def test_a_constant_kernel_has_no_variance_to_adjust(shape, value, code):
    kernel = np.full(shape, value, np.float32)
    values = SATWeights(3, scale_adjust=True)(kernel)
    np.testing.assert_allclose(values, np.full(shape, code / 7), 1e-6)


@pytest.mark.parametrize(("bits", "value"), [(1, -1), (2, 1 / 3), (8, 0), (32, 0)])
def test_an_all_zero_kernel(bits, value):
    zeros = np.zeros((2, 3), np.float32)
    np.testing.assert_allclose(SATWeights(bits)(zeros), np.full((2, 3), value), 1e-6)
    np.testing.assert_array_equal(gradient(SATWeights(bits), zeros), zeros)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=widths, scale_adjust=st.booleans())
@example(kernel=np.float32([[1e-30]]), bits=2, scale_adjust=False)  # counts as zero
@example(kernel=np.float32([[2e-30]]), bits=2, scale_adjust=False)
def test_call_is_codes_times_step(kernel, bits, scale_adjust):
    quantizer = SATWeights(bits, scale_adjust)
    values, grid, top = quantizer(kernel).numpy(), quantizer.grid(kernel), top_code(bits)
    assert grid.codes.dtype == np.int16
    assert grid.codes.shape == kernel.shape
    assert grid.step.dtype == np.float32
    np.testing.assert_array_equal(grid.codes * grid.step, values)
    np.testing.assert_array_equal(tf.function(quantizer)(kernel), values)
    assert np.abs(grid.codes).max() <= top
    if bits < 8:
        assert (grid.codes % 2 == 1).all()  # at most 2^b levels
        total = sum(sign * np.float64(scale) for sign, scale in quantizer.planes(kernel))
        np.testing.assert_array_equal(total.astype(np.float32), values)
    # the nearest level, by float64
    tanh = np.tanh(kernel.astype(np.float64))
    largest = np.abs(tanh).max()
    clamped = tanh / largest if np.float32(largest) > np.float32(1e-30) else 0 * tanh
    half_gap = 0.5 if bits == 8 else 1.0
    assert np.abs(clamped * top - grid.codes).max() <= half_gap + 1e-4
    # monotone
    order = np.argsort(kernel, axis=None)
    assert (np.diff(grid.codes.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_the_adjusted_step_is_the_same_in_a_graph(bits):
    quantizer = SATWeights(bits, scale_adjust=True)
    in_graph = tf.function(quantizer, input_signature=[tf.TensorSpec((4, 3))])
    for kernel in np.random.default_rng(0).normal(size=(60, 4, 3)).astype(np.float32):
        np.testing.assert_array_equal(in_graph(kernel), quantizer(kernel))


@settings(max_examples=20, deadline=None)
@given(kernel=kernels, bits=widths)
def test_gradient_is_the_formula(kernel, bits):
    wide = kernel.astype(np.float64)
    largest = np.tanh(np.abs(wide).max())
    is_zero = largest <= 1e-30  # up to the limits of float32
    expected = np.zeros_like(wide) if is_zero else 1 / np.cosh(wide) ** 2 / largest
    np.testing.assert_allclose(gradient(SATWeights(bits), kernel), expected, 1e-3)


@settings(max_examples=20, deadline=None)
@given(kernel=kernels)
def test_one_bit_is_idempotent(kernel):
    once = SATWeights(1)(kernel)
    np.testing.assert_array_equal(SATWeights(1)(once), once)


def test_scale_adjust_must_be_a_boolean():
    with pytest.raises(ValueError, match=r"scale_adjust to be a boolean\. Received: 1\."):
        SATWeights(2, scale_adjust=1)


def test_config_round_trip():
    quantizer = SATWeights(3, scale_adjust=True, name="mine")
    config = quantizer.get_config()
    assert (config["bits"], config["scale_adjust"], config["name"]) == (3, True, "mine")
    assert SATWeights.from_config(config).get_config() == config


def test_latent_weights_train_through_a_layer():
    layer = lq.layers.QuantDense(2, kernel_quantizer=SATWeights(1), use_bias=False)
    layer.build((None, 2))
    layer.kernel.assign([[0.9, -0.3], [-0.3, 0.2]])
    x = tf.constant([[2.0, 1.0]])
    with tf.GradientTape() as tape:
        y = layer(x)
    np.testing.assert_array_equal(y, [[2 - 1, -2 + 1]])
    slopes = [[SLOPES[0], SLOPES[1]], [SLOPES[1], SLOPES[3]]]
    np.testing.assert_allclose(
        tape.gradient(y, layer.trainable_variables)[0], x.numpy().T * slopes, 1e-5
    )
