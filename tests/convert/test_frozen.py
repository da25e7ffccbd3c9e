"""Fine-tuning: what the source freezes or runs in inference mode does not move in the result."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, ConversionError, quantize
from tests.convert.networks import FLOAT, alive

layers = tf.keras.layers
Model = tf.keras.Model


def block(x, name, **options):
    x = layers.Conv2D(4, 3, padding="same", name=name)(x)
    x = layers.BatchNormalization(momentum=0.5, name=f"{name}_bn")(x, **options)
    return layers.ReLU(name=f"{name}_relu")(x)


def base(name, channels):
    """A batch norm, and a convolution that gets one."""
    inputs = tf.keras.Input((8, 8, channels))
    x = block(inputs, f"{name}_conv")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"{name}_plain")(x)
    return Model(inputs, layers.Dropout(0.5, name=f"{name}_drop")(x), name=name)


def classifier(inputs, x):
    x = layers.GlobalAveragePooling2D()(block(x, "top"))
    return Model(inputs, layers.Dense(3, name="scores")(x))


def trained(source):
    """Return the result of a conversion after a step, and the names of variables that moved."""
    images = alive(source, (16, 8, 8, 1))
    labels = np.arange(16) % 3
    model, report = quantize(source, 4, 4, "linear", images=images, labels=labels)
    before = {variable.name: variable.numpy() for variable in model.variables}
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.5), loss)
    model.fit(images, labels, verbose=0)
    moved = {v.name.split(":")[0] for v in model.variables if np.any(before[v.name] != v.numpy())}
    return model, report, moved


def averages(moved):
    return {name.split("/")[0] for name in moved if "moving_" in name}


def ranges(moved):
    return {name.split("/")[0] for name in moved if name.endswith("alpha")}


def kernels(moved):
    return {name.split("/")[0] for name in moved if name.endswith("kernel")}


def test_training_false_of_a_nested_model_keeps_its_averages(tmp_path):
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, base("base", 1)(inputs, training=False))
    model, report, moved = trained(source)
    assert averages(moved) == {"top_bn"}  # neither base_conv_bn nor the inserted base_plain_bn
    assert kernels(moved) >= {"base_conv", "base_plain", "top"}  # not frozen
    notes = {row.layer: row.note for row in report.conversions}
    assert "called with training=False" in notes["base_conv_bn"]
    assert "training=False" not in notes["top_bn"]
    # No values are dropped in the base.
    images = np.random.default_rng(1).random((4, 8, 8, 1)).astype(np.float32)
    inner = Model(model.input, model.get_layer("base_drop").output)
    np.testing.assert_array_equal(inner(images, training=True), inner(images))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    before = loaded.get_layer("base_conv_bn").moving_mean.numpy()
    loaded(images, training=True)
    np.testing.assert_array_equal(loaded.get_layer("base_conv_bn").moving_mean, before)
    assert np.any(loaded.get_layer("top_bn").moving_mean != model.get_layer("top_bn").moving_mean)


def test_the_innermost_training_counts():
    """By position or name, of a layer, a model, or a model around that."""
    inner_inputs = tf.keras.Input((8, 8, 1))
    x = base("quiet", 1)(inner_inputs, False)
    x = block(x, "own", training=False)
    x = block(base("free", 4)(x), "outer")
    nest = Model(inner_inputs, x, name="nest")
    inputs = tf.keras.Input((8, 8, 1), name="images")
    _, _, moved = trained(classifier(inputs, nest(inputs)))
    free = {"free_conv_bn", "free_plain_bn", "outer_bn", "top_bn"}
    assert averages(moved) == free
    _, _, moved = trained(classifier(inputs, nest(inputs, training=False)))
    assert averages(moved) == {"top_bn"}


def test_one_tower_in_two_modes():
    tower = base("tower", 1)
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.Add()([tower(inputs), tower(inputs, training=False)])
    model, _, moved = trained(classifier(inputs, x))
    assert averages(moved) >= {"tower_conv_bn", "tower_plain_bn"}
    modes = [node.call_kwargs for node in model.get_layer("tower_conv_bn").inbound_nodes]
    assert modes == [{}, {"training": False}]


@pytest.mark.parametrize("kept", [{}, {"base": "float"}])
def test_a_frozen_model_has_nothing_to_train(kept):
    part = base("base", 1)
    part.trainable = False
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, part(inputs))
    images = alive(source, (16, 8, 8, 1))
    model, report = quantize(source, 4, 4, "linear", images=images, overrides=kept)
    names = {variable.name.split("/")[0] for variable in model.trainable_variables}
    assert names >= {"top", "top_bn", "scores"}
    assert not [name for name in names if name.startswith("base")]
    assert not kept or not model.get_layer("base").trainable
    if not kept:
        assert "frozen" in {row.layer: row.note for row in report.conversions}["base_conv_relu"]
        assert not model.get_layer("base_plain_bn").trainable  # so it keeps its averages too
        assert "Frozen, as in the source: 'base_conv', 'base_conv_bn'" in report.notes[0]
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    before = [variable.numpy() for variable in model.get_layer("top").weights]
    base_before = {v.name: v.numpy() for v in model.non_trainable_variables if "base" in v.name}
    model.fit(images, np.arange(16) % 3, verbose=0)
    assert np.any(before[0] != model.get_layer("top").weights[0])
    for variable in model.non_trainable_variables:
        if variable.name in base_before:
            np.testing.assert_array_equal(variable, base_before[variable.name], variable.name)


@pytest.mark.parametrize("method", ["lsq", "hawq", "lqnet", "dsq", "abcnet"])
def test_frozen_quantizers_of_a_method_start_from_images_and_stay(method):
    part = base("base", 1)
    part.trainable = False
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, part(inputs))
    images = alive(source, (16, 8, 8, 1))
    model, _ = quantize(source, 2, 2, None, images=images, method=method)
    quantizer = model.get_layer("base_conv_relu")
    before = [each.numpy() for each in quantizer.variables]
    if method in ("lsq", "hawq", "dsq"):
        assert quantizer.grid().step > 0
    model.compile("sgd", "mse")
    model.fit(images, np.zeros((16, 3)), verbose=0)
    for variable, value in zip(quantizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_frozen_around_trainable_is_frozen_and_everything_may_be():
    """Keras trains nothing in a frozen model, whatever its layers say."""
    part = base("base", 1)
    part.trainable = False
    part.get_layer("base_conv").trainable = True
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, part(inputs))
    model, _ = quantize(source, 4, 4)
    assert not model.get_layer("base_conv").trainable
    source.trainable = False
    model, _ = quantize(source, 4, 4)
    assert model.trainable_variables == []
    model.trainable = True  # as the report says
    assert sum(isinstance(layer, CGPACT) for layer in model.layers if layer.trainable) == 3


def test_frozen_layers_of_a_flat_model():
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, block(block(inputs, "first"), "second"))
    for layer in source.layers[:4]:  # the input and the first block
        layer.trainable = False
    model, _ = quantize(source, 4, 4)
    trained_names = {variable.name.split("/")[0] for variable in model.trainable_variables}
    assert not [name for name in trained_names if name.startswith("first")]
    assert {"second", "second_bn", "second_relu"} <= trained_names


def test_batch_statistics_in_inference_are_refused():
    inputs = tf.keras.Input((8, 8, 1))
    for source in (
        classifier(inputs, block(inputs, "odd", training=True)),
        classifier(inputs, base("odd", 1)(inputs, training=True)),
    ):
        with pytest.raises(ConversionError, match=r"'odd\w*_bn', called with training=True"):
            quantize(source)


def test_dropping_in_inference_stays_and_cannot_be_exported():
    inputs = tf.keras.Input((8, 8, 1))
    x = layers.Dropout(0.5, name="always")(block(inputs, "conv"), training=True)
    model, report = quantize(classifier(inputs, x), 4, 4)
    assert "'always': it drops values in inference too" in report.notes[-1]
    with pytest.raises(dlqat_tf.export.ExportError, match=r"'always'.*training=True"):
        dlqat_tf.export.lower(model)


def test_modes_change_no_value():
    part = base("base", 1)
    part.trainable = False
    inputs = tf.keras.Input((8, 8, 1), name="images")
    source = classifier(inputs, part(inputs, training=False))
    images = alive(source, (16, 8, 8, 1))
    model, _ = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)
