"""Conversion of float models.

At 32 bits nothing is rounded, so a converted model must compute what its source computes: that says
that the graph, the names and the factors are right. What rounding costs is measured on digits.
"""

import json

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import dlqat_tf
from dlqat_tf import CGPACT, ConversionError, SATWeights, SymmetricWeights, quantize
from dlqat_tf.export import lower, parity, to_lce, to_tflite
from dlqat_tf.export.plan import plan

layers = tf.keras.layers
Model = tf.keras.Model
FLOAT = dict(weight_bits=32, activation_bits=32, residual_bits=32)


def conv_norm(x, filters, size, strides=1, name=None):
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(momentum=0.9, name=name and f"{name}_bn")(x)


def mobile():
    """Depthwise convolutions, ReLU6 and linear bottlenecks, one of them added."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.ReLU(6.0, name="stem_relu")(conv_norm(inputs, 8, 3, name="stem"))
    for i, (filters, strides) in enumerate([(8, 1), (16, 2)]):
        y = layers.ReLU(6.0, name=f"expand{i}_relu")(conv_norm(x, 24, 1, name=f"expand{i}"))
        y = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"depth{i}")(y)
        y = layers.BatchNormalization(momentum=0.9, name=f"depth{i}_bn")(y)
        y = layers.ReLU(6.0, name=f"depth{i}_relu")(y)
        y = conv_norm(y, filters, 1, name=f"project{i}")
        x = layers.Add(name=f"add{i}")([x, y]) if strides == 1 else y
    x = layers.ReLU(6.0, name="last_relu")(conv_norm(x, 32, 1, name="last"))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(name="features")(x))
    return Model(inputs, layers.Dense(10, activation="softmax", name="predictions")(x))


def residual():
    """Post-activation blocks, biases before batch norms, a separate softmax."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.ReLU(name="stem_relu")(conv_norm(inputs, 8, 3, name="stem"))
    for i, strides in enumerate([1, 2]):
        y = layers.Activation("relu", name=f"inner{i}")(conv_norm(x, 8 * strides, 3, strides))
        y = layers.Conv2D(8 * strides, 3, padding="same", name=f"outer{i}")(y)
        y = layers.BatchNormalization(momentum=0.9, scale=False, name=f"outer{i}_bn")(y)
        x = x if strides == 1 else conv_norm(x, 16, 1, 2, name="shortcut")
        x = layers.ReLU(name=f"sum_relu{i}")(layers.Add(name=f"add{i}")([x, y]))
    x = layers.Dense(10, name="predictions")(layers.GlobalAveragePooling2D(name="features")(x))
    return Model(inputs, layers.Softmax(name="softmax")(x))


def vgg():
    """Sequential, no batch norm, a hidden dense layer."""
    return tf.keras.Sequential(
        [
            layers.InputLayer((8, 8, 1), name="images"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(16, 3, padding="same", activation=tf.nn.relu6, name="conv2"),
            layers.MaxPool2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dropout(0.1),
            layers.Dense(10, name="predictions"),
        ]
    )


@pytest.fixture(scope="session")
def digits():
    """(images, labels) to train on and (images, labels) to test on."""
    data = load_digits()
    images = np.float32(np.rint(data.images[..., None] * (255 / 16))) / np.float32(255)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], data.target[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


@pytest.fixture(scope="module", params=[mobile, residual, vgg], ids=lambda make: make.__name__)
def trained(request, digits):
    tf.keras.utils.set_random_seed(0)
    model = request.param()
    logits = model.layers[-1].name == "predictions" and request.param is vgg
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(tf.keras.optimizers.Adam(5e-3), loss)
    model.fit(*digits[:2], epochs=6, batch_size=64, verbose=0)
    return model


def predictions(model, images):
    return model.predict(images, verbose=0).argmax(1)


def quantizer_of(layer):
    depthwise = getattr(layer, "depthwise_quantizer", None)
    return depthwise or getattr(layer, "kernel_quantizer", None)


def alive(model, shape, seed=0):
    """Give an untrained model's batch norms the statistics of random images, and return those."""
    images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32) / 255
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    return images


# What rounding costs.


@pytest.mark.parametrize("head", ["linear", "gml"])
def test_8_bits_keep_the_predictions(trained, digits, head):
    images, _, test, _ = digits
    model, _ = quantize(trained, 8, 8, head, images=images[:64])
    assert np.mean(predictions(model, test) == predictions(trained, test)) >= 0.98


def test_statistics_keep_low_bits_alive(trained, digits):
    """Chance is 0.1; without the correction of batch norms this is 0.08 to 0.7."""
    images, _, test, test_labels = digits
    model, _ = quantize(trained, 2, 3, "linear", images=images[:256])
    assert np.mean(predictions(model, test) == test_labels) >= 0.6


def test_low_bits_train_save_export_and_match(trained, digits, tmp_path):
    images, labels, test, test_labels = digits
    model, report = quantize(trained, 1, 2, "gml", images=images[:256], labels=labels[:256])
    model.compile(tf.keras.optimizers.Adam(5e-3), dlqat_tf.GMLoss(alpha=0.1))
    loss = model.fit(images, labels, epochs=3, batch_size=64, verbose=0).history["loss"]
    assert loss[2] < 0.8 * loss[0]

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(test, verbose=0), loaded.predict(test, verbose=0))

    exported = to_tflite(loaded, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    result = parity(snapped, exported.path, test[:128], test_labels[:128])
    assert result.failures() == []
    assert json.loads(report.to_json())["conversions"][0]["weight_bits"] == 8

    binary = to_lce(loaded, tmp_path / "lce.tflite")
    assert binary.census.operators["LceBconv2d"] >= 2


# What the model is.


@pytest.mark.parametrize("make", [mobile, residual, vgg])
def test_without_rounding_it_is_the_source(make):
    source = make()
    images = alive(source, (16, 8, 8, 1))
    expected = source(images)
    for given in (None, images):  # the statistics of images do not change what norms compute
        model, _ = quantize(source, head=None, **FLOAT, images=given)
        np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_source_is_left_alone(digits):
    source = residual()
    weights, config = source.get_weights(), source.get_config()
    nodes = [len(layer.inbound_nodes) for layer in source.layers]
    quantize(source, images=digits[0][:8], labels=digits[1][:8])
    for before, after in zip(weights, source.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert source.get_config() == config
    assert [len(layer.inbound_nodes) for layer in source.layers] == nodes


def test_widths_and_names():
    model, report = quantize(mobile(), 2, 3, "linear", residual_bits=5)
    weights = {
        layer.name: quantizer_of(layer).bits for layer in model.layers if quantizer_of(layer)
    }
    assert weights == {
        "stem": 8,
        "expand0": 2,
        "depth0": 2,
        "project0": 2,
        "expand1": 2,
        "depth1": 2,
        "project1": 2,
        "last": 2,
        "predictions": 8,
    }
    places = {q.name: (q.bits, q.signed) for q in model.layers if isinstance(q, CGPACT)}
    assert places == {
        "stem_relu": (3, False),
        "expand0_relu": (3, False),
        "depth0_relu": (3, False),
        "expand1_relu": (3, False),
        "depth1_relu": (3, False),
        "project0_bn_residual": (5, True),
        "add0_residual": (5, True),
        "project1_bn_residual": (5, True),
        "last_relu": (8, False),
    }
    rows = {row.layer: row for row in report.conversions}
    assert rows["depth0"].became == "QuantDepthwiseConv2D"
    assert rows["depth0"].note == "scale moved into depth0_bn"
    assert (rows["add0"].became, rows["add0"].activation_bits) == ("Add", 5)
    assert rows["predictions"].became == "LinearHead"
    assert "softmax is dropped" in rows["predictions"].note
    assert "images" not in rows
    report.print()


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
    assert report.notes == []
    assert "first_bn inserted" in report.conversions[0].note


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
    assert [float(q.alpha) for q in model.layers if isinstance(q, CGPACT)] == [6.0, 8.0]
    assert "initial guesses" in report.notes[0]
    model, report = quantize(source, images=images)
    assert 0.8 < report.ranges["a_act"] <= 1.0
    assert float(model.get_layer("a_act").alpha) == np.float32(report.ranges["a_act"])
    images *= 100
    ranges = quantize(source, images=images)[1].ranges
    assert 5 < ranges["a_act"] <= 6  # where ReLU6 ends


# Heads.


def classifier(features=6, classes=3, **options):
    inputs = tf.keras.Input((features,), name="images")
    initializer = tf.keras.initializers.RandomNormal(seed=1)
    dense = layers.Dense(
        classes,
        name="scores",
        bias_initializer=initializer,
        kernel_initializer=initializer,
        kernel_regularizer=tf.keras.regularizers.L2(0.1),
        **options,
    )
    return Model(inputs, dense(inputs))


IMAGES = np.random.default_rng(0).random((12, 6)).astype(np.float32)


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
    labels = np.arange(12) % 2  # no image of class 2
    source = classifier()
    plain = quantize(source, **FLOAT)[0].get_layer("scores").means
    means = quantize(source, **FLOAT, images=IMAGES, labels=labels)[0].get_layer("scores").means
    np.testing.assert_allclose(means[0], IMAGES[::2].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(means[1], IMAGES[1::2].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(means[2], plain[2], rtol=1e-5)


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


def test_what_the_model_returns_is_not_rounded():
    inputs = tf.keras.Input((8, 8, 1))
    x = conv_norm(layers.ReLU(name="hidden")(conv_norm(inputs, 4, 3)), 4, 3, name="end")
    source = Model(inputs, layers.ReLU(name="features")(x))
    model, report = quantize(source, head=None)
    assert type(model.get_layer("features")) is layers.ReLU
    assert report.conversions[-1].note == "stays float: it is the output"
    assert model.get_layer("end").kernel_quantizer.bits == 8
    assert model.get_layer("hidden").bits == 8


def test_a_head_needs_a_classifier():
    inputs = tf.keras.Input((4, 4, 3))
    segmentation = Model(inputs, layers.Conv2D(2, 1, name="pixels")(inputs))
    with pytest.raises(ConversionError, match=r"ends in 'pixels' \(Conv2D\).*head=None"):
        quantize(segmentation)
    assert quantize(segmentation, head=None)[0].output_shape == (None, 4, 4, 2)
    two = Model(inputs, [layers.Flatten()(inputs), inputs])
    with pytest.raises(ConversionError, match="one output"):
        quantize(two)
    with pytest.raises(ConversionError, match="ends in 'scores'"):
        quantize(classifier(activation="sigmoid"))


# Overrides.


def test_overrides():
    source = residual()
    model, report = quantize(
        source,
        overrides={
            "*": dict(weight_bits=3),
            "outer*": dict(weight_bits=4),
            "outer1": "float",
            "inner*": dict(activation_bits=5),
            "outer?_bn": dict(residual_bits=6),
            "predictions": dict(weight_bits=4),
            "shortcut": dict(weight_bits=2),
        },
    )
    rows = {row.layer: row for row in report.conversions}
    assert rows["stem"].weight_bits == 3  # an override beats the width of the ends
    assert rows["outer0"].weight_bits == 4
    assert (rows["outer1"].became, rows["outer1"].weight_bits) == ("Conv2D", None)
    assert rows["outer1"].note == "stays float: override"
    assert rows["inner0"].activation_bits == 5
    assert rows["outer0_bn"].activation_bits == 6
    assert model.get_layer("predictions").weight_bits == 4
    assert model.get_layer("shortcut").kernel_quantizer.bits == 2
    np.testing.assert_array_equal(
        model.get_layer("outer1").get_weights()[0], source.get_layer("outer1").get_weights()[0]
    )


def test_float_activations_and_fused_ones():
    overrides = {"conv1": dict(activation_bits=4), "conv2": "float"}
    model, _ = quantize(vgg(), overrides=overrides)
    assert model.get_layer("conv1_act").bits == 4
    assert model.get_layer("conv2").activation is tf.nn.relu6
    assert model.get_layer("conv2_residual").signed  # what is kept says nothing about its sign
    model, _ = quantize(mobile(), overrides={"expand0_relu": "float"})
    assert model.get_layer("expand0_relu").max_value == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conv3": "float"}, "'conv3' matches no layer. Close names: 'conv"),
        ({"pool": dict(weight_bits=2)}, "'pool' sets weight_bits.*pool"),
        ({"flat": dict(activation_bits=2)}, "'flat' sets activation_bits"),
        ({"conv1": "int8"}, "Received: 'int8'"),
        ({"conv1": dict(bits=2)}, "Received: {'bits': 2}"),
        ({"conv1": dict(weight_bits=9)}, "bits=9"),
        ({"conv1": dict(residual_bits=1)}, "bits=1"),
    ],
)
def test_overrides_without_effect_are_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        quantize(vgg(), overrides=overrides)


def test_residual_bits_none_rounds_no_branch():
    model, _ = quantize(residual(), residual_bits=None)
    assert not any(q.signed for q in model.layers if isinstance(q, CGPACT))


# What cannot be converted.


def test_all_problems_are_named_with_the_override_that_skips_them():
    inputs = tf.keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, activation="swish", name="swished")(inputs)
    x = layers.Conv2DTranspose(4, 2, name="transposed")(x)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.ReLU(negative_slope=0.1, name="sloped")(layers.Lambda(lambda x: 2 * x, name="f")(x))
    x = layers.LayerNormalization(name="layer_norm")(x * 2.0)
    x = layers.BatchNormalization(axis=1, name="rows")(x)
    source = Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    with pytest.raises(ConversionError) as caught:
        quantize(source)
    message = str(caught.value)
    for part in (
        "8 of 11 layers",
        "'swished' (Conv2D): its activation is 'swish'",
        "'transposed' (Conv2DTranspose): Conv2DTranspose layers have no quantized form",
        "'leaky' (LeakyReLU)",
        "'sloped' (ReLU): it has a slope",
        "'f' (Lambda)",
        "(TFOpLambda)",
        "'layer_norm' (LayerNormalization)",
        "'rows' (BatchNormalization): its axis is 1",
    ):
        assert part in message
    skipping = eval(message[message.index("overrides={") + len("overrides=") : -1])
    images = np.random.default_rng(0).random((4, 4, 4, 3)).astype(np.float32)
    model, _ = quantize(source, overrides=skipping, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)


def test_quantized_and_subclassed_models_are_refused():
    class Own(Model):
        def call(self, x):
            return x

    with pytest.raises(ConversionError, match=r"tf\.keras\.Model\(inputs, outputs\)"):
        quantize(Own())
    inputs = tf.keras.Input((4,))
    with pytest.raises(ConversionError, match=r"'own'.*subclassed"):
        quantize(Model(inputs, layers.Dense(2)(Own(name="own")(inputs))))
    done = lq.layers.QuantDense(2, kernel_quantizer=SATWeights(1), name="done")
    with pytest.raises(ConversionError, match=r"'done'.*quantized already"):
        quantize(Model(inputs, layers.Dense(2)(done(inputs))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weight_bits=0), "bits=0"),
        (dict(activation_bits=9), "bits=9"),
        (dict(residual_bits=1), "bits=1"),
        (dict(head="softmax"), "one of linear, cosine, gml, or None"),
        (dict(images=np.ones((2, 5))), r"shapes \[\(None, 6\)\]"),
        (dict(images=np.ones((0, 6))), "images of shapes"),
        (dict(images=[IMAGES, IMAGES]), "images of shapes"),
        (dict(images=IMAGES, batch_size=0), r"batch_size to be.*0"),
        (dict(labels=np.arange(2)), "images along with labels"),
        (dict(images=IMAGES, labels=np.arange(3)), r"shape \(12,\)"),
        (dict(images=IMAGES, labels=np.ones(12)), "integer class"),
        (dict(images=IMAGES, labels=np.arange(12)), "labels from 0 to 2"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize(classifier(), **arguments)


# Graphs.


def two_inputs():
    """One stem for two images, a ReLU object used everywhere, features side by side."""
    left, right = (tf.keras.Input((8, 8, 1), name=name) for name in ("left", "right"))
    stem, norm = layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization(name="norm")
    relu = layers.ReLU(name="relu")
    each = [relu(norm(stem(x))) for x in (left, right)]
    each[1] = relu(layers.Conv2D(4, 3, padding="same", name="own")(each[1]))
    each = [layers.GlobalAveragePooling2D()(x) for x in each]
    x = layers.Dense(8, activation="relu", name="mixed")(layers.Concatenate()(each))
    return Model([left, right], layers.Dense(3, name="scores")(x))


def test_shared_layers_and_two_inputs(tmp_path):
    source = two_inputs()
    images = [np.random.default_rng(i).random((16, 8, 8, 1)).astype(np.float32) for i in (0, 1)]
    model, _ = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)

    labels = np.arange(16) % 3
    model, _ = quantize(source, 2, 2, "linear", images=images, labels=labels)
    assert model.input_names == ["left", "right"]
    assert len(model.get_layer("stem").inbound_nodes) == 2
    assert model.get_layer("stem").kernel_quantizer.bits == 8
    # One quantizer after the shared norm, another after the other convolution.
    assert len(model.get_layer("relu").inbound_nodes) == 2
    assert len(model.get_layer("relu_2").inbound_nodes) == 1
    # Averages of codes are rounded before a hidden dense layer; they are not negative.
    pooled = [q for q in model.layers if q.name.endswith("pooling2d_residual")]
    assert [q.signed for q in pooled] == [False]
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images), loaded(images))


def test_nested_models_are_flattened_or_kept():
    def base(name, channels):
        inputs = tf.keras.Input((8, 8, channels))
        x = layers.ReLU(name="relu")(conv_norm(inputs, 4, 3, name="conv"))
        return Model(inputs, layers.Conv2D(4, 1, name="project")(x), name=name)

    inputs = tf.keras.Input((8, 8, 1), name="images")
    first, second = base("first", 1), base("second", 4)
    second.trainable = False
    x = layers.Flatten()(second(first(inputs), training=False))
    source = Model(inputs, layers.Dense(3, name="scores")(x))
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
    model, report = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)
    names = [layer.name for layer in model.layers]
    assert {"conv", "conv_bn", "relu", "second_conv", "second_relu"} <= set(names)
    assert not model.get_layer("second_conv").trainable
    assert "frozen" in {r.layer: r.note for r in report.conversions}["second_conv"]

    model, _ = quantize(source, overrides={"second": "float"}, head=None, images=images)
    assert isinstance(model.get_layer("second"), Model)
    for a, b in zip(model.get_layer("second").weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pre_activation_and_float_branches():
    """Batch norms of their own and a sum without a ReLU read and give codes."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    for i in range(2):
        y = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"norm{i}")(x))
        x = layers.Add(name=f"add{i}")([x, layers.Conv2D(4, 3, padding="same", name=f"c{i}")(y)])
    x = layers.Concatenate(name="both")([x, layers.AveragePooling2D(1, name="pool")(y)])
    x = layers.ReLU(name="end")(layers.Conv2D(4, 1, name="c2")(x))
    source = Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    model, _ = quantize(source, 2, 2, "linear")
    rounded = {q.name for q in model.layers if isinstance(q, CGPACT) and q.signed}
    assert rounded == {
        "stem_residual",
        "c0_residual",
        "c1_residual",
        "add0_residual",
        "add1_residual",
    }
    assert model.get_layer("pool_residual").signed is False
    plan(lower(model))  # every layer has an integer kernel


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


def test_mobilenet_v2(tmp_path):
    source = tf.keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    images = alive(source, (32, 32, 32, 3))
    model, report = quantize(source, 8, 8, "linear", images=images[:16])
    assert len(report.conversions) == len(source.layers) - 1
    exported = to_tflite(model, tmp_path / "model.tflite", snap=False)
    result = parity(model, exported.path, images)
    assert result.agreement["simulation_file"] == 100.0
    assert result.first_diverging is None


def test_resnet50():
    source = tf.keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    model, report = quantize(source, 1, 2, "cosine")
    widths = [row.weight_bits for row in report.conversions if row.weight_bits]
    assert widths == [8] + [1] * 52 + [8]
    network = plan(lower(model), plane_limit=9)
    kernels = [getattr(node, "kernel", None) for node in network]
    assert kernels.count("planes") == 52


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


def test_mixed_precision_and_inputs_by_name():
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        inputs = {name: tf.keras.Input((8, 8, 1), name=name) for name in ("b", "a")}
        x = layers.Concatenate()([inputs["b"], inputs["a"]])
        x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
        source = Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(x)))
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    generator = np.random.default_rng(0)
    images = {name: generator.random((8, 8, 8, 1)).astype(np.float32) for name in ("a", "b")}
    model, _ = quantize(source, 8, 8, head=None, images=images)
    assert model.get_layer("conv").compute_dtype == "bfloat16"
    assert model.get_layer("conv_bn").compute_dtype == "bfloat16"
    expected, actual = (np.float32(each(images)) for each in (source, model))
    np.testing.assert_allclose(actual, expected, atol=0.1)
