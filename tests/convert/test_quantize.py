"""Conversion of float models.

At 32 bits nothing is rounded, so a converted model must compute what its source computes: that says
that the graph, the names and the factors are right. What rounding costs is measured on digits.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import quantize
from dlqat_tf.convert.builder import Builder
from dlqat_tf.export import lower, parity, to_lce, to_tflite
from dlqat_tf.export.integer.plan import plan
from tests.convert.networks import (
    FLOAT,
    IMAGES,
    alive,
    classifier,
    levels,
    mobile,
    predictions,
    residual,
    settle,
    siamese,
    transfer,
    two_inputs,
    vgg,
)

layers = tf.keras.layers
Model = tf.keras.Model


@pytest.fixture(scope="module", params=[mobile, residual, vgg], ids=lambda make: make.__name__)
def trained(request, digits):
    tf.keras.utils.set_random_seed(0)
    model = request.param()
    logits = model.layers[-1].name == "predictions" and request.param is vgg
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(tf.keras.optimizers.Adam(5e-3), loss)
    model.fit(*digits[:2], epochs=6, batch_size=64, verbose=0)
    return model


@pytest.mark.parametrize("head", ["linear", "gml"])
def test_8_bits_keep_the_predictions(trained, digits, head):
    images, _, test, _ = digits
    model, _ = quantize(trained, 8, 8, head, images=images[:64])
    assert np.mean(predictions(model, test) == predictions(trained, test)) >= 0.98


def test_statistics_keep_low_bits_alive(trained, digits, monkeypatch, request):
    """Chance is 0.1. Batch norms that keep the statistics of the float network have 0.2 to 0.3."""
    images, _, test, test_labels = digits

    def accuracy():
        model, _ = quantize(trained, 2, 3, "linear", images=images[:256])
        return np.mean(predictions(model, test) == test_labels)

    corrected = accuracy()
    # What the float MobileNet has learned differs with the number of threads: 0.50 to 0.75.
    assert corrected >= (0.4 if "mobile" in request.node.name else 0.6)
    if not any(isinstance(layer, layers.BatchNormalization) for layer in trained.layers):
        return
    monkeypatch.setattr(Builder, "_correct", lambda *_: None)
    assert corrected >= accuracy() + 0.2


def test_low_bits_train_save_export_and_match(trained, digits, tmp_path):
    images, labels, test, test_labels = digits
    model, report = quantize(trained, 1, 2, "gml", images=images[:256], labels=labels[:256])
    model.compile(tf.keras.optimizers.Adam(5e-3), dlqat_tf.GMLoss(alpha=0.1, fit_power=0))
    loss = model.fit(images, labels, epochs=3, batch_size=64, verbose=0).history["loss"]
    assert loss[2] < 0.8 * loss[0]

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(test, verbose=0), loaded.predict(test, verbose=0))

    assert json.loads(report.to_json())["conversions"][0]["weight_bits"] == 8
    for export in (to_tflite, to_lce):
        exported = export(loaded, tmp_path / f"{export.__name__}.tflite")
        snapped = tf.keras.models.load_model(exported.snapped)
        assert parity(snapped, exported.path, test[:128], test_labels[:128]).failures() == []
    assert exported.census.operators["LceBconv2d"] >= 2


@pytest.mark.parametrize(("make", "calls"), [(siamese, 2), (transfer, 1)])
def test_nested_models_from_float_to_files(make, calls, tmp_path):
    source = make()
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (128, 8, 8, 1)).astype(np.uint8) for _ in source.inputs]
    images = [each / np.float32(255) for each in pixels]
    # Which quarter of the (last) image is brightest.
    labels = images[-1].reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4).argmax(1)
    model, _ = quantize(source, 1, 2, "gml", images=images, labels=labels)
    model.compile(tf.keras.optimizers.Adam(5e-3), dlqat_tf.GMLoss(alpha=0.1, fit_power=0))
    loss = model.fit(images, labels, epochs=4, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    for export in (to_tflite, to_lce):
        exported = export(loaded, tmp_path / f"{export.__name__}.tflite")
        result = parity(tf.keras.models.load_model(exported.snapped), exported.path, pixels)
        assert set(result.agreement.values()) == {100.0}
        assert result.first_diverging is None
        # What is left are the roundings of the last float layer, and in Keras of single codes.
        assert result.logit_difference["simulation_file"] < 1e-4
        assert result.logit_difference["keras_file"] < 1e-2
        shifts = [each.largest for each in exported.shifts if each.variable == "stem_bn"]
        assert len(shifts) == calls
        assert len(set(shifts)) == 1


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(weight_bits=0), "weight_bits: Expected .* bits=0"),
        (dict(activation_bits=9), "bits=9"),
        (dict(residual_bits=1), "bits=1"),
        (dict(head="softmax"), "one of linear, cosine, gml, or None"),
        (dict(images=np.ones((2, 5))), r"shapes \[\(None, 6\)\]"),
        (dict(images=np.ones((0, 6))), "images of shapes"),
        (dict(images=[IMAGES, IMAGES]), "images of shapes"),
        (dict(images=(image for image in IMAGES)), r"Received: \['generator'\]"),
        (dict(images=np.full((2, 6), np.nan)), "NaN or infinity for the input 'images'"),
        (dict(images=np.ones((2, 6)).tolist()), r"\['12 single values or arrays, of float'\]"),
        (dict(images={"pixels": IMAGES}), "for images. Received: images for pixels"),
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


def test_images_are_taken_as_keras_takes_them():
    """By name whatever the order, and cast to the type of the input, without scaling."""
    inputs = [tf.keras.Input((2,), name=name) for name in ("b", "a")]
    branches = [
        layers.Dense(2, "relu", kernel_initializer="identity", name=f"of_{x.name}")(x)
        for x in inputs
    ]
    source = Model(inputs, layers.Dense(2, name="last")(layers.Concatenate()(branches)))
    small, large = np.uint8([[1, 2], [2, 1]]), np.uint8([[100, 200], [200, 100]])
    images = {"a": small, "b": large}
    ranges = quantize(source, 8, 4, head=None, images=images)[1].ranges
    expected = {"b_codes": 200.0, "a_codes": 2.0, "of_a_act": 2.0, "of_b_act": 200.0}
    assert ranges == pytest.approx(expected, rel=0.02)
    with pytest.raises(dlqat_tf.ConversionError, match=r"for b, a\. Received: images for a"):
        quantize(source, images={"a": small})


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


@pytest.mark.parametrize("norm", [False, True])
def test_calls_on_grids_of_their_own_have_norms_of_their_own(norm, tmp_path):
    source = levels(norm)
    images = np.random.default_rng(0).random((16, 8, 8, 1)).astype(np.float32)
    settle(source, images)
    if norm:
        source.get_layer("head_norm").beta.assign([0.1, 0.2, 0.3, 0.4])
    model, _ = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)

    model, report = quantize(source, 2, 4, None, images=images)
    names = ["head_norm", "head_norm_2"] if norm else ["head_bn", "head_bn_2"]
    first, second = map(model.get_layer, names)
    assert len(model.get_layer("head").inbound_nodes) == 2
    assert [len(each.inbound_nodes) for each in (first, second)] == [1, 1]
    # Each is corrected on what its own call reads.
    assert np.all(first.moving_mean.numpy() != second.moving_mean.numpy())
    notes = {row.layer: row.note for row in report.conversions}
    both = ", ".join(names)
    moved = f"scale moved into {both}" if norm else f"{both} inserted for its scale and bias"
    assert notes["head"] == moved
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    proof = parity(snapped, report.path, images, trained=model)
    assert proof.agreement["keras_file"] == proof.agreement["simulation_file"] == 100


def test_towers_on_equal_grids_have_one_norm():
    inputs = [tf.keras.Input((8, 8, 1), name=name) for name in ("left", "right")]
    scaled = [layers.Rescaling(1 / 127.5, offset=-1)(each) for each in inputs]
    stem = layers.Conv2D(4, 3, name="stem")
    after, relu = layers.BatchNormalization(name="stem_norm"), layers.ReLU()
    each = [layers.GlobalAveragePooling2D()(relu(after(stem(x)))) for x in scaled]
    source = Model(inputs, layers.Dense(3)(layers.Concatenate()(each)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 8, 8, 1)).astype(np.float32)
    model, _ = quantize(source, 2, 8, None, images=list(pixels))
    # Both are rounded to the same codes, by a quantizer each, and end on one grid.
    assert len(model.get_layer("stem_norm").inbound_nodes) == 2


def test_shared_layers_and_two_inputs(tmp_path):
    source = two_inputs()
    images = [np.random.default_rng(i).random((16, 8, 8, 1)).astype(np.float32) for i in (0, 1)]
    settle(source, images)
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
    quantizers = [layer for layer in model.layers if layer.name.endswith("_residual")]
    pooled = [each for each in quantizers if "pooling2d" in each.name]
    assert [q.signed for q in pooled] == [False]
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images), loaded(images))


def test_a_relu_that_is_hidden_and_an_output():
    relu = layers.ReLU(name="relu")
    inputs = tf.keras.Input((8, 8, 1))
    x = relu(layers.Conv2D(2, 3, name="first")(inputs))
    x = layers.Conv2D(2, 3, activation="relu", name="second")(x)
    source = Model(inputs, relu(layers.Dense(3, name="scores")(layers.Flatten()(x))))
    model, _ = quantize(source, 2, 2, head=None)
    assert model.get_layer("relu").bits == 2
    assert (model.layers[-1].name, type(model.layers[-1])) == ("relu_2", layers.ReLU)
    images = [np.random.default_rng(0).random((16, 8, 8, 1)).astype(np.float32)]
    settle(source, images)
    model, _ = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)


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
