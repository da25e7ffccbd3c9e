import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, ConversionError, SymmetricWeights, quantize
from tests.convert.networks import FLOAT, IMAGES, classifier

layers = tf.keras.layers
Model = tf.keras.Model


def one_layer(kernel, mean=0.0, variance=1.0, **norm):
    """A 1x1 convolution of two channels behind another one, with a batch norm."""
    inputs = tf.keras.Input((1, 1, 2))
    x = layers.ReLU()(layers.Conv2D(2, 1, name="first")(inputs))
    x = layers.Conv2D(2, 1, bias_initializer="ones", name="conv")(x)
    x = layers.BatchNormalization(epsilon=0.0, name="norm", **norm)(x)
    outputs = layers.Dense(3, name="last")(layers.Flatten()(layers.ReLU()(x)))
    model = Model(inputs, outputs)
    model.get_layer("conv").kernel.assign(np.reshape(kernel, (1, 1, 2, 2)))
    model.get_layer("norm").moving_mean.assign([mean, mean])
    model.get_layer("norm").moving_variance.assign([variance, variance])
    return model


def test_factors_by_hand():
    """Channel 0 has weights 0.5 and -1.5, whose signs times their mean of 1.0 are nearest."""
    model, _ = quantize(one_layer([[0.5, 0.25], [-1.5, 0.25]], mean=3.0, variance=4.0), 1, 8)
    conv, norm = model.get_layer("conv"), model.get_layer("norm")
    assert conv.use_bias is False
    assert conv.kernel_quantizer(conv.kernel)[0, 0].numpy().tolist() == [[1, 1], [-1, 1]]
    # Mean (3 - bias 1) / factor, variance 4 / factor^2.
    assert norm.moving_mean.numpy() == pytest.approx([2.0, 8.0])
    assert norm.moving_variance.numpy() == pytest.approx([4.0, 64.0])
    assert norm.gamma.numpy() == pytest.approx([1.0, 1.0])


def test_each_channel_uses_all_levels():
    model, _ = quantize(one_layer([[1.0, 0.01], [0.5, -0.004]]), 8, 8)
    conv = model.get_layer("conv")
    codes = conv.kernel_quantizer.grid(conv.kernel).codes[0, 0]
    assert codes.tolist() == [[127, 127], [64, -51]]  # 63.5 to even, 0.4 * 127 = 50.8


def test_large_weights_stay_where_tanh_has_a_slope():
    model, _ = quantize(one_layer([[40.0, 1.0], [-20.0, 0.5]]), 8, 8)
    assert np.abs(model.get_layer("conv").kernel).max() == pytest.approx(1.0)


def test_a_channel_of_zeros_stays_constant():
    source = one_layer([[0.0, 1.0], [0.0, 1.0]], mean=3.0, variance=4.0)
    model, _ = quantize(source, 1, 8)
    norm = model.get_layer("norm")
    assert norm.gamma.numpy()[0] == 0
    assert norm.beta.numpy()[0] == pytest.approx(-1.0)  # (bias 1 - 3) / 2


def test_an_inserted_norm_takes_scale_and_bias():
    source = tf.keras.Sequential(
        [
            layers.InputLayer((2,)),
            layers.Dense(2, activation="relu", name="first"),
            layers.Dense(2, name="last"),
        ]
    )
    kernel = np.float32([[0.5, 2.0], [-0.5, 2.0]])
    source.get_layer("first").set_weights([kernel, np.float32([0.25, -1.0])])
    images = np.float32([[0, 0], [2, 0], [0, 2], [2, 2]])
    overrides = {"first": dict(weight_bits=1)}
    norm = quantize(source, overrides=overrides)[0].get_layer("first_bn")
    assert norm.beta.numpy() == pytest.approx([0.25, -1.0])
    assert norm.gamma.numpy() == pytest.approx([0.5, 2.0], rel=1e-4)
    # Inputs are sums with +-1: 0, 2, -2, 0 and 0, 2, 2, 4.
    model, report = quantize(source, overrides=overrides, images=images, batch_size=3)
    norm = model.get_layer("first_bn")
    assert norm.moving_mean.numpy() == pytest.approx([0.0, 2.0], abs=1e-6)
    assert norm.moving_variance.numpy() == pytest.approx([2.0, 2.0], rel=1e-5)
    assert norm(np.float32([[2.0, 1.0]])).numpy()[0] == pytest.approx([1.25, 1.0], rel=1e-4)
    assert not any("images:" in note for note in report.notes)
    assert "first_bn inserted" in report.conversions[1].note


def test_ranges():
    images = np.float32([[0.25, 0.5, 0.75, 1.0]] * 10).reshape(-1, 2)  # of 3 steps, nearly
    source = tf.keras.Sequential(
        [
            layers.InputLayer((2,)),
            layers.Dense(2, activation=tf.nn.relu6, kernel_initializer="identity", name="a"),
            layers.Dense(2, activation="relu", name="b"),
            layers.Dense(2),
        ]
    )
    model, report = quantize(source)
    assert [float(q.alpha) for q in model.layers if isinstance(q, CGPACT)] == [8.0, 6.0, 8.0]
    assert "initial guesses" in report.notes[0]
    model, report = quantize(source, images=images)
    assert 0.8 < report.ranges["a_act"] <= 1.0
    assert float(model.get_layer("a_act").alpha) == np.float32(report.ranges["a_act"])
    images *= 100
    ranges = quantize(source, images=images)[1].ranges
    assert 5 < ranges["a_act"] <= 6  # where ReLU6 ends


@pytest.mark.parametrize(
    ("function", "bits", "codes"),
    [("swish", 4, (-1, 14)), ("tanh", 4, (-8, 7)), ("swish", 2, (0, 3)), ("swish", 8, (-128, 127))],
)
def test_functions_of_few_bits_have_the_codes_that_images_need(function, bits, codes):
    source = tf.keras.Sequential(
        [
            layers.InputLayer((2,)),
            layers.Dense(2, activation=function, kernel_initializer="identity", name="a"),
            layers.Dense(2, name="b"),
            layers.Dense(2),
        ]
    )
    images = np.random.default_rng(0).normal(0, 1, (2000, 2)).astype(np.float32)
    made = quantize(source, 4, bits, images=images)[0].get_layer(f"a_{function}_act")
    assert made.codes == codes
    assert quantize(source, 4, 4)[0].get_layer(f"a_{function}_act").codes == (-7, 7)


def test_linear_head_scales_the_logits():
    source = classifier()
    model, _ = quantize(source, head="linear", **FLOAT)
    expected, actual = source(IMAGES).numpy(), model(IMAGES).numpy()
    factor = actual[0, 0] / expected[0, 0]
    assert factor > 0
    np.testing.assert_allclose(actual, factor * expected, rtol=1e-3, atol=1e-4)
    assert model.get_layer("scores").kernel_regularizer.l2 == pytest.approx(0.1)


def test_mixture_head_has_the_posterior_of_the_classifier():
    source = classifier(activation="softmax")
    model, _ = quantize(source, **FLOAT)
    assert isinstance(model.get_layer("scores"), dlqat_tf.GaussianMixtureHead)
    np.testing.assert_allclose(tf.nn.softmax(model(IMAGES)), source(IMAGES), rtol=1e-3)


def test_mixture_head_takes_class_means():
    labels = np.int64(IMAGES[:, 0] > 0.5)  # no image of class 2
    source = classifier()
    plain = quantize(source, **FLOAT)[0].get_layer("scores").means
    model, report = quantize(source, **FLOAT, images=IMAGES, labels=labels)
    means = model.get_layer("scores").means
    np.testing.assert_allclose(means[0], IMAGES[labels == 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(means[1], IMAGES[labels == 1].mean(axis=0), rtol=1e-5)
    moved = (means[:2] - plain[:2]).mean(axis=0)
    np.testing.assert_allclose(means[2], plain[2] + moved, rtol=1e-4, atol=1e-5)
    assert any("starts from the means of the classes" in note for note in report.notes)


def test_cosine_head_takes_directions():
    def columns(**data):
        layer = quantize(source, head="cosine", **FLOAT, **data)[0].get_layer("scores")
        kernel = layer.kernel_quantizer(layer.kernel).numpy()
        return (kernel / np.linalg.norm(kernel, axis=0)).T

    source = classifier()
    kernel = source.get_layer("scores").kernel.numpy()
    np.testing.assert_allclose(columns(), (kernel / np.linalg.norm(kernel, axis=0)).T, rtol=1e-4)
    unit = IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True)
    for labels in (np.arange(12) % 3, None):  # None: what the classifier says
        groups = source(IMAGES).numpy().argmax(1) if labels is None else labels
        means = columns(images=IMAGES, labels=labels)
        for label in np.unique(groups):
            mean = unit[groups == label].mean(axis=0)
            np.testing.assert_allclose(means[label], mean / np.linalg.norm(mean), rtol=1e-4)


def test_without_a_head_the_output_keeps_its_scale():
    source = classifier(activation="softmax")
    model, report = quantize(source, head=None)
    layer = model.get_layer("scores")
    assert isinstance(layer.kernel_quantizer, SymmetricWeights)
    assert layer.kernel_quantizer.bits == 8
    np.testing.assert_allclose(model(IMAGES), source(IMAGES), atol=0.01)
    assert report.conversions[-1].became == "QuantDense"


def test_batch_size(digits):
    sizes = []

    def spy(x):
        sizes.append(x.shape[0])
        return x

    inputs = tf.keras.Input((8, 8, 1))
    x = layers.Lambda(spy, name="spy")(inputs)
    source = Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    sizes.clear()
    quantize(source, overrides={"spy": "float"}, images=digits[0][:10], batch_size=4)
    assert {4, 2} <= set(sizes)
    assert 10 not in sizes


def test_own_layers_that_are_kept_need_a_config():
    class Own(layers.Layer):
        def __init__(self, units):
            super().__init__(name="own")
            self.units = units

        def call(self, x):
            return x

    inputs = tf.keras.Input((4,))
    source = Model(inputs, layers.Dense(2)(Own(3)(inputs)))
    with pytest.raises(ConversionError, match=r"(?s)'own' \(Own\) cannot be copied.*get_config"):
        quantize(source, overrides={"own": "float"})


def test_a_convolution_of_one_weight():
    inputs = tf.keras.Input((4, 4, 1))
    x = tf.keras.layers.Conv2D(3, 3)(
        tf.keras.layers.Conv2D(1, 1, activation="relu", name="one")(inputs)
    )
    source = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(tf.keras.layers.Flatten()(x)))
    images = np.random.default_rng(0).random((8, 4, 4, 1), np.float32)
    model, _ = quantize(source, 4, 4, "linear", images=images)
    assert model.get_layer("one").kernel.shape == (1, 1, 1, 1)
