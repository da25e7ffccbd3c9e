"""Second derivatives: those of the straight-through formulas, whoever asks for them and how."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, PACT, SATWeights, SymmetricWeights
from dlqat_tf.quantizers import pact, sat, symmetric
from dlqat_tf.quantizers.ste import clip_and_round, codes_of


def reverse_over_reverse(function, primals, tangents):
    """Return the product of a function's Hessian with a vector."""
    with tf.GradientTape() as outer:
        outer.watch(primals)
        with tf.GradientTape() as inner:
            inner.watch(primals)
            value = function(*primals)
        products = map(tf.multiply, inner.gradient(value, primals), tangents)
        total = tf.add_n([tf.reduce_sum(each) for each in products])
    return outer.gradient(total, primals, unconnected_gradients="zero")


def forward_over_reverse(function, primals, tangents):
    with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch(primals)
            value = function(*primals)
        gradients = tape.gradient(value, primals)
    return accumulator.jvp(gradients, unconnected_gradients="zero")


def in_graph(function, primals, tangents):
    return tf.function(reverse_over_reverse, autograph=False)(function, primals, tangents)


def compiled(function, primals, tangents):
    return tf.function(reverse_over_reverse, autograph=False, jit_compile=True)(
        function, primals, tangents
    )


def around_a_function(function, primals, tangents):
    return forward_over_reverse(tf.function(function, autograph=False), primals, tangents)


WAYS = [reverse_over_reverse, in_graph, compiled, forward_over_reverse, around_a_function]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("calibrated", "fused"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("bits", "x", "from_alpha", "uncalibrated"),
    [
        # Range 3, step 1, y = 0, 1, 3: dy/dx = 0, 1, 0 and dy/dalpha = 0, (1 - 1.25) / 3, 1.
        (2, [-1.0, 1.25, 4.0], [0, -1 / 12, 1], [0, 0, 1]),
        (3, [-4.0, -1.25, 4.0], [-1, 1 / 12, 1], [-1, 0, 1]),  # signed
    ],
)
def test_clipping_by_hand(bits, x, from_alpha, uncalibrated, calibrated, fused, way):
    # The Hessian of sum(y^2) / 2 is J^T J, since y is linear in x and alpha between its jumps.
    settings = dict(signed=bits == 3, calibrated=calibrated, fused=fused)

    def function(x, alpha):
        return tf.reduce_sum(tf.square(clip_and_round(x, alpha, bits, **settings))) / 2

    primals = [tf.constant(x), tf.constant(3.0)]
    tangents = [tf.constant([1.0, 2.0, 3.0]), tf.constant(6.0)]
    slopes = np.float64(from_alpha if calibrated else uncalibrated)
    change = np.array([0, 2, 0]) + 6 * slopes  # of y
    from_x, from_range = way(function, primals, tangents)
    np.testing.assert_allclose(from_x, [0, change[1], 0], rtol=1e-6)
    np.testing.assert_allclose(from_range, change @ slopes, rtol=1e-6)


def test_hessian_of_the_range_by_hand():
    @tf.function
    def hessian(alpha):
        y = clip_and_round(tf.constant([-1.0, 1.25, 4.0]), alpha, 2, fused=True)
        return tf.hessians(tf.reduce_sum(tf.square(y)) / 2, alpha)[0]

    assert float(hessian(tf.constant(3.0))) == pytest.approx(1 + 1 / 144)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bits", "scale_adjust"), [(1, False), (2, True), (8, False), (32, True)])
def test_sat_weights_by_hand(bits, scale_adjust, way):
    # dW_eff / dW = (1 - t^2) / (M S) with t = tanh(W), so the second derivative is -2 t times that.
    kernel = np.float32([[0.5, -0.25], [0.125, 0.75]])
    largest = np.tanh(0.75)
    adjusted = SATWeights(bits, scale_adjust)(kernel)
    scale = largest * np.max(SATWeights(bits)(kernel)) / np.max(adjusted)
    t = np.tanh(np.float64(kernel))
    expected = -2 * t * (1 - t**2) / scale * [[1, 2], [3, 4]] * [[5, 6], [7, 8]]

    def function(kernel):
        weights = SATWeights(bits, scale_adjust)(kernel)
        return tf.reduce_sum(weights * [[1.0, 2.0], [3.0, 4.0]])

    tangents = [tf.constant([[5.0, 6.0], [7.0, 8.0]])]
    (product,) = way(function, [tf.constant(kernel)], tangents)
    np.testing.assert_allclose(product, expected, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_symmetric_weights_by_hand(way):
    # dQ/dW = 1: the Hessian of sum(Q^2) / 2 is the identity
    def function(kernel):
        return tf.reduce_sum(tf.square(SymmetricWeights(4)(kernel))) / 2

    (product,) = way(function, [tf.constant([0.3, -0.7, 0.1])], [tf.constant([1.0, 2.0, 3.0])])
    np.testing.assert_allclose(product, [1, 2, 3], rtol=1e-6)


def straight_through(x, rounded):
    return x + tf.stop_gradient(rounded - x)


def reference_clip(x, alpha, bits, *, signed=False, zero_point=0, calibrated=True, fused=False):
    """Return what ``clip_and_round`` does, for TensorFlow to differentiate."""
    lowest, highest = codes_of(bits, signed, zero_point)
    low = lowest / highest
    unit = tf.clip_by_value(x / alpha, low, 1.0)
    rounded = tf.round(unit * highest) / highest
    if calibrated:
        return alpha * straight_through(unit, rounded)
    return straight_through(tf.minimum(tf.maximum(x, low * alpha), alpha), alpha * rounded)


def reference_sat(kernel, bits, scale_adjust=False, keep_scale=False, of=sat.sat_weights):
    values, unscaled = of(kernel, bits, scale_adjust, keep_scale), of(kernel, bits)
    scale = tf.stop_gradient(tf.reduce_max(values) / tf.reduce_max(unscaled))
    tanh = tf.tanh(kernel)
    clamped = tanh / tf.stop_gradient(tf.reduce_max(tf.abs(tanh)))
    return straight_through(clamped * scale, values)


def network(head, quantizer):
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((5, 5, 2))
    x = lq.layers.QuantConv2D(4, 3, kernel_quantizer=SATWeights(2), use_bias=False)(inputs)
    x = quantizer(2, 1.0)(tf.keras.layers.BatchNormalization(momentum=0.9)(x))
    x = lq.layers.QuantConv2D(4, 2, kernel_quantizer=SymmetricWeights(4))(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(quantizer(8, 2.0, signed=True)(x))
    return tf.keras.Model(inputs, head(3)(x))


@pytest.mark.parametrize("way", [reverse_over_reverse, in_graph])
@pytest.mark.parametrize(
    ("head", "quantizer"),
    [
        (dlqat_tf.LinearHead, CGPACT),
        (dlqat_tf.CosineHead, PACT),
        (dlqat_tf.GaussianMixtureHead, CGPACT),
    ],
)
def test_networks_have_the_hessian_of_the_formulas(head, quantizer, way, monkeypatch):
    model = network(head, quantizer)
    images = tf.constant(np.random.default_rng(0).random((6, 5, 5, 2)), tf.float32)
    weights = [variable.numpy() for variable in model.variables]

    def product():
        def function(*_):
            loss = tf.keras.losses.sparse_categorical_crossentropy(
                [0, 1, 2, 0, 1, 2], model(images, training=True), from_logits=True
            )
            return tf.reduce_mean(loss)

        for variable, value in zip(model.variables, weights, strict=True):
            variable.assign(value)
        variables = model.trainable_variables
        tangents = [tf.cos(tf.reshape(tf.range(float(tf.size(v))), v.shape)) for v in variables]
        return way(function, variables, tangents)

    ours = product()
    monkeypatch.setattr(pact, "clip_and_round", reference_clip)
    monkeypatch.setattr(sat, "sat_weights", reference_sat)
    monkeypatch.setattr(symmetric, "ste_round", lambda x: straight_through(x, tf.round(x)))
    for one, other in zip(ours, product(), strict=True):
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other) + 1e-5
