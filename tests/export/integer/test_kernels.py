"""Layers with two kernels, and those on sequences, written by hand with Larq."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, LQNetWeights, SATWeights
from dlqat_tf.export import ExportError, lower, parity, to_lce, to_tflite
from dlqat_tf.export.integer.nodes import Convolution, Pad, Sign
from dlqat_tf.quantizers import DepthwiseWeights
from tests.export.networks import randomize

layers = tf.keras.layers
RNG = np.random.default_rng(0)
SEQUENCES = RNG.random((48, 16, 4)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (48, 8, 8, 4)).astype(np.uint8)


def network(*kinds, of=SEQUENCES):
    """Return the layers, batch norm and two bits behind each."""
    x = inputs = tf.keras.Input(of.shape[1:])
    x = CGPACT(8, 1.0)(x) if of is SEQUENCES else x
    for kind in kinds:
        x = CGPACT(2, 2.0)(layers.BatchNormalization()(kind(x)))
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x))))


def convolved(bits, **options):
    return lq.layers.QuantConv1D(
        8, 3, kernel_quantizer=SATWeights(bits), use_bias=False, **{"padding": "same", **options}
    )


def separable(kind, depthwise, pointwise, **options):
    settings = dict(depthwise_quantizer=depthwise, pointwise_quantizer=pointwise, name="separable")
    return kind(8, 3, padding="same", **settings, **options)


def check(model, data, path, write=to_tflite, **options):
    report = write(model, path, **options)
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, path, data, trained=model)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100.0
    return report


@pytest.mark.parametrize("write", [to_tflite, to_lce])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"dilation_rate": 2},
        {"padding": "valid"},
        {"padding": "causal", "dilation_rate": 2},
        {"groups": 2},
    ],
    ids=str,
)
def test_convolutions_on_sequences(tmp_path, write, options):
    model = network(convolved(8), convolved(1, **options))
    report = check(model, SEQUENCES, tmp_path / "model.tflite", write)
    assert [each.declared_bits for each in report.census.layers] == [8, 1, 8]


def test_causal_padding_is_before_the_past():
    nodes = lower(network(convolved(8, padding="causal")))
    assert [node.amounts for node in nodes if isinstance(node, Pad)] == [((0, 0), (2, 0))]


def test_signs_of_sequences_run_on_binary_kernels(tmp_path):
    binary = lq.layers.QuantConv1D(
        8,
        3,
        padding="same",
        pad_values=1,
        use_bias=False,
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",
    )
    inputs = tf.keras.Input(SEQUENCES.shape[1:])
    x = layers.BatchNormalization()(convolved(8)(CGPACT(8, 1.0)(inputs)))
    x = CGPACT(8, 2.0)(layers.BatchNormalization()(binary(x)))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x)))
    report = check(randomize(model), SEQUENCES, tmp_path / "model.tflite", to_lce)
    assert report.census.operators["LceBconv2d"] == 1
    nodes = {node.name: node for node in lower(model)}
    (sign,) = (node for node in nodes.values() if isinstance(node, Sign))
    assert isinstance(nodes[sign.inputs[0]], Convolution)  # no Reshape is between


@pytest.mark.parametrize("write", [to_tflite, to_lce])
@pytest.mark.parametrize("strides", [1, 2])
def test_separable_layers_are_two_convolutions(tmp_path, write, strides):
    """Nothing rounds what is between: int8 kernels take its range from images, LCE needs none."""
    first = lq.layers.QuantConv2D(4, 3, padding="same", kernel_quantizer=SATWeights(8))
    kind = lq.layers.QuantSeparableConv2D
    pair = separable(kind, SATWeights(3), SATWeights(1), strides=strides, depth_multiplier=2)
    model, path = network(first, pair, of=IMAGES), tmp_path / "model.tflite"
    if write is to_tflite:
        with pytest.raises(
            ExportError, match=r"'separable/depthwise'.*1x1 QuantConv2D.*calibration"
        ):
            to_tflite(model, path)
    report = write(model, path, calibration=IMAGES)
    found = parity(tf.keras.models.load_model(report.snapped), path, IMAGES, trained=model)
    assert found.first_diverging is None
    bits = {each.layer: (each.declared_bits, each.weights) for each in report.census.layers}
    assert bits["separable/depthwise"] == (3, 3 * 3 * 4 * 2)
    assert bits["separable"] == (1, 4 * 2 * 8)
    if write is to_tflite:
        summarized = {each.layer: each for each in dlqat_tf.summary(model).layers}
        assert summarized["separable"].bytes["int8"] == 3 * 3 * 4 * 2 + 4 * 2 * 8


def test_separable_layers_without_ranges_are_exact_in_float(tmp_path):
    of_images = separable(lq.layers.QuantSeparableConv2D, SATWeights(3), SATWeights(1))
    of_sequences = separable(lq.layers.QuantSeparableConv1D, SATWeights(3), SATWeights(1))
    for name, pair, data in (("2d", of_images, IMAGES), ("1d", of_sequences, SEQUENCES)):
        check(network(pair, of=data), data, tmp_path / f"{name}.tflite", to_lce)


@pytest.mark.parametrize("kind", [lq.layers.QuantSeparableConv1D, lq.layers.QuantSeparableConv2D])
def test_free_levels_of_both_kernels_are_snapped(tmp_path, kind):
    quantizers = DepthwiseWeights(LQNetWeights(2)), LQNetWeights(2)
    data = SEQUENCES if kind is lq.layers.QuantSeparableConv1D else IMAGES
    model, path = network(separable(kind, *quantizers), of=data), tmp_path / "model.tflite"
    report = to_tflite(model, path, calibration=data)
    assert [each.layer for each in report.levels] == ["separable/depthwise", "separable"]
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, path, data, trained=model)
    assert found.first_diverging is None
    assert not found.other_constants


def test_free_levels_on_sequences_are_snapped(tmp_path):
    quantized = lq.layers.QuantConv1D(8, 3, use_bias=False, kernel_quantizer=LQNetWeights(2))
    report = check(network(convolved(8), quantized), SEQUENCES, tmp_path / "model.tflite")
    assert [each.layer for each in report.levels] == [quantized.name]


@pytest.mark.parametrize(
    ("kind", "options", "advice"),
    [
        (lq.layers.QuantLocallyConnected2D, {}, "as Keras's LocallyConnected2D, it runs in float"),
        (
            lq.layers.QuantConv2DTranspose,
            {"strides": 2, "output_padding": 1},
            "without output_padding and dilation",
        ),
    ],
)
def test_what_helps_where_there_is_no_integer_form(tmp_path, kind, options, advice):
    layer = kind(4, 3, kernel_quantizer=SATWeights(2), **options)
    with pytest.raises(ExportError, match=f"holds quantizers.*{advice}"):
        to_tflite(network(layer, of=IMAGES), tmp_path / "model.tflite")
