"""The quantizers of the bridge equal those of the Larq face."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, SATWeights, methods
from dlqat_tf.quantizers import unwrapped
from dlqat_tf.tfmot import LarqQuantizer
from tests.tfmot.networks import (
    applied,
    by_name,
    images,
    inner,
    larq_network,
    network,
)

layers = tf.keras.layers


class Owner(layers.Layer):
    """A layer that does what TF-MOT's wrapper does with one quantizer."""

    def __init__(self, quantizer):
        super().__init__()
        self._used = quantizer
        self._variables = quantizer.build(None, "kernel", self)

    def call(self, inputs, training=None):
        return self._used(inputs, training, weights=self._variables)


@pytest.mark.parametrize("options", [{}, {"scale_adjust": True}, {"keep_scale": True}])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_weights_equal_the_larq_face(bits, options):
    kernel = tf.Variable(np.random.default_rng(bits).normal(0, 0.5, (3, 3, 2, 4)), dtype=tf.float32)
    upstream = tf.random.stateless_normal(kernel.shape, (0, bits))
    results = []
    faces = (SATWeights(bits, **options), Owner(LarqQuantizer(SATWeights(bits, **options))))
    for face in faces:
        with tf.GradientTape() as tape:
            outputs = face(kernel)
        results.append((outputs, tape.gradient(outputs, kernel, upstream)))
    (larq_outputs, larq_gradient), (outputs, gradient) = results
    np.testing.assert_array_equal(outputs, larq_outputs)
    np.testing.assert_array_equal(gradient, larq_gradient)
    assert faces[1].weights == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("bits", "signed"), [(1, False), (2, False), (4, False), (8, False), (3, True), (8, True)]
)
def test_activations_equal_the_larq_face(bits, signed, training):
    x = tf.Variable(np.random.default_rng(bits).normal(0, 2, (4, 5)), dtype=tf.float32)
    upstream = tf.random.stateless_normal(x.shape, (0, bits))
    results = []
    faces = CGPACT(bits, 1.5, signed), Owner(LarqQuantizer(CGPACT(bits, 1.5, signed)))
    for face in faces:
        with tf.GradientTape() as tape:
            outputs = face(x, training=training)
        (alpha,) = face.trainable_variables
        results.append((outputs, *tape.gradient(outputs, [x, alpha], upstream)))
    for larq_result, result in zip(*results, strict=True):
        np.testing.assert_array_equal(result, larq_result)
    assert (alpha.name, alpha.dtype, float(alpha)) == ("kernel_alpha:0", tf.float32, 1.5)
    assert float(alpha.constraint(tf.constant(-1.0))) == np.float32(1e-3)


def test_known_values():
    owner = Owner(LarqQuantizer(CGPACT(2, alpha_init=2.0)))
    outputs = owner(tf.constant([-1.0, 0.2, 0.5, 1.1, 1.9, 2.0, 3.0]))
    np.testing.assert_allclose(outputs, [0, 0, 2 / 3, 4 / 3, 2, 2, 2], rtol=1e-6)
    outputs = Owner(LarqQuantizer(SATWeights(2)))(tf.constant([[-0.9, -0.3, 0.0, 0.2, 0.7]]))
    np.testing.assert_allclose(outputs, [[-1, -1 / 3, 1 / 3, 1 / 3, 1]], rtol=1e-6)


def test_32_bits_are_a_rectifier_without_range():
    owner = Owner(LarqQuantizer(CGPACT(32)))
    np.testing.assert_array_equal(owner(tf.constant([-1.0, 0.3])), [0.0, np.float32(0.3)])
    assert owner.weights == []


@pytest.mark.parametrize("training", [False, True])
def test_a_model_equals_its_larq_twin(training):
    bridge, twin = applied(network(), alpha_init=2.0), larq_network()
    ours, theirs = by_name(bridge), by_name(twin)
    rng = np.random.default_rng(1)
    for name in ("first_bn", "second_bn"):
        for norm in (inner(ours[name]), theirs[name]):
            norm.moving_variance.assign(np.full(norm.moving_variance.shape, 0.4))
    pairs = []
    for name in ("first", "second", "depthwise", "third", "last"):
        # The wrapper lists the latent kernel first, its layer what is left.
        kernel = ours[name].trainable_variables[0]
        theirs[name].variables[0].assign(kernel)
        pairs.append((kernel, theirs[name].variables[0]))
        if name != "first":
            bias = rng.normal(0, 0.3, inner(ours[name]).bias.shape)
            for layer in (inner(ours[name]), theirs[name]):
                layer.bias.assign(bias)
    alphas = [
        [v for v in model.trainable_variables if "alpha" in v.name] for model in (bridge, twin)
    ]
    assert len(alphas[0]) == len(alphas[1]) == 5
    pairs += zip(*alphas, strict=True)
    x = images().astype(np.float32) / np.float32(255)
    results = []
    for model, variables in zip((bridge, twin), zip(*pairs, strict=True), strict=True):
        with tf.GradientTape() as tape:
            logits = model(x, training=training)
            loss = tf.reduce_sum(tf.square(logits))
        results.append((logits, *tape.gradient(loss, variables)))
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)
        assert np.any(mine != 0)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_rounds_as_its_larq_face_does(name):
    """A method joins by its entry: values, variables, constraint."""
    method = methods.get(name)
    bits = method.lowest_bits
    model = applied(network(), bits, 3, method=name)
    wrapper = by_name(model)["second"]
    parts = unwrapped(wrapper)
    assert type(parts.kernel_quantizer) is type(method.weights(bits))
    twin = method.weights(bits)
    kernel = tf.convert_to_tensor(parts.kernel)
    np.testing.assert_array_equal(parts.kernel_quantizer.call(kernel), twin(kernel))
    owned = {id(variable) for variable in wrapper.weights}
    assert len(parts.kernel_quantizer.weights) == len(twin.weights)
    assert {id(variable) for variable in parts.kernel_quantizer.weights} <= owned
    assert type(parts.kernel.constraint) is (method.kernel_constraint or type(None))
    relu = unwrapped(by_name(model)["first_relu"]).output_quantizer
    expected = method.activations(3, alpha_init=8.0, regularizer=None, name="a")
    assert type(relu) is type(expected)
    assert relu.bits == 3
    first = unwrapped(by_name(model)["first"]).kernel_quantizer
    assert type(first) is type(method.end_weights(8))
    assert type(unwrapped(by_name(model)["second_bn"]).output_quantizer) is CGPACT
    assert np.all(np.isfinite(model(images(4) / np.float32(255))))


def test_quantizers_of_a_frozen_layer_stay():
    model = applied(network(), 2, 2, method="lqnet")
    wrapper = by_name(model)["second"]
    wrapper.trainable = False
    assert not unwrapped(wrapper).kernel_quantizer.trainable
    bases = [each for each in model.variables if "basis" in each.name]
    before = [each.numpy() for each in bases]
    model(images(4) / np.float32(255), training=True)
    moved = {
        each.name.split("/")[0]
        for each, old in zip(bases, before, strict=True)
        if np.any(each != old)
    }
    assert "quant_third" in moved
    assert "quant_second" not in moved


def test_frozen_wrappers_train_nothing_and_list_their_weights_in_the_same_order():
    model = applied(network(), 2, 2, method="lqnet")
    every = [[id(each) for each in layer.weights] for layer in model.layers]
    for layer in model.layers:
        layer.trainable = False
    assert model.trainable_weights == []
    assert [[id(each) for each in layer.weights] for layer in model.layers] == every
    for layer in model.layers:
        layer.trainable = True
    assert [[id(each) for each in layer.weights] for layer in model.layers] == every


def test_layers_that_were_frozen_before_stay_so():
    float_model = network()
    float_model.get_layer("second").trainable = False
    model = applied(float_model, 2, 2)
    assert model.get_layer("quant_second").trainable_weights == []
    assert model.get_layer("quant_third").trainable_weights != []
    copy = tf.keras.models.clone_model(model)
    assert copy.get_layer("quant_second").trainable_weights == []
