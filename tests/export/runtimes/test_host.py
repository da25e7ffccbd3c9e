import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

import dlqat_tf
from dlqat_tf.export import ExportError, parity, to_lce, to_tflite
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.micro import is_installed
from dlqat_tf.export.files.tflite import build
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Convolution,
    Dense,
    Input,
    Output,
    Reshape,
    TransposedConvolution,
)
from dlqat_tf.export.integer.rounding import BuiltIn
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.export.runtimes import compiled_model
from dlqat_tf.export.runtimes.host import runner
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, depthwise, images_for, randomize, small_network

layers = tf.keras.layers
MICRO = pytest.param(
    "micro", marks=pytest.mark.skipif(not is_installed(), reason="tflite-micro is not installed")
)


def mobile_network():
    """Depthwise convolutions, all pools, a concatenation, and a head of a scale for each class."""
    inputs = tf.keras.Input((9, 9, 3))
    x = dlqat_tf.CGPACT(4, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = dlqat_tf.CGPACT(3, 1.7)(depthwise(x, 3, 1, "same", 1, 3))
    x = layers.MaxPool2D(2)(x)
    branches = [dlqat_tf.CGPACT(3, 1.0)(convolution(x, 4, 1, weight_bits=2)) for _ in "ab"]
    x = layers.Concatenate()(branches)
    x = dlqat_tf.CGPACT(4, 1.3)(layers.AveragePooling2D(2)(x))
    x = dlqat_tf.CGPACT(8, 2.2, signed=True)(convolution(x, 6, 1, weight_bits=1))
    return randomize(tf.keras.Model(inputs, dlqat_tf.CosineHead(5)(layers.Flatten()(x))))


def prepared_network():
    """Pixels prepared by mean and standard deviation, channels reversed: the file looks them up."""
    inputs = tf.keras.Input((6, 6, 3))
    prepared = dlqat_tf.Preprocessing((0.4, 0.5, 0.6), 0.3, reverse_channels=True)
    x = dlqat_tf.InputQuantizer(8, 2.0, True, prepared)(inputs)
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(x, 8, 3, weight_bits=8))
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x))))


@pytest.mark.parametrize("runtime", ["builtin", MICRO])
@pytest.mark.parametrize(
    ("network", "weights"),
    [
        (small_network, "int8"),
        (small_network, "int4"),
        (mobile_network, "int8"),
        (mobile_network, "int4"),
        (prepared_network, "int8"),
    ],
)
def test_files_for_kernels_that_round_twice(tmp_path, network, weights, runtime):
    model = network()
    report = to_tflite(model, tmp_path / "model.tflite", kernels="builtin", weights=weights)
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 64), runtime=runtime)
    assert result.failures(keras_agreement=95.0) == []
    assert [each.layer for each in result.layers if each.differing] == []
    # No code of Keras differs either, but for those below zero on TFLite Micro.
    signed = network is not prepared_network
    assert result.logit_difference["keras_file"] < (0.1 if signed and runtime == "micro" else 1e-4)
    assert ("Micro" if runtime == "micro" else "without XNNPACK") in result.kernels


def weighted(kind, channels, units, **options):
    """A layer of pseudo-random 8-bit weights on 0 and 1, whose sums are often halfway of codes."""
    inputs, size = channels, (3, 3)
    if kind is Dense:
        size = (9,)
    elif options.get("is_depthwise"):
        units //= channels
    else:
        inputs //= options.get("groups", 1)
    codes = np.random.default_rng(0).integers(-127, 128, (*size, inputs, units))
    codes = codes.reshape(-1, units) if kind is Dense else codes
    outputs = channels * units if options.get("is_depthwise") else units
    return kind(
        name="layer",
        inputs=("flat" if kind is Dense else "images",),
        weights=codes.astype(np.int16),
        step=np.full(outputs, 0.75 * 2**-3, np.float32),
        bias=np.zeros(outputs),
        bits=8,
        **options,
    )


@pytest.mark.parametrize("runtime", ["builtin", MICRO])
@pytest.mark.parametrize(
    ("node", "away"),
    [
        (weighted(Convolution, 4, 3, padding="same"), 0),
        (weighted(Convolution, 4, 6, groups=2), 6),
        (weighted(Convolution, 3, 3, is_depthwise=True), 3),
        (weighted(Convolution, 2, 8, is_depthwise=True), 0),
        (weighted(Convolution, 12, 12, is_depthwise=True, dilation=(2, 2)), 4),
        (weighted(Convolution, 5, 10, is_depthwise=True, strides=(2, 2), padding="same"), 2),
        (weighted(TransposedConvolution, 4, 3, strides=(2, 2)), 3),
        (weighted(TransposedConvolution, 4, 9, padding="same"), 1),
        (weighted(Dense, 4, 1), 0),
        (weighted(Dense, 4, 3), 0),
    ],
    ids=lambda value: None
    if isinstance(value, int)
    else f"{type(value).__name__}-{value.groups}"
    if isinstance(value, Convolution)
    else type(value).__name__,
)
def test_halves_on_kernels_that_round_twice(node, away, runtime):
    """Built-in kernels round some of their channels as the reference ones of Micro do."""
    size = (3, 3) if isinstance(node, Dense) else (7, 7)
    channels = len(node.weights) // 9 if isinstance(node, Dense) else node.weights.shape[2]
    channels *= getattr(node, "groups", 1)
    step = np.float32(1 / 255)
    nodes = [Input(name="images", shape=(*size, channels)), node]
    if isinstance(node, Dense):
        nodes.insert(1, Reshape(name="flat", inputs=("images",), shape=(9 * channels,)))
    act = Activation(name="act", inputs=("layer",), grid=ActivationGrid(-128, 127, step), bits=8)
    network = IntegerNetwork((*nodes, act, Output(name="out", inputs=("act",))))
    count = 400 if isinstance(node, Dense) else 64
    built = build(network, kernels="builtin", clear=False, batch_size=count)
    images = np.random.default_rng(1).integers(0, 2, (count, *size, channels)).astype(np.uint8)
    simulation = Simulation(built.planned, None, runtime)
    content = schema.ModelT.InitFromPackedBuf(built.data, 0)
    (actual,) = runner(content, count, runtime=runtime)([images])
    np.testing.assert_array_equal(actual, simulation.outputs([images], count)[0])
    # There are halves below zero in each channel, which the reference kernel rounds otherwise.
    values = simulation.run([images], ["layer"])["layer"]
    otherwise = BuiltIn().product(replace(values, away=~values.away), act.grid)
    codes = BuiltIn().product(values, act.grid)
    assert np.all(np.any(codes != otherwise, axis=tuple(range(codes.ndim - 1))))
    assert np.sum(values.away) == away
    if isinstance(node, Dense):  # and values that are next to halves for one unit
        different = BuiltIn().product(replace(values, is_dense=False), act.grid)
        assert np.any(codes != different) == (len(values.scale) == 1)


@pytest.mark.skipif(not compiled_model.is_installed(), reason="ai-edge-litert is not installed")
@pytest.mark.parametrize(
    ("network", "options"),
    [
        (small_network, {"weights": "int4"}),
        (mobile_network, {"batch_size": 3}),
        (prepared_network, {"batch_size": None}),
    ],
)
def test_every_integer_of_a_compiled_model_is_that_of_the_simulation(tmp_path, network, options):
    model = network()
    report = to_tflite(model, tmp_path / "model.tflite", **options)
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 20), runtime="compiled_model")
    assert result.failures(keras_agreement=95.0) == []
    assert result.kernels.startswith("CompiledModel of LiteRT ")


def test_without_litert_parity_says_how_to_get_it(tmp_path, monkeypatch):
    model = small_network()
    report = to_tflite(model, tmp_path / "model.tflite", snap=False)
    monkeypatch.setattr(compiled_model, "_environment", compiled_model._environment.__wrapped__)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.environment", None)
    assert not compiled_model.is_installed()
    with pytest.raises(ExportError, match=r"run `pip install 'dlqat_tf\[litert\]'`"):
        parity(model, report.path, images_for(model, 2), runtime="compiled_model")


@pytest.mark.parametrize("runtime", ["builtin", MICRO])
def test_a_file_for_xnnpack_on_kernels_that_round_twice(tmp_path, runtime):
    """Every integer is as simulated there too, but some are not those of Keras."""
    model = small_network(channels=32)
    images = images_for(model, 64)
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images, runtime=runtime)
    assert [each.layer for each in result.layers if each.differing] == []
    assert result.agreement["simulation_file"] == 100.0
    assert result.logit_difference["keras_file"] > 1e-3
    on_xnnpack = parity(snapped, report.path, images)
    assert on_xnnpack.logit_difference["keras_file"] < 1e-4
    assert "with XNNPACK" in on_xnnpack.kernels


def test_the_runtime_is_by_default_what_the_file_was_exported_for(tmp_path):
    model = small_network()
    for kernels, expected in (("xnnpack", "with XNNPACK"), ("builtin", "without XNNPACK")):
        report = to_tflite(model, tmp_path / f"{kernels}.tflite", kernels=kernels)
        assert expected in parity(model, report.path, images_for(model, 2)).kernels


def test_runtimes_and_kernels_that_do_not_fit(tmp_path):
    model, path = small_network(), tmp_path / "model.tflite"
    with pytest.raises(ExportError, match="kernels to be one of xnnpack, builtin"):
        to_tflite(model, path, kernels="micro")
    to_lce(model, path)
    with pytest.raises(ExportError, match=r"Larq Compute Engine.*runtime=\"tflite\""):
        parity(model, path, images_for(model, 2), runtime="micro")
    with pytest.raises(
        ExportError, match=r"tflite, builtin, micro, compiled_model, web\. Received"
    ):
        parity(model, path, images_for(model, 2), runtime="arduino")


@pytest.mark.skipif(not is_installed(), reason="tflite-micro is not installed")
def test_what_tflite_micro_refuses(tmp_path):
    model = small_network()
    report = to_tflite(model, tmp_path / "any.tflite", batch_size=None)
    with pytest.raises(ExportError, match=r"any number of images .* batch_size=1"):
        parity(model, report.path, images_for(model, 2), runtime="micro")
    # In files for XNNPACK pixels go to a table by operations on uint8, which it does not know.
    model = prepared_network()
    report = to_tflite(model, tmp_path / "table.tflite")
    with pytest.raises(ExportError, match=r"TFLite Micro refuses .*table.tflite: .*UINT8.*GATHER"):
        parity(model, report.path, images_for(model, 2), runtime="micro")


def test_several_images_at_once_and_one_by_one(tmp_path):
    model = small_network()
    images = images_for(model, 5)
    logits = []
    for batch_size in (1, 3, None):
        path = tmp_path / f"{batch_size}.tflite"
        to_tflite(model, path, batch_size=batch_size)
        logits.append(runner(flatbuffer.read(path), 4)([images])[0])
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
