"""Everything public round-trips, and weights move between files, stages and bit widths."""

import inspect
import json
import subprocess
import sys

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import (
    CGPACT,
    PACT,
    ABCNetActivations,
    ABCNetWeights,
    AMSLoss,
    BWNWeights,
    CentredAndClamped,
    CosineHead,
    DoReFaActivations,
    DoReFaWeights,
    DSQActivations,
    DSQWeights,
    GaussianMixtureHead,
    GMLoss,
    HAWQActivations,
    HAWQWeights,
    InputQuantizer,
    INQWeights,
    IRNetWeights,
    LinearHead,
    LQNetActivations,
    LQNetWeights,
    LSQActivations,
    LSQWeights,
    MarginWarmup,
    QuantizationNetworksWeights,
    SATWeights,
    SymmetricWeights,
    SYQWeights,
    load_weights,
)
from tests.export.networks import small_network

layers = tf.keras.layers
FORMATS = ["model.keras", "model.h5", "model", "model.weights.h5", "weights.h5", "checkpoint"]

# Every argument with a value that is not its default in one of them.
HEAD = dict(weight_bits=4, kernel_initializer="he_normal", kernel_regularizer="l2")
ACTIVATION = dict(bits=3, alpha_init=2.5, signed=True, alpha_regularizer="l2")
LOSS = dict(reduction="sum", name="mine")
EXAMPLES = [
    SATWeights(3, scale_adjust=True),
    SATWeights(3, keep_scale=True),
    SymmetricWeights(5),
    CGPACT(**ACTIVATION),
    InputQuantizer(**ACTIVATION, preprocessing="torch"),
    InputQuantizer(4, signed=False),
    *(cls(4, signed=False, zero_point=2) for cls in (CGPACT, InputQuantizer, PACT)),
    PACT(**ACTIVATION),
    DoReFaActivations(3, 2.0, signed=True, alpha_regularizer="l2"),
    DoReFaActivations(4, zero_point=2),
    *(cls(3) for cls in (LSQActivations, HAWQActivations)),
    *(cls(3) for cls in (DoReFaWeights, LSQWeights, HAWQWeights, INQWeights)),
    *(cls(3) for cls in (LQNetActivations, ABCNetActivations, DSQActivations)),
    *(cls(3) for cls in (LQNetWeights, ABCNetWeights, DSQWeights, QuantizationNetworksWeights)),
    *(cls(32) for cls in (BWNWeights, IRNetWeights, SYQWeights)),
    CentredAndClamped(),
    LinearHead(7, **HEAD),
    CosineHead(7, **HEAD),
    GaussianMixtureHead(7, **HEAD),
    AMSLoss(0.2, 10.0, **LOSS),
    GMLoss(0.3, 0.1, **LOSS, fit_power=2),
]


def public_classes():
    everything = [getattr(dlqat_tf, name) for name in dlqat_tf.__all__]
    return [each for each in everything if hasattr(each, "get_config")]


def test_every_public_class_has_an_example():
    assert {type(example) for example in EXAMPLES} == set(public_classes())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_config_round_trip(example):
    config = example.get_config()
    configs = [each.get_config() for each in EXAMPLES if type(each) is type(example)]
    for cls in type(example).__mro__:
        if cls.__module__.startswith("dlqat_tf") and "__init__" in vars(cls):
            for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    assert any(each[parameter.name] != parameter.default for each in configs)
    stored = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(example)))
    loaded = tf.keras.utils.deserialize_keras_object(stored)
    assert type(loaded) is type(example)
    assert loaded.get_config() == config


def images(count=8):
    return np.random.default_rng(0).random((count, 6, 6, 3), np.float32)


def everything(head):
    """Every quantizer in every place that takes one, before a head."""
    inputs = tf.keras.Input((6, 6, 3))
    conv = lq.layers.QuantConv2D(4, 3, use_bias=False, kernel_quantizer=SATWeights(2))
    x = shortcut = CGPACT(2, 2.0)(layers.BatchNormalization()(conv(inputs)))
    x = lq.layers.QuantDepthwiseConv2D(
        3,
        padding="same",
        input_quantizer=PACT(3, 1.5, alpha_regularizer="l2"),
        depthwise_quantizer=SymmetricWeights(4),
    )(x)
    x = PACT(2, 2.0)(layers.Add()([CGPACT(4, 3.0, signed=True)(x), shortcut]))
    x = lq.layers.QuantSeparableConv2D(
        6, 2, depthwise_quantizer="sat_weights", pointwise_quantizer=SATWeights(4)
    )(x)
    x = CGPACT(8, 4.0)(CGPACT(32)(x))
    x = lq.layers.QuantDense(5, kernel_quantizer=SATWeights(8), activation=CGPACT(8))(
        layers.Flatten()(x)
    )
    return tf.keras.Model(inputs, head(x))


def fit(model, epochs, **settings):
    warmup = [] if isinstance(model.layers[-1], LinearHead) else [MarginWarmup(epochs=5)]
    labels = np.arange(8) % 3
    model.fit(images(), labels, 4, epochs, callbacks=warmup, verbose=0, shuffle=False, **settings)
    return model


PAIRS = {
    "linear": (LinearHead, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "cosine": (CosineHead, AMSLoss(0.2, 10.0)),
    "gml": (GaussianMixtureHead, GMLoss(0.3, 0.1)),
}
IN_ANOTHER_PROCESS = """
import sys
import dlqat_tf
import numpy as np
import tensorflow as tf

images = np.load("images.npy")
for path in sys.argv[1:]:
    model = tf.keras.models.load_model(path)
    np.savez(
        path.replace("/", "_"),
        predictions=model.predict(images, verbose=0),
        loss=model.loss.get_config(),
        steps=model.optimizer.iterations,
    )
"""


@pytest.fixture(scope="module")
def trained():
    tf.keras.utils.set_random_seed(0)
    models = {}
    for name, (head, loss) in PAIRS.items():
        if name == "gml":
            models[name] = everything(head(3))
        else:
            flat = [tf.keras.Input((6, 6, 3)), layers.GlobalAveragePooling2D()]
            models[name] = tf.keras.Sequential([*flat, CGPACT(2, 1.0), head(3)])
        models[name].compile(tf.keras.optimizers.SGD(0.01, 0.9), loss)
        fit(models[name], 2)
    return models


@pytest.fixture(scope="module")
def elsewhere(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    np.save(folder / "images.npy", images())
    paths = [f"{name}{ending}" for name in trained for ending in (".keras", ".h5", "")]
    for path in paths:
        trained[path.split(".")[0]].save(folder / path)
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, *paths]
    subprocess.run(command, check=True, timeout=300, cwd=folder)
    return folder


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
@pytest.mark.parametrize("name", PAIRS)
def test_saved_here_and_loaded_in_another_process(trained, elsewhere, name, ending):
    result = np.load(elsewhere / f"{name}{ending}.npz", allow_pickle=True)
    np.testing.assert_array_equal(result["predictions"], trained[name].predict(images(), verbose=0))
    assert result["loss"].item() == PAIRS[name][1].get_config()
    # Keras does not store the state of the optimizer in a SavedModel.
    assert result["steps"] == (4 if ending else 0)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("name", PAIRS)
def test_training_continues_where_it_was(trained, elsewhere, name, ending):
    loaded = fit(tf.keras.models.load_model(elsewhere / f"{name}{ending}"), 1)
    whole = tf.keras.models.clone_model(trained[name])
    whole.set_weights(trained[name].get_weights())
    whole.compile(tf.keras.optimizers.SGD(0.01, 0.9), PAIRS[name][1])
    whole.optimizer.build(whole.trainable_variables)
    states = (whole.optimizer.variables, trained[name].optimizer.variables)
    for here, there in zip(*states, strict=True):
        here.assign(there)
    fit(whole, 1)
    assert loaded.optimizer.iterations == 6
    for a, b in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    if name != "linear":
        assert loaded.loss.ramp.numpy() == 1.0  # the share of the sixth step ended with it


def save(model, path):
    """Save a model, or its weights alone, as the name of the file says."""
    (
        model.save
        if path.name.startswith("model") and "weights" not in path.name
        else model.save_weights
    )(path)


@pytest.mark.parametrize("name", FORMATS)
def test_keras_loads_one_width_into_another(tmp_path, name):
    source, target = small_network(1, 2), small_network(4, 4)
    source.get_layer("first_act").alpha.assign(1.25)
    save(source, tmp_path / name)
    target.load_weights(tmp_path / name)
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert target.get_layer("second").kernel.precision == 4
    assert target.get_layer("first_act").bits == 4


@pytest.mark.parametrize("name", [None, *FORMATS])
def test_the_float_stage_loads_into_the_quantized_one(tmp_path, name, capsys):
    source, target = small_network(32, 32, residual_bits=32), small_network(1, 2)
    source.get_layer("head").bias.assign([1, 2, 3, 4, 5])
    if name:
        save(source, tmp_path / name)
    report = load_weights(target, tmp_path / name if name else source)
    alphas = ["first_act/alpha", "second_residual/alpha", "sum_act/alpha"]
    assert report.kept == dict.fromkeys(alphas, "the source has none that fits")
    assert report.unused == []
    assert len(report.loaded) == 2 * (1 + 1 + 4) + 2  # kernel, bias and batch norm; the head
    for layer in ("first", "first_bn", "second", "second_bn", "head"):
        for a, b in zip(
            source.get_layer(layer).get_weights(),
            target.get_layer(layer).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert float(target.get_layer("first_act").alpha) == 2.0
    printed = " ".join(capsys.readouterr().out.split())
    assert "14 of 17 variables loaded" in printed
    assert "kept, since the source has none that fits: first_act/alpha, second_res" in printed
    assert json.loads(report.to_json())["kept"] == report.kept


@pytest.mark.parametrize("name", [None, *FORMATS])
def test_what_the_source_has_beyond_is_named(tmp_path, name, capsys):
    source, target = small_network(2, 2), small_network(32, 32, residual_bits=32)
    if name:
        save(source, tmp_path / name)
    report = load_weights(target, tmp_path / name if name else source)
    assert report.kept == {}
    if name == "model.weights.h5":
        assert report.unused == [f"without a name/{i}" for i in (1, 2, 3)]
    else:
        assert report.unused == ["first_act/alpha", "second_residual/alpha", "sum_act/alpha"]
    assert "not used:" in capsys.readouterr().out


def test_a_checkpoint_of_training_loads_without_its_optimizer(tmp_path, capsys):
    source, target = small_network(2, 2), small_network(4, 4)
    source.compile(tf.keras.optimizers.SGD(0.1, 0.9), "mse")
    backup = tf.keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    source.fit(images(4), np.ones((4, 5)), callbacks=[backup], verbose=0)
    report = load_weights(target, tmp_path / "chief")  # the folder: its latest checkpoint
    assert (report.kept, report.unused) == ({}, [])
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert capsys.readouterr().out == ""  # everything fits


def test_other_shapes_are_kept():
    source, target = small_network(channels=8), small_network(channels=4)
    before = target.get_layer("first").get_weights()
    report = load_weights(target, source)
    assert report.kept["first/kernel"] == "its shape is (3, 3, 3, 4) here and (3, 3, 3, 8) there"
    assert "first/kernel" in report.unused
    assert "sum_act/alpha" in report.loaded
    np.testing.assert_array_equal(before[0], target.get_layer("first").get_weights()[0])


def unnamed(*bits):
    inputs = x = tf.keras.Input((4, 4, 3))
    for each in bits:
        conv = lq.layers.QuantConv2D(3, 1, kernel_quantizer=SATWeights(2), use_bias=False)
        x = CGPACT(each)(conv(x))
    return tf.keras.Model(inputs, x)


def test_names_that_keras_gave_match_by_order():
    source, target = unnamed(2, 2), unnamed(3, 3)
    assert not {each.name for each in source.layers} & {each.name for each in target.layers}
    report = load_weights(target, source)
    assert report.kept == {}
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_that_conversion_gave_match_by_order_too():
    def converted(weight_bits):
        x = inputs = tf.keras.Input((8, 8, 3))
        for size in (4, 6):
            x = tf.keras.layers.Conv2D(size, 3, padding="same", activation="relu")(x)
            x = tf.keras.layers.SeparableConv2D(size, 3, activation="swish")(x)
        x = tf.keras.layers.PReLU(shared_axes=[1, 2])(tf.keras.layers.Add()([x, x]))
        x = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(x))
        images = np.linspace(-1, 1, 8 * 8 * 3, dtype=np.float32).reshape(1, 8, 8, 3)
        return dlqat_tf.quantize(tf.keras.Model(inputs, x), weight_bits, 2, images=images)[0]

    source, target = converted(4), converted(2)
    assert not {each.name for each in source.layers} & {each.name for each in target.layers}
    report = load_weights(target, source)
    assert (report.kept, report.unused) == ({}, [])
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_that_keras_gave_match_only_where_their_number_is_equal():
    source, target = unnamed(32, 2), unnamed(2, 2)
    report = load_weights(target, source)
    (reason,) = set(report.kept.values())
    assert reason.startswith("the source has 1 layers that Keras named 'cgpact', this model 2")
    assert [name.split("/")[1] for name in report.kept] == ["alpha", "alpha"]
    assert len(report.loaded) == 2  # the kernels, of which both have two


@pytest.mark.parametrize("name", [None, "model.keras", "model.h5", "weights.h5", "checkpoint"])
def test_nested_models_and_input_quantizers(tmp_path, name):
    def nested():
        inner = tf.keras.Sequential(
            [tf.keras.Input((4,)), lq.layers.QuantDense(3, input_quantizer=PACT(2), name="inside")]
        )
        inputs = tf.keras.Input((4,))
        outer = lq.layers.QuantDense(2, input_quantizer=PACT(2), name="outside")
        return tf.keras.Model(inputs, outer(inner(inputs)))

    source, target = nested(), nested()
    source.get_layer("outside").input_quantizer.alpha.assign(3.0)
    if name:
        save(source, tmp_path / name)
    report = load_weights(target, tmp_path / name if name else source)
    assert (report.kept, report.unused) == ({}, [])
    assert "inside/alpha" in report.loaded
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_that_fits_is_an_error(tmp_path):
    model = small_network()
    before = model.get_weights()
    other = tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2, name="other")])
    with pytest.raises(
        ValueError,
        match=r"Received: other/kernel, other/bias and so on \(2 in all\); the model has first/",
    ):
        load_weights(model, other)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="the model has none"):
        load_weights(tf.keras.Sequential([tf.keras.Input((3,)), layers.ReLU()]), other)


@pytest.mark.parametrize("name", ["missing.keras", "missing.h5", "missing", "."])
def test_nothing_there_is_an_error(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="Found none at"):
        load_weights(small_network(), tmp_path / name)
