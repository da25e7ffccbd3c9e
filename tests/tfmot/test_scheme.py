"""What the scheme assigns to which layer."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import CGPACT, SATWeights
from dlqat_tf.export import ExportError, lower, parity, to_tflite
from dlqat_tf.tfmot import QuantizeConfig, SATQuantizeConfig, SATScheme, Scheme
from tests.tfmot.networks import (
    STANDARD,
    WIDTHS,
    applied,
    by_name,
    images,
    inner,
    network,
    on_images,
    on_sequences,
    widths,
)

layers = tf.keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_layer


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        ({"weight_bits": 3}, {"second": 3, "depthwise": 3, "third": 3}),
        (
            {"activation_bits": 5},
            {"first_relu_output": 5, "sum_relu_output": 5, "depthwise_output": 5},
        ),
        ({"residual_bits": 6}, {"second_bn_output": -6}),
        ({"residual_bits": None}, {"second_bn_output": None}),
    ],
)
def test_scheme_assigns_widths(options, changed):
    expected = {name: bits for name, bits in {**WIDTHS, **changed}.items() if bits is not None}
    assert widths(applied(network(), **options)) == expected


def test_scheme_of_the_float_stage():
    model = applied(network(), 32, 32, residual_bits=32)
    assert not any("alpha" in variable.name for variable in model.variables)
    with pytest.raises(ExportError, match=r"'quant_first'.*bits=32"):
        lower(model)


def test_scheme_sets_the_initial_range_and_keeps_weights():
    float_model = network()
    model = applied(float_model, alpha_init=3.0)
    alphas = [float(v) for v in model.trainable_variables if "alpha" in v.name]
    assert alphas == [3.0] * 5
    kernel = by_name(model)["second"].trainable_variables[0]
    np.testing.assert_array_equal(kernel, float_model.get_layer("second").kernel)


def test_only_the_last_dense_layer_is_scale_adjusted():
    model = applied(network())
    adjusted = {
        inner(layer).name: layer.quantize_config.get_config()["scale_adjust"]
        for layer in model.layers
        if hasattr(layer, "quantize_config") and inner(layer).weights
    }
    assert [name for name, adjust in adjusted.items() if adjust] == ["last"]


def test_without_batch_norms_the_scale_is_kept():
    """Features of 8 bits are nearly those of the float model; without the scale 100 times them."""
    float_model = tf.keras.Sequential(
        [
            layers.Conv2D(8, 3, activation="relu", input_shape=(8, 8, 3)),
            layers.DepthwiseConv2D(3, activation="relu"),
            layers.Conv2D(8, 1, activation="relu"),
            layers.Flatten(),
            layers.Dense(8, activation="relu"),
            layers.Dense(5),
        ]
    )
    model = applied(float_model, 8, 8, alpha_init=2.0)
    x = images().astype(np.float32) / np.float32(255)
    actual, expected = (
        tf.keras.Model(m.input, m.layers[-2].output)(x) for m in (model, float_model)
    )
    assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)
    kept = [
        layer.quantize_config.get_config()["keep_scale"]
        for layer in model.layers
        if hasattr(layer, "quantize_config") and inner(layer).weights
    ]
    assert kept == [True] * 4 + [False]


def test_sequential_models_and_linear_bottlenecks():
    model = tf.keras.Sequential(
        [
            layers.Conv2D(4, 3, name="first", input_shape=(8, 8, 3)),
            layers.BatchNormalization(name="bn"),  # a convolution reads it: signed
            layers.Conv2D(4, 1, activation="relu", name="second"),
            layers.AveragePooling2D(name="average"),  # so does one here
            layers.Conv2D(4, 1, activation="relu", name="third"),
            layers.Flatten(name="flat"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(3, name="last"),
        ]
    )
    assert widths(applied(model, residual_bits=7)) == {
        "first": 8,
        "bn_output": -7,
        "second": 1,
        "second_output": 2,
        "average_output": -7,
        "third": 1,
        "third_output": 8,
        "last": 8,
    }


def test_a_network_that_ends_in_a_pool():
    model = tf.keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu", name="first", input_shape=(8, 8, 3)),
            layers.Conv2D(5, 1, activation="relu", name="last"),
            layers.GlobalAveragePooling2D(name="scores"),
        ]
    )
    assert widths(applied(model)) == {"first": 8, "first_output": 8, "last": 8, "last_output": 8}


def test_what_batch_norms_of_their_own_and_the_last_layer_read():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Add(name="sum")([x, layers.Conv2D(4, 3, padding="same", name="second")(y)])
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.Dense(3, name="last")(layers.Flatten(name="flat")(x))
    model = applied(tf.keras.Model(inputs, x), residual_bits=5)
    assert {name: bits for name, bits in widths(model).items() if name.endswith("output")} == {
        "first_output": -5,
        "relu_output": 2,
        "second_output": -5,
        "sum_output": -5,
        "bn2_output": -8,
    }


def test_only_what_is_annotated_must_have_a_form():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Activation(tf.nn.relu6, name="odd")(layers.Conv2D(4, 3, name="first")(inputs))
    x = annotate(layers.Dense(3, name="last"))(layers.Flatten()(x))
    model = tfmot.quantization.keras.quantize_apply(tf.keras.Model(inputs, x), Scheme(1, 1))
    assert widths(model) == {"first": 32, "last": 8}


def test_heads_and_own_quantizers_pass_unchanged():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = CGPACT(3, 2.0, name="own")(x)
    x = lq.layers.QuantConv2D(4, 3, kernel_quantizer=SATWeights(2), name="larq")(x)
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.Concatenate(name="both")([x, x])
    x = layers.GlobalAveragePooling2D(name="features")(x)
    head = dlqat_tf.GaussianMixtureHead(5, name="head")
    float_model = tf.keras.Model(inputs, head(x))
    model = applied(float_model)
    names = [layer.name for layer in model.layers[1:]]
    assert names == ["quant_first", "own", "larq", "quant_relu", "both", "features", "head"]
    np.testing.assert_array_equal(model.get_layer("head").means, head.means)
    # The head is the last layer, so the ReLU before it has 8 bits; it lost its bound at 6.
    expected = {"first": 8, "own": 3, "larq": 2, "relu_output": 8, "head": 8}
    assert widths(model) == expected


@pytest.mark.parametrize("kind", STANDARD)
def test_layers_that_are_others_by_standard_layers(tmp_path, kind):
    network, middle = STANDARD[kind]
    source = network(middle)
    model = applied(source, 4, 4)
    x = np.random.default_rng(0).random((32, *source.input_shape[1:]), np.float32)
    model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(32) % 3, verbose=0)
    model.save(tmp_path / "model.keras")
    model = tf.keras.models.load_model(tmp_path / "model.keras")
    report = to_tflite(model, tmp_path / "model.tflite")
    assert all(bits < 32 for bits in widths(model).values())
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    found = parity(snapped, report.path, x)
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100


def test_standard_layers_have_the_weights_and_widths_of_what_they_stand_for():
    source = on_images(layers.SeparableConv2D(4, 3, activation="relu", name="parts"))
    model = applied(source, 4, 3)
    depthwise, pointwise, bias = source.get_layer("parts").get_weights()
    for name, expected in (("parts_depthwise", depthwise), ("parts", pointwise)):
        ((kernel, _, _),) = model.get_layer(f"quant_{name}")._weight_vars
        np.testing.assert_array_equal(kernel, expected)
    np.testing.assert_array_equal(model.get_layer("quant_parts").layer.bias, bias)
    found = widths(model)
    assert (found["parts_depthwise"], found["parts"], found["parts_output"]) == (4, 4, 3)


def test_what_is_not_annotated_is_not_taken_apart():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(4, 3, name="whole")(inputs)
    x = annotate(layers.Dense(3, name="last"))(layers.Flatten()(x))
    model = tfmot.quantization.keras.quantize_apply(tf.keras.Model(inputs, x), Scheme(1, 1))
    assert type(model.get_layer("whole")) is layers.SeparableConv2D


def test_what_is_not_annotated_is_rounded_only_where_annotated_layers_read_it():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.LayerNormalization(name="before")(layers.Conv2D(4, 3)(inputs))
    x = layers.LayerNormalization(name="feeder")(layers.Conv2D(4, 3)(x))
    x = annotate(layers.Conv2D(4, 3, name="hidden"))(x)
    x = annotate(layers.Dense(3, name="last"))(layers.Flatten()(layers.ReLU()(x)))
    model = tfmot.quantization.keras.quantize_apply(tf.keras.Model(inputs, x), Scheme(1, 1))
    names = [each.name for each in model.layers]
    assert "feeder_residual" in names
    assert "before_residual" not in names


@pytest.mark.parametrize(
    ("network", "middle"),
    [
        (on_images, layers.LayerNormalization(name="odd")),
        (on_sequences, layers.LSTM(4, return_sequences=True, name="odd")),
    ],
    ids=["norm", "recurrent"],
)
def test_what_has_no_form_stays_float_and_is_named(tmp_path, network, middle):
    with pytest.warns(UserWarning, match=r"1 annotated layers stay float.*'odd': .*no quantized"):
        model = applied(network(middle), 4, 4)
    report = to_tflite(model, tmp_path / "model.tflite")
    assert [island.layers for island in report.census.islands] == [["odd"]]
    assert all(bits < 32 for bits in widths(model).values())  # what reads it has codes
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    x = np.random.default_rng(0).random((16, *model.input_shape[1:]), np.float32)
    assert parity(snapped, report.path, x).agreement["simulation_file"] == 100


def test_normalization_keeps_what_it_has_adapted_to():
    norm = layers.Normalization(name="norm")
    norm.adapt(np.float32([[1, 10], [3, 30]]))  # means 2 and 20, deviations 1 and 10
    x = tf.keras.Input((2,), name="features")
    model = applied(tf.keras.Model(x, layers.Dense(3, name="last")(norm(x))))
    assert model.get_layer("norm")(np.float32([[3, 10]])).numpy()[0] == pytest.approx([1, -1])
    assert type(model.get_layer("features_codes")) is dlqat_tf.InputQuantizer


def test_sat_alone_has_its_names_still():
    assert (SATScheme, SATQuantizeConfig) == (Scheme, QuantizeConfig)
