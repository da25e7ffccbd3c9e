import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.canonical import StandardLayers
from dlqat_tf.canonical.lambdas import without_lambdas
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.convert.standard import in_standard_layers

layers = tf.keras.layers


def wrapped(operator, name, **settings):
    """As Larq's zoo wraps operators: the function calls others by names around it."""
    return layers.Lambda(lambda x: operator(x, **settings), name=name)


def network():
    inputs = tf.keras.Input((4, 4, 3))
    x = dlqat_tf.CGPACT(2, name="codes")(layers.Conv2D(4, 1)(inputs))
    first, second = wrapped(tf.split, "halves", num_or_size_splits=2, axis=-1)(x)
    y = wrapped(tf.concat, "turned", axis=-1)([second, first])
    y = layers.Lambda(lambda x: x, name="nothing")(y)
    y = layers.Lambda(lambda pair: pair[0] + 2.0 * pair[1], name="sum")([y, x])
    return tf.keras.Model(inputs, layers.Dense(2)(layers.Flatten()(y)))


def test_operators_of_lambda_layers_stand_for_them():
    model = network()
    names = [layer.name for layer in model.layers]
    opened = without_lambdas(model)
    assert [layer.name for layer in model.layers] == names  # the model stays as it is
    assert all(len(layer.inbound_nodes) == 1 for layer in model.layers)
    kinds = {layer.name: type(layer).__name__ for layer in opened.layers}
    assert "Lambda" not in kinds.values()
    assert "nothing" not in kinds
    assert {kinds[name] for name in ("halves", "turned", "sum", "sum_op1")} == {"TFOpLambda"}
    images = np.float32(np.random.default_rng(0).random((3, 4, 4, 3)))
    np.testing.assert_array_equal(opened(images), model(images))
    assert without_lambdas(opened) is opened


def test_in_nested_models_that_are_called_twice():
    inputs = tf.keras.Input((4,))
    inner = tf.keras.Sequential([layers.Dense(4), wrapped(tf.abs, "abs"), layers.Dense(4)])
    model = tf.keras.Model(inputs, inner(inner(inputs)))
    opened = without_lambdas(model)
    assert len(opened.weights) == len(model.weights) == 4
    values = np.float32([[1, -2, 3, -4]])
    np.testing.assert_array_equal(opened(values), model(values))
    assert not any(isinstance(each, layers.Lambda) for each in opened.submodules)


def capped(x):
    return tf.nn.relu(x) + tf.nn.relu6(x)


def test_lambda_layers_of_operators_that_have_standard_layers_are_quantized_as_these():
    inputs = tf.keras.Input((4, 4, 2))
    shared = layers.Lambda(capped, name="capped")
    x = layers.Conv2D(8, 1)(shared(layers.Conv2D(8, 3, padding="same")(inputs)))
    x = layers.Lambda(lambda x: tf.nn.depth_to_space(x, 2), name="shuffled")(shared(x))
    x = layers.Conv2D(2, 1)(x)
    x = layers.Lambda(lambda x: tf.sqrt(tf.nn.relu(x) + 1.0), name="whole")(x)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    images = np.random.default_rng(0).random((16, 4, 4, 2)).astype(np.float32)
    converted, report = dlqat_tf.quantize(model, 8, 8, None, images=images)
    became = {row.layer: row.became for row in report.conversions}
    assert became["capped_op1"] == became["capped_op2"] == "CGPACT"
    assert (became["capped"], became["shuffled"], became["whole"]) == ("Add", "Reshape", "Lambda")
    expected = np.asarray(model(images))
    assert np.corrcoef(expected.ravel(), np.ravel(converted(images)))[0, 1] > 0.999


def test_a_shared_lambda_layer_opens_for_inputs_of_one_shape():
    standard, shared = StandardLayers(), layers.Lambda(tf.nn.relu)
    calls = [shared(tf.keras.Input((2,))).node for _ in range(2)]
    first, again = map(standard.of, calls)
    assert first is again
    shared(tf.keras.Input((3,)))
    assert StandardLayers().of(calls[0]) is None


def test_a_shared_lambda_layer_of_several_shapes_stays_float():
    inputs, shared = tf.keras.Input((2,)), layers.Lambda(tf.nn.relu, name="shared")
    x = layers.Dense(3)(shared(layers.Dense(2)(inputs)))
    model = tf.keras.Model(inputs, layers.Dense(2)(shared(x)))
    values = np.float32([[1, -2], [-3, 4]])
    _, report = dlqat_tf.quantize(model, 8, 8, None, images=values)
    assert {row.layer: row.became for row in report.conversions}["shared"] == "Lambda"


def test_a_shared_lambda_layer_stays_where_one_call_reads_a_mask():
    inputs, shared = tf.keras.Input((3, 2)), layers.Lambda(tf.nn.relu)
    calls = [shared(x).node for x in (inputs, layers.Masking()(inputs))]
    assert [StandardLayers().of(call) for call in calls] == [None, None]


def test_operators_of_two_inputs_are_quantized():
    inputs = tf.keras.Input((4, 4, 3))
    pair = [layers.Conv2D(4, 1)(inputs) for _ in range(2)]
    x = layers.Lambda(lambda pair: pair[0] * tf.sigmoid(pair[1]), name="gate")(pair)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    images = np.random.default_rng(0).random((16, 4, 4, 3)).astype(np.float32)
    converted, report = dlqat_tf.quantize(model, 8, 8, None, images=images)
    became = {row.layer: row.became for row in report.conversions}
    assert (became["gate_op1"], became["gate"]) == ("Activation", "Multiply")
    expected = np.asarray(model(images))
    assert np.corrcoef(expected.ravel(), np.ravel(converted(images)))[0, 1] > 0.999


def test_operators_of_two_inputs_end_a_model(tmp_path):
    inputs = tf.keras.Input((4, 4, 3))
    x = dlqat_tf.CGPACT(2)(layers.Conv2D(4, 1)(inputs))
    pair = [x, layers.Conv2D(4, 1)(x)]
    outputs = layers.Lambda(lambda pair: pair[0] * tf.sigmoid(pair[1]), name="gate")(pair)
    model = tf.keras.Model(inputs, outputs)
    report = dlqat_tf.export.to_tflite(model, tmp_path / "model.tflite")
    images = np.random.default_rng(1).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    found = dlqat_tf.export.parity(model, report.path, images)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == 100


def test_operators_have_names_that_keras_gives_to_no_layer():
    inputs = tf.keras.Input((4,))
    x = layers.Lambda(capped, name="lambda")(layers.Dense(4)(inputs))
    x = layers.Lambda(capped, name="lambda_1")(layers.Dense(4)(x))
    model = tf.keras.Model(inputs, layers.Dense(2)(x))
    values = np.float32([[1, -2, 3, -4]])
    opened = without_lambdas(model)
    np.testing.assert_array_equal(opened(values), model(values))
    standard, _ = in_standard_layers(model, Overrides({}))
    _, report = dlqat_tf.quantize(model, 8, 8, None, images=values)
    expected = {f"lambda{layer}{part}" for layer in ("", "_1") for part in ("", "_op1", "_op2")}
    for names in (
        [layer.name for layer in opened.layers],
        [layer.name for layer in standard.layers],
        [row.layer for row in report.conversions],
    ):
        assert sorted(name for name in names if "lambda" in name) == sorted(expected)


@pytest.mark.parametrize(("is_end", "names"), [(False, ["r", "r_2"]), (True, ["r_2", "r"])])
def test_each_call_of_a_shared_lambda_layer_has_a_name(is_end, names):
    inputs, shared = tf.keras.Input((2,)), layers.Lambda(tf.nn.relu, name="r")
    outputs = shared(layers.Dense(2)(shared(inputs)))
    model = tf.keras.Model(inputs, outputs if is_end else layers.Dense(2)(outputs))
    found = [layer.name for layer in without_lambdas(model).layers]
    assert [name for name in found if name[0] == "r"] == names


def test_a_lambda_layer_that_passes_on_what_it_gets_has_no_operators():
    node = layers.Lambda(lambda x: x)(tf.keras.Input((2,))).node
    assert StandardLayers().of(node) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.custom_gradient(lambda y: (y + 1.0, lambda dy: dy))(x),
        lambda x, training=False: x * (2.0 if training else 1.0),
        lambda x: tf.einsum("bi,bj->bi", x, x),  # which Keras cannot load as an operator
    ],
)
def test_what_is_no_graph_of_operators_stays(function):
    inputs = tf.keras.Input((2,))
    x = layers.Lambda(function, name="code")(inputs)
    model = tf.keras.Model(inputs, layers.Dense(1)(x))
    assert isinstance(without_lambdas(model).get_layer("code"), layers.Lambda)


def test_the_end_of_a_model_keeps_its_name():
    inputs = tf.keras.Input((2,))
    model = tf.keras.Model(inputs, layers.Lambda(lambda x: x * 2.0, name="scores")(inputs))
    assert without_lambdas(model).output_names == ["scores"]


def test_the_file_of_a_model_of_lambda_layers(tmp_path):
    model = network()
    report = dlqat_tf.export.to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)  # which is no code
    images = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3)).astype(np.uint8)
    found = dlqat_tf.export.parity(snapped, report.path, images, trained=model)
    assert found.agreement["simulation_file"] == 100
    assert {"STRIDED_SLICE", "CONCATENATION"} <= set(report.census.operators)


def state_of(model):
    """The names, calls and weights of layers."""
    return [
        (each.name, list(each._inbound_nodes), list(each._outbound_nodes), each.get_weights())
        for each in model.layers
    ]


def test_layers_with_weights_that_functions_call_stay_as_they_are():
    inputs, shared = tf.keras.Input((2,)), layers.Dense(2, name="shared")
    x = layers.Lambda(lambda x: shared(x), name="again")(shared(inputs))
    x = layers.Lambda(capped, name="opened")(x)
    model = tf.keras.Model(inputs, layers.Dense(2)(x))
    before, values = state_of(model), np.float32([[1, -2], [-3, 4]])
    opened = without_lambdas(model)
    _, report = dlqat_tf.quantize(model, 8, 8, None, images=values)
    np.testing.assert_equal(state_of(model), before)
    assert shared.output is shared._inbound_nodes[0].outputs
    kinds = {layer.name: type(layer).__name__ for layer in opened.layers}
    assert (kinds["again"], kinds["opened"]) == ("Lambda", "TFOpLambda")
    assert {row.layer: row.became for row in report.conversions}["again"] == "Lambda"


def test_copies_of_layers_without_weights_stand_for_them():
    inputs, relu = tf.keras.Input((2,)), layers.ReLU(6.0, name="mine")
    x = layers.Lambda(lambda x: relu(x), name="capped")(inputs)
    opened = without_lambdas(tf.keras.Model(inputs, layers.Dense(2)(x)))
    assert type(opened.get_layer("capped")) is layers.ReLU
    assert opened.get_layer("capped").max_value == 6
    assert (relu.name, relu._inbound_nodes) == ("mine", [])
