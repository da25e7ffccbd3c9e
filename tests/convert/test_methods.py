"""Conversion by every method of the registry; one joins these tests by its entry."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, SATWeights, methods, quantize
from dlqat_tf.convert import ConversionError
from dlqat_tf.convert.weights import projection
from dlqat_tf.export import parity, to_tflite
from dlqat_tf.quantizers import ActivationQuantizer

layers = tf.keras.layers
EVERY = pytest.mark.parametrize("name", methods.names())
IMAGES = np.random.default_rng(0).random((16, 6, 6, 3)).astype(np.float32)


def source():
    """A first convolution, a depthwise and a hidden one, and a classifier."""
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.Conv2D(4, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="first_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = layers.ReLU(name="depth_relu")(layers.BatchNormalization(name="depth_bn")(x))
    x = layers.Conv2D(6, 1, name="hidden")(x)
    x = layers.ReLU(name="hidden_relu")(layers.BatchNormalization(name="hidden_bn")(x))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(inputs, layers.Dense(3, name="scores")(x))


@EVERY
def test_it_rounds_what_is_hidden(name):
    method = methods.get(name)
    bits = method.lowest_bits
    model, report = quantize(source(), bits, 3, "linear", images=IMAGES, method=name)
    first, depth, hidden = map(model.get_layer, ("first", "depth", "hidden"))
    assert type(first.kernel_quantizer) is type(method.end_weights(8))
    assert type(depth.depthwise_quantizer.of_channels_last) is type(method.weights(bits))
    assert type(hidden.kernel_quantizer) is type(method.weights(bits))
    assert [each.bits for each in (first.kernel_quantizer, hidden.kernel_quantizer)] == [8, bits]
    constraint = method.kernel_constraint or type(None)
    assert type(hidden.kernel_constraint) is constraint
    assert depth.depthwise_constraint is None
    found = [layer for layer in model.layers if isinstance(layer, ActivationQuantizer)]
    assert [layer.bits for layer in found] == [3, 3, 8]
    for layer in found:
        expected = method.activations(layer.bits, alpha_init=1.0, regularizer=None, name="a")
        assert type(layer) is type(expected)
    assert np.all(np.isfinite(model(IMAGES)))
    needed = [note for note in report.notes if "callbacks=dlqat_tf.methods.get(" in note]
    assert len(needed) == len(method.callbacks(1.0))
    needed = [note for note in report.notes if f"get({name!r}).prepare(model, images)" in note]
    assert len(needed) == (method.prepare is not None)


@EVERY
def test_at_32_bits_it_computes_what_the_source_does(name):
    float_model = source()
    model, _ = quantize(float_model, 32, 32, None, method=name)
    # Only the last layer, of 8 bits in another method's terms, is not rounded either.
    np.testing.assert_allclose(
        tf.keras.Model(model.input, model.get_layer("features").output)(IMAGES),
        tf.keras.Model(float_model.input, float_model.get_layer("features").output)(IMAGES),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(("name", "bits"), [("lsq", 4), ("hawq", 8), ("inq", 5)])
def test_methods_without_a_clamp_start_from_the_weights_themselves(name, bits):
    float_model = source()
    model, _ = quantize(float_model, bits, 8, "linear", images=IMAGES, method=name)
    kernel = float_model.get_layer("hidden").kernel
    np.testing.assert_array_equal(model.get_layer("hidden").kernel, kernel)


def test_the_constraint_holds_from_the_start():
    model, _ = quantize(source(), 1, 2, "linear", method="bwn")
    np.testing.assert_allclose(
        tf.reduce_mean(model.get_layer("hidden").kernel, -2), np.zeros((1, 1, 6)), atol=1e-7
    )


def test_what_starts_from_data_starts_from_the_images():
    """The step of LSQ: 2 mean(x) / sqrt(3) of what the source has there, of 2 bits."""
    float_model = source()
    model, _ = quantize(float_model, 8, 2, "linear", images=IMAGES, method="lsq")
    relu = float_model.get_layer("first_relu").output
    # On the statistics of the images, which the source's averages are not.
    mean, variance = tf.nn.moments(float_model.get_layer("first")(IMAGES), (0, 1, 2))
    norm = float_model.get_layer("first_bn")
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    values = np.asarray(tf.keras.Model(float_model.input, relu)(IMAGES))
    layer = model.get_layer("first_relu")
    assert float(layer.started) == 1
    assert float(layer.step) == pytest.approx(2 * values.mean() / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("name", ["lsq", "hawq"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_what_starts_from_data_starts_from_values_of_16_bits(name, policy):
    inputs = tf.keras.Input((2,))
    x = layers.ReLU(name="act", dtype=policy)(inputs)
    source = tf.keras.Model(inputs, layers.Dense(1, name="scores")(x))
    images = np.float32([[1, 2], [3, 2]])
    widths = {"act": {"activation_bits": 2}}
    model, _ = quantize(source, 8, 8, None, images=images, method=name, overrides=widths)
    act = model.get_layer("act")
    number, expected = {
        "lsq": lambda: (act.step, 2 * 2 / np.sqrt(3)),  # of the mean
        "hawq": lambda: (act.maximum, 3),
    }[name]()
    assert float(number) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["lqnet", "dsq"])
@pytest.mark.parametrize("size", [0.05, 20.0])
def test_activations_of_any_size_lose_little_from_the_start(name, size):
    inputs = tf.keras.Input((4, 4, 2))
    x = layers.ReLU(name="act")(layers.Rescaling(size, name="scale")(inputs))
    x = layers.Conv2D(3, 1, name="conv")(x)
    source = tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    images = np.random.default_rng(0).standard_normal((32, 4, 4, 2)).astype(np.float32)
    widths = {"act": {"activation_bits": 2}}
    model, _ = quantize(source, 1, 2, None, images=images, method=name, overrides=widths)
    values = np.maximum(size * images, 0)
    lost = np.square(model.get_layer("act")(values) - values).mean() / np.square(values).mean()
    assert lost < 0.06  # the best grid of 2 bits has 0.047


def test_a_frozen_relu_keeps_its_range():
    float_model = source()
    float_model.get_layer("first_relu").trainable = False
    model, _ = quantize(float_model, 2, 2, "linear", method="lsq")
    assert not model.get_layer("first_relu").trainable
    assert model.get_layer("depth_relu").trainable


def test_a_trained_result_is_exported(tmp_path):
    model, _ = quantize(source(), 2, 2, "linear", images=IMAGES, method="lsq")
    model.compile(
        tf.keras.optimizers.SGD(0.01),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(IMAGES, np.arange(16) % 3, 8, verbose=0)
    to_tflite(model, tmp_path / "model.tflite")
    result = parity(model, tmp_path / "model.tflite", np.uint8(255 * IMAGES))
    assert result.agreement["simulation_file"] == 100.0


def test_overrides_are_of_the_method_too():
    rules = {"hidden": {"weight_bits": 3}}
    model, _ = quantize(source(), 2, 2, "linear", overrides=rules, method="lsq")
    assert model.get_layer("hidden").kernel_quantizer.bits == 3
    assert isinstance(model.get_layer("hidden"), lq.layers.QuantConv2D)
    rules = {"hidden": {"weight_bits": 1}}
    message = (
        r"Layer 'hidden' cannot have weight_bits=1 with method='lsq': LSQ of weights defines 2"
    )
    with pytest.raises(ConversionError, match=message):
        quantize(source(), 2, 2, "linear", overrides=rules, method="lsq")


def test_bad_names_and_widths():
    with pytest.raises(ValueError, match=r"Received: method='lsp'. Did you mean lsq"):
        quantize(source(), method="lsp")
    with pytest.raises(ValueError, match=r"weight_bits with method='bwn': BWN defines 1 bit"):
        quantize(source(), 4, 4, method="bwn")


def test_by_default_it_is_sat():
    model, report = quantize(source(), 2, 2, "linear")
    assert isinstance(model.get_layer("hidden").kernel_quantizer, SATWeights)
    assert isinstance(model.get_layer("hidden_relu"), CGPACT)
    assert not any("callbacks" in note for note in report.notes)


def test_a_factor_is_never_negative():
    """The nearest factors are 3 / 4, -2 / 4 and none; a norm has no negative deviation."""
    kernel = np.array([[3.0, -1.0, 0.0], [0.0, -1.0, 0.0]])
    quantized = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 0.0]])
    factors = projection(kernel, quantized, (0,))
    np.testing.assert_allclose(factors, [3.0, np.sqrt(2 / 5), 0.0])
