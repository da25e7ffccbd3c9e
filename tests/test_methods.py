"""Every method of the registry builds, trains and comes back from a file.

A method joins these tests, and those of tests/export/test_methods.py, by its entry.
"""

import dataclasses

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import methods, resnet18
from dlqat_tf.quantizers import ActivationQuantizer, WeightQuantizer
from dlqat_tf.training.recipe import Recipe
from tests.quantizers.methods import images, network

BITS = {"sat": 1, "lsq": 2, "hawq": 4, "inq": 2}  # where 1 bit is not defined, or not of its rows
EVERY = pytest.mark.parametrize("name", methods.names())


def bits_of(name):
    return BITS.get(name, 1)


@pytest.fixture(scope="module")
def trained():
    models = {}
    for name in methods.names():
        tf.keras.utils.set_random_seed(0)
        method = methods.get(name)
        model = models[name] = network(method, bits_of(name), 2)
        before = [variable.numpy() for variable in model.trainable_variables]
        model.compile(
            tf.keras.optimizers.SGD(0.02, 0.9),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        labels = np.arange(32) % 5
        history = model.fit(
            images(), labels, 8, 10, callbacks=method.callbacks(10, 4), verbose=0
        ).history
        assert history["loss"][-1] < history["loss"][0]
        for variable, value in zip(model.trainable_variables, before, strict=True):
            assert np.any(variable.numpy() != value), variable.name
    return models


@EVERY
def test_it_comes_back_from_a_file(trained, tmp_path, name):
    trained[name].save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), trained[name].predict(images(), verbose=0)
    )


@EVERY
def test_resnet18_takes_it(name):
    bits = bits_of(name)
    model = resnet18(5, (8, 8, 3), bits, 2, width=4, method=name)
    method = methods.get(name)
    convolutions = [layer for layer in model.layers if isinstance(layer, lq.layers.QuantConv2D)]
    for layer in convolutions:
        is_stem = layer.name == "stem_conv"
        expected = method.end_weights(8) if is_stem else method.weights(bits)
        assert type(layer.kernel_quantizer) is type(expected)
        assert layer.kernel.precision == (8 if is_stem else bits)
        constraint = None if is_stem else method.kernel_constraint
        assert type(layer.kernel_constraint) is (constraint or type(None))
    acts = [layer for layer in model.layers if isinstance(layer, ActivationQuantizer)]
    assert [layer.bits for layer in acts] == [2] * 16 + [8]
    for layer in acts:
        expected = method.activations(layer.bits, alpha_init=1.0, regularizer=None, name="a")
        assert type(layer) is type(expected)


def test_what_activations_are_given():
    decay = tf.keras.regularizers.L2(0.1)
    model = resnet18(5, (8, 8, 3), alpha_init=3.0, method="pact", kernel_regularizer=decay)
    layer = model.get_layer("stem_act")
    assert layer.alpha_init == 3.0
    assert layer.alpha_regularizer is decay
    assert resnet18(5, (8, 8, 3), kernel_regularizer=decay).layers[3].alpha_regularizer is None


@EVERY
def test_entries_are_complete(name):
    method = methods.get(name)
    assert method.name == name
    assert "arXiv" in method.source
    fields = {each.name for each in dataclasses.fields(Recipe)}
    assert method.recipe.keys() <= fields
    for row in method.rows:
        assert row.table == (3 if row.weight_bits == 1 else 2)
        assert method.weights(row.weight_bits).bits == row.weight_bits
        assert 60 < row.accuracy < 72
    assert isinstance(method.weights(32), WeightQuantizer)


def test_the_float_stage_of_a_method_without_constraint():
    model = resnet18(5, (8, 8, 3), 32, 32, width=4, method="bwn")
    assert model.get_layer("stage1_block1_1_conv").kernel_constraint is None


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'LSQQ'. Did you mean lsq or syq or dsq\?$"):
        methods.get("LSQQ")
    message = (
        r"one of sat, dorefa, .* Received: method='zzz'. One of your own .*--import MODULE\).$"
    )
    with pytest.raises(ValueError, match=message):
        resnet18(5, method="zzz")
    with pytest.raises(ValueError, match=r"Received: method=\['sat'\]"):
        methods.get(["sat"])


def test_a_width_that_the_method_does_not_define():
    message = r"weight_bits with method='bwn': BWN defines 1 bit, and 32 .* Received: bits=4"
    with pytest.raises(ValueError, match=message):
        resnet18(5, weight_bits=4, method="bwn")


def test_a_method_of_ones_own(monkeypatch):
    monkeypatch.setattr(methods, "_methods", dict(methods._methods))
    methods.register(methods.Method("mine", "nowhere", dlqat_tf.SymmetricWeights))
    model = resnet18(5, (8, 8, 3), 3, 2, width=4, method="mine")
    layer = model.get_layer("stage1_block1_1_conv")
    assert isinstance(layer.kernel_quantizer, dlqat_tf.SymmetricWeights)
    with pytest.raises(ValueError, match="'mine', which is registered"):
        methods.register(methods.get("mine"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mine", "Expected a Method. Received: 'mine'"),
        (methods.Method, "Expected a Method. Received: <class"),
        (methods.Method("my-own", "", dlqat_tf.SATWeights), "digits and _.* Received: 'my-own'"),
        (methods.Method(3, "", dlqat_tf.SATWeights), "digits and _.* Received: 3"),
        (
            methods.Method("mine", "", dlqat_tf.SATWeights, recipe={"epochs": 3, "epoch": 3}),
            "settings of dlqat_tf.training.Recipe. Received: 'epoch': correct the recipe of 'mine'",
        ),
    ],
)
def test_what_is_no_method_is_not_registered(method, message):
    with pytest.raises(ValueError, match=message):
        methods.register(method)
    assert "mine" not in methods.names()


@EVERY
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
def test_16_bits_have_the_codes_of_float32_on_the_same_input(name, dtype):
    method = methods.get(name)
    sixteen = tf.cast(tf.random.stateless_normal((3, 3, 4, 8), (1, 2)), dtype)
    activations = method.activations(2, alpha_init=2.0, regularizer=None, name="activations")
    activations(tf.cast(sixteen, tf.float32), training=True)  # starts what starts from a batch
    for quantizer in (method.weights(bits_of(name)), activations):
        expected = quantizer(tf.cast(sixteen, tf.float32), training=False)
        values = quantizer(sixteen, training=False)
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, tf.cast(expected, dtype))
