import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.canonical import StandardLayers
from dlqat_tf.canonical.lambdas import without_lambdas

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
    assert {kinds[name] for name in ("halves", "turned", "sum", "sum_1")} == {"TFOpLambda"}
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
    assert became["capped_1"] == became["capped_2"] == "CGPACT"
    assert (became["capped"], became["shuffled"], became["whole"]) == ("Add", "Reshape", "Lambda")
    expected = np.asarray(model(images))
    assert np.corrcoef(expected.ravel(), np.ravel(converted(images)))[0, 1] > 0.999


def test_a_shared_lambda_layer_opens_for_inputs_of_one_shape():
    shared = layers.Lambda(tf.nn.relu)
    calls = [shared(tf.keras.Input(shape)).node for shape in ((2,), (2,), (3,))]
    standard = StandardLayers()
    first, again, other = map(standard.of, calls)
    assert first is again
    assert other is None


def test_a_lambda_layer_that_passes_on_what_it_gets_has_no_operators():
    node = layers.Lambda(lambda x: x)(tf.keras.Input((2,))).node
    assert StandardLayers().of(node) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.custom_gradient(lambda y: (y + 1.0, lambda dy: dy))(x),
        lambda x, training=False: x * (2.0 if training else 1.0),
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
