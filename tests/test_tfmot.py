"""The TF-MOT bridge: equal to the Larq face, registered, assigned by the scheme, exported."""

import subprocess
import sys

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import CGPACT, SATWeights, methods
from dlqat_tf.export import ExportError, lower, parity, to_lce, to_tflite
from dlqat_tf.export.integer.nodes import Activation, Weighted
from dlqat_tf.quantizers import unwrapped
from dlqat_tf.quantizers.calibration import calibrate, optimal_range
from dlqat_tf.tfmot import LarqQuantizer, QuantizeConfig, SATQuantizeConfig, SATScheme, Scheme

layers = tf.keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_layer


def applied(model, *arguments, **options):
    """Annotate a whole model and apply the scheme."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = Scheme(*arguments, **options)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme=scheme)


def network():
    """A residual block, depthwise and fused activations, and a dense layer at the end."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = shortcut = layers.ReLU(name="first_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.BatchNormalization(name="second_bn")(x)
    x = layers.Activation("relu", name="sum_relu")(layers.Add(name="sum")([x, shortcut]))
    x = layers.MaxPool2D(name="pool")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="third")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(inputs, layers.Dense(5, name="last")(x))


def larq_network():
    """What the scheme should make of `network` at W1A2, by Larq's interface."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = lq.layers.QuantConv2D(
        8, 3, padding="same", use_bias=False, kernel_quantizer=SATWeights(8), name="first"
    )(inputs)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = shortcut = CGPACT(2, 2.0)(x)
    x = lq.layers.QuantConv2D(8, 3, padding="same", kernel_quantizer=SATWeights(1), name="second")(
        x
    )
    x = layers.BatchNormalization(name="second_bn")(x)
    x = CGPACT(8, 2.0, signed=True)(x)
    x = CGPACT(2, 2.0)(layers.Add()([x, shortcut]))
    x = layers.MaxPool2D()(x)
    kept = dict(keep_scale=True)  # no batch norm follows
    depthwise = SATWeights(1, **kept)
    x = lq.layers.QuantDepthwiseConv2D(3, depthwise_quantizer=depthwise, name="depthwise")(x)
    x = CGPACT(2, 2.0)(x)
    x = lq.layers.QuantConv2D(8, 1, kernel_quantizer=SATWeights(1, **kept), name="third")(x)
    x = CGPACT(8, 2.0)(x)
    x = layers.GlobalAveragePooling2D()(x)
    last = lq.layers.QuantDense(5, kernel_quantizer=SATWeights(8, scale_adjust=True), name="last")
    return tf.keras.Model(inputs, last(x))


def inner(layer):
    return getattr(layer, "layer", layer)


def by_name(model):
    return {inner(layer).name: layer for layer in model.layers}


def images(count=32):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def widths(model):
    """Width and lowest code of what the integer network rounds, by layer."""
    found = {}
    for node in lower(model):
        if isinstance(node, Weighted):
            found[node.name.removeprefix("quant_")] = node.bits
        elif isinstance(node, Activation):
            name = node.name.removeprefix("quant_")
            found[name] = node.bits if node.grid.lowest == 0 else -node.bits
    return found


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


def test_summary_sees_what_wrappers_hold():
    report, twin = map(dlqat_tf.summary, (applied(network(), alpha_init=2.0), larq_network()))
    assert report.notes == twin.notes == []
    assert report.macs == twin.macs
    assert report.bit_operations == twin.bit_operations
    assert report.parameters == twin.parameters
    assert report.trainable_parameters == twin.trainable_parameters
    for mine, other in zip(report.storage, twin.storage, strict=True):
        assert mine.weight_bytes == other.weight_bytes
        assert mine.peak_activation_bytes == other.peak_activation_bytes
        if mine.file_bytes:  # names differ
            assert mine.file_bytes == pytest.approx(other.file_bytes, rel=0.05)
    rows = {row.layer: (row.kind, row.weight_bits, row.output_bits) for row in report.layers}
    assert rows["quant_depthwise"] == ("DepthwiseConv2D", (1,), 2)
    assert rows["quant_second_bn"] == ("BatchNormalization", (), 8)


@pytest.mark.parametrize("stage", [False, True])
def test_calibration_sets_the_ranges_in_wrappers(stage):
    """By the network before annotation, or by one in the bridge's float stage."""
    model, reference = applied(network()), network()
    if stage:
        reference = applied(reference, 32, 32, residual_bits=32)
    x = images().astype(np.float32) / np.float32(255)
    ranges = calibrate(model, reference, x)
    names = [name.removesuffix("_output") for name in WIDTHS if name.endswith("_output")]
    assert list(ranges) == [f"quant_{name}" for name in names]
    alphas = [float(v) for v in model.trainable_variables if "alpha" in v.name]
    assert alphas == [np.float32(each) for each in ranges.values()]
    for name, lowest, highest in (("second_bn", -128, 127), ("sum_relu", 0, 3), ("third", 0, 255)):
        values = tf.keras.Model(reference.input, by_name(reference)[name].output)(x)
        expected = optimal_range(values, lowest, highest)
        assert ranges[f"quant_{name}"] == pytest.approx(expected, rel=1e-6)


def test_summary_of_what_others_quantized():
    inputs = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    report = dlqat_tf.summary(tfmot.quantization.keras.quantize_model(model))
    assert "tfmot.Scheme" in report.storage[-1].reason
    assert "not counted" in report.notes[0]


WIDTHS = {
    "first": 8,
    "first_relu_output": 2,
    "second": 1,
    "second_bn_output": -8,
    "sum_relu_output": 2,
    "depthwise": 1,
    "depthwise_output": 2,
    "third": 1,
    "third_output": 8,
    "last": 8,
}


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


def on_images(middle):
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="second")(middle(x))
    return tf.keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))


def on_sequences(middle):
    inputs = tf.keras.Input((12, 6), name="values")
    x = layers.Conv1D(4, 3, name="first")(inputs)
    x = middle(layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x)))
    return tf.keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))


def gated(x):
    """Squeeze and excitation."""
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Dense(4, activation="sigmoid", name="gate")(gate)])


STANDARD = {
    "separable": (on_images, layers.SeparableConv2D(4, 3, activation="relu", name="parts")),
    "swish": (on_images, layers.Conv2D(4, 1, activation="swish", name="parts")),
    "gated": (on_images, gated),
    "average": (on_images, lambda x: layers.Average()([x, x])),
    "bilinear": (on_images, layers.UpSampling2D(interpolation="bilinear")),
    "pool of sequences": (on_sequences, layers.MaxPooling1D()),
    "separable on sequences": (on_sequences, layers.SeparableConv1D(4, 3, activation="relu")),
}


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


@pytest.mark.parametrize("kind", STANDARD)
def test_ranges_of_parts_come_from_the_model_at_32_bits(kind):
    network, middle = STANDARD[kind]
    source = network(middle)
    model = applied(source, 4, 4)
    x = np.random.default_rng(0).random((8, *source.input_shape[1:]), np.float32)
    ranges = calibrate(model, applied(source, 32, 32), x)
    trained = [v for v in model.trainable_variables if "alpha" in v.name]
    assert len(ranges) == len(trained)
    assert all(float(each) != 8.0 for each in trained)


def test_ranges_of_parts_want_a_reference_that_has_them():
    network, middle = STANDARD["separable"]
    source = network(middle)
    with pytest.raises(
        ValueError, match=r"'parts_depthwise'.*is the model with Scheme\(32, 32\)\."
    ):
        calibrate(applied(source, 4, 4), source, images(4) / np.float32(255))


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


def test_configurations_go_before_the_scheme_and_feeders_are_rounded():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="first")(inputs)  # not annotated
    x = layers.ReLU(6.0, name="feeder")(layers.Conv2D(4, 3, name="second")(x))
    config = QuantizeConfig(3, 4, alpha_init=2.5)
    x = annotate(layers.Conv2D(4, 3, activation="relu", name="third"), config)(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = annotate(layers.Dense(3, name="last"))(x)
    annotated = tf.keras.Model(inputs, x)
    model = tfmot.quantization.keras.quantize_apply(annotated, Scheme(1, 2))
    expected = {"first": 32, "second": 32, "feeder_output": 2, "third": 3, "last": 8}
    assert widths(model) == {**expected, "third_output": 4}
    alphas = {v.name: float(v) for v in model.trainable_variables if "alpha" in v.name}
    assert alphas == {"quant_feeder/output_alpha:0": 8.0, "quant_third/output_alpha:0": 2.5}


def settings(quantizer):
    """The settings of the quantizer behind TF-MOT's interface."""
    return quantizer.get_config()["quantizer"]["config"]


@pytest.mark.parametrize(
    ("options", "scale_adjust", "outputs"),
    [
        ({"scale_adjust": True}, True, []),
        ({"residual_bits": 5}, False, [{"bits": 5, "alpha_init": 8.0, "signed": True}]),
        ({}, False, []),
    ],
)
def test_configuration_of_a_linear_layer(options, scale_adjust, outputs):
    layer = layers.Dense(2)
    layer.build((None, 3))
    config = QuantizeConfig.from_config(QuantizeConfig(3, **options).get_config())
    ((kernel, quantizer),) = config.get_weights_and_quantizers(layer)
    assert kernel is layer.kernel
    expected = {"bits": 3, "scale_adjust": scale_adjust, "keep_scale": False}
    assert settings(quantizer).items() >= expected.items()
    found = [settings(each) for each in config.get_output_quantizers(layer)]
    assert len(found) == len(outputs)
    for each, wanted in zip(found, outputs, strict=True):
        assert each.items() >= wanted.items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizeConfig(weight_bits=0), "bits=0"),
        (lambda: QuantizeConfig(activation_bits=16), "bits=16"),
        (lambda: QuantizeConfig(residual_bits=1), "bits=1"),
        (lambda: QuantizeConfig(scale_adjust=1), "scale_adjust"),
        (lambda: QuantizeConfig(alpha_init=0.0), "alpha_init"),
        (lambda: Scheme(weight_bits=0), "bits=0"),
        (lambda: Scheme(residual_bits=1), "bits=1"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@tf.keras.utils.register_keras_serializable("tests")
class Inverse(layers.Layer):
    """What TFLite has no operation for."""

    def call(self, x):
        return tf.linalg.inv(x[..., 0])


@pytest.mark.parametrize(
    ("layer", "config", "message"),
    [
        (layers.LeakyReLU(name="odd"), None, r"'odd' \(LeakyReLU\).*Expected Conv2D"),
        (layers.Activation("swish", name="odd"), None, "'odd'.*'swish'"),
        (layers.Conv2D(2, 1, activation="tanh", name="odd"), None, "'odd'.*'tanh'"),
        (
            Inverse(name="odd"),
            None,
            "'odd'.*nor has TFLite: TFLite has no operation MatrixInverse",
        ),
        (layers.ReLU(negative_slope=0.1, name="odd"), None, "'odd'.*no ReLU"),
        (layers.MaxPool2D(name="odd"), QuantizeConfig(), "'odd'.*no method"),
        (layers.BatchNormalization(name="odd"), QuantizeConfig(), "'odd'.*no method"),
        (layers.Activation("linear", name="odd"), QuantizeConfig(), "'odd'.*'linear'"),
    ],
)
def test_layers_that_cannot_be_quantized_are_named(layer, config, message):
    inputs = tf.keras.Input((8, 8, 3))
    annotated = tf.keras.Model(inputs, annotate(layer, config)(inputs))
    with pytest.raises(ValueError, match=message):
        tfmot.quantization.keras.quantize_apply(annotated, Scheme())


def test_export_refuses_what_this_package_did_not_quantize():
    inputs = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    api = tfmot.quantization.keras
    with pytest.raises(ExportError, match=r"'quantize_annotate.*annotated.*quantize_apply"):
        lower(api.quantize_annotate_model(model))
    with pytest.raises(ExportError, match=r"'quantize_layer\w*'.*AllValuesQuantizer.*Scheme"):
        lower(api.quantize_model(model))
    default = api.default_8bit.Default8BitQuantizeRegistry().get_quantize_config(model.layers[1])
    wrapped = api.QuantizeWrapperV2(layers.Conv2D(2, 3, name="odd"), default)
    with pytest.raises(ExportError, match=r"'quant_odd'.*Default8Bit.*Scheme"):
        lower(tf.keras.Model(inputs, wrapped(inputs)))


@pytest.fixture(scope="module")
def trained():
    """A bridge model after a short fit, on images whose class is which half is brighter."""
    model = applied(network(), alpha_init=2.0)
    x = images(256)
    y = (x[:, :4].mean((1, 2, 3)) > x[:, 4:].mean((1, 2, 3))).astype(int)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(0.01), loss)
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(x / np.float32(255), y, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), f"{variable.name} was not trained"
    return model


@pytest.mark.parametrize("export", [to_tflite, to_lce])
def test_files_compute_what_was_trained(trained, tmp_path, export):
    report = export(trained, tmp_path / "model.tflite")
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images(256))
    assert result.agreement == {
        "keras_file": 100.0,
        "keras_simulation": 100.0,
        "simulation_file": 100.0,
    }
    assert result.failures() == []
    declared = {layer.layer: layer.declared_bits for layer in report.census.layers}
    assert declared["quant_second"] == declared["quant_depthwise"] == 1
    assert report.shifts  # biases in wrapped layers and batch norms moved


def test_softmax_runs_in_float():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.Dense(3, activation="softmax", name="last")(layers.Flatten()(x))
    network = lower(applied(tf.keras.Model(inputs, x)))
    assert network["quant_last_activation/island"].inputs == ("quant_last",)


LOAD = """
import sys
import dlqat_tf
import numpy as np
import tensorflow as tf

assert "tensorflow_model_optimization" not in sys.modules, "TF-MOT should wait for its use"
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
expected = np.load(f"{folder}/logits.npy")
for name in ("model.keras", "model.h5", "model"):
    model = tf.keras.models.load_model(f"{folder}/{name}")
    np.testing.assert_array_equal(model.predict(images, verbose=0), expected, err_msg=name)
    print(name, len(dlqat_tf.export.lower(model).nodes))
print(type(tf.keras.models.load_model(f"{folder}/annotated.keras").layers[2]).__name__)
"""


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_saved_models_load_without_a_scope(tmp_path):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.ReLU()(inputs)  # feeds an annotated layer: wrapped by a configuration of TF-MOT's
    x = annotate(layers.DepthwiseConv2D(3, activation="relu"), QuantizeConfig(2, 3))(x)
    x = annotate(layers.BatchNormalization())(annotate(layers.Conv2D(4, 1))(x))
    x = annotate(layers.Dense(3))(layers.Flatten()(x))
    annotated = tf.keras.Model(inputs, x)
    model = tfmot.quantization.keras.quantize_apply(annotated, Scheme())
    rng = np.random.default_rng(0)  # no two variables alike, or their order would not matter
    model.set_weights(
        [w + rng.uniform(0, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    np.save(tmp_path / "images.npy", images() / np.float32(255))
    np.save(tmp_path / "logits.npy", model.predict(images() / np.float32(255), verbose=0))
    annotated.save(tmp_path / "annotated.keras")
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    nodes = len(lower(model).nodes)
    expected = [f"{name} {nodes}" for name in ("model.keras", "model.h5", "model")]
    assert result.stdout.splitlines() == [*expected, "QuantizeAnnotate"], result.stderr


def test_unknown_attributes_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dlqat_tf.nothing  # noqa: B018


@pytest.mark.parametrize("where", ["model", "outside"])
def test_prepared_images(tmp_path, where):
    """A quantizer of the range of all 256 pixels behind what prepares them."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs) if where == "model" else inputs
    x = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = layers.Dense(3, name="last")(layers.Flatten()(x))
    said = {} if where == "model" else {"preprocessing": "tf"}
    scheme = Scheme(2, 4, **said)
    annotated = tfmot.quantization.keras.quantize_annotate_model(tf.keras.Model(inputs, x))
    model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    quantizer = model.get_layer("images_codes")
    assert (quantizer.signed, float(quantizer.alpha), quantizer.trainable) == (True, 1.0, False)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    images = pixels.astype(np.float32) if where == "model" else pixels / np.float32(127.5) - 1
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(8) % 3, verbose=0)
    report = to_tflite(model, tmp_path / "model.tflite")
    assert report.census.inputs[0].type == "uint8"
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert not parity(snapped, report.path, pixels, trained=model).failures()


def test_vectors(tmp_path):
    source = tf.keras.Sequential(
        [
            tf.keras.Input((6,), name="features"),
            layers.Dense(8, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(3, name="last"),
        ]
    )
    model = applied(source)
    values = np.random.default_rng(0).normal(0, 5, (64, 6)).astype(np.float32)
    ranges = calibrate(model, source, values)
    assert ranges["features_codes"] == pytest.approx(np.abs(values).max(), rel=0.05)
    for input_type in ("float32", "int8"):
        path = tmp_path / f"{input_type}.tflite"
        report = to_tflite(model, path, input_type=input_type)
        snapped = tf.keras.models.load_model(report.snapped, compile=False)
        assert not parity(snapped, path, values).failures()


def test_normalization_keeps_what_it_has_adapted_to():
    norm = layers.Normalization(name="norm")
    norm.adapt(np.float32([[1, 10], [3, 30]]))  # means 2 and 20, deviations 1 and 10
    x = tf.keras.Input((2,), name="features")
    model = applied(tf.keras.Model(x, layers.Dense(3, name="last")(norm(x))))
    assert model.get_layer("norm")(np.float32([[3, 10]])).numpy()[0] == pytest.approx([1, -1])
    assert type(model.get_layer("features_codes")) is dlqat_tf.InputQuantizer


def test_sat_alone_has_its_names_still():
    assert (SATScheme, SATQuantizeConfig) == (Scheme, QuantizeConfig)


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


def test_a_method_trains_in_wrappers_and_is_exported(tmp_path):
    """LSQ starts steps from the first batch, INQ freezes by its callback: both in wrappers."""
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="hidden")(x)
    x = layers.GlobalAveragePooling2D()(x)
    float_model = tf.keras.Model(inputs, layers.Dense(3)(x))
    pixels = images(16)
    for name in ("lsq", "inq"):
        tf.keras.utils.set_random_seed(0)
        model = applied(float_model, 2, 2, method=name)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(0.01), loss)
        callbacks = methods.get(name).callbacks(10)
        model.fit(pixels / 255, np.arange(16) % 3, 16, 10, callbacks=callbacks, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        loaded = tf.keras.models.load_model(tmp_path / f"{name}.keras")
        to_tflite(loaded, tmp_path / f"{name}.tflite")
        agreement = parity(loaded, tmp_path / f"{name}.tflite", pixels).agreement
        assert agreement["simulation_file"] == 100.0


def test_a_method_that_starts_from_images_is_fitted_in_wrappers():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="first")(inputs))
    x = layers.ReLU()(layers.Conv2D(4, 3, name="hidden")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = applied(tf.keras.Model(inputs, layers.Dense(3)(x)), 1, 4, method="bwnh")
    errors = methods.get("bwnh").prepare(model, images(16) / np.float32(255))
    assert list(errors) == ["quant_hidden"]
    assert 0 < errors["quant_hidden"] < 1
    kernel = unwrapped(by_name(model)["hidden"]).kernel.numpy()
    np.testing.assert_allclose(np.abs(kernel), np.abs(kernel).mean((0, 1, 2)) + 0 * kernel, 1e-5)


def test_a_method_and_a_width_that_do_not_go_together():
    with pytest.raises(ValueError, match="weight_bits with method='bwn': BWN defines 1 bit"):
        Scheme(4, 4, method="bwn")
    with pytest.raises(ValueError, match=r"Received: method='lsp'\. Did you mean lsq"):
        QuantizeConfig(2, 2, method="lsp")
