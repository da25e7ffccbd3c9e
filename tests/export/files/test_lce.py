import sys
from pathlib import Path

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf import SATWeights
from dlqat_tf.export import ExportError, parity, to_lce
from dlqat_tf.export.files import flatbuffer
from tests.export.networks import (
    convolution,
    depthwise,
    draw_network,
    images_for,
    randomize,
    randomize_norms,
    siamese_network,
    small_network,
)

layers = tf.keras.layers


@given(data=st.data())
@settings(max_examples=20)
def test_every_integer_of_the_file_is_that_of_the_simulation(data, tmp_path_factory):
    model = draw_network(data.draw, binary=True)
    path = tmp_path_factory.mktemp("random") / "model.tflite"
    to_lce(model, path, snap=False)
    report = parity(model, path, images_for(model, 16), batch_size=16)
    assert [layer for layer in report.layers if layer.differing] == []
    assert report.agreement["simulation_file"] == 100.0


def test_each_weight_plane_is_stored_once(tmp_path):
    model = randomize(dlqat_tf.resnet18(10, width=32, weight_bits=2, activation_bits=3))
    report = to_lce(model, tmp_path / "model.tflite")
    assert report.census.operators["LceBconv2d"] == 19 * 2 * 3
    hidden = report.census.layers[1:-1]
    assert {layer.stored_bits for layer in hidden} == {2}
    assert all(layer.bytes == layer.weights * 2 // 8 for layer in hidden)
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images_for(model, 4))
    assert result.first_diverging is None
    assert result.agreement["simulation_file"] == 100.0


@pytest.mark.parametrize("weight_bits", [1, 2])
def test_size_is_one_bit_a_weight_and_the_ends(tmp_path, weight_bits):
    model = dlqat_tf.resnet18(100, width=64, weight_bits=weight_bits, stem="imagenet")
    randomize_norms(model, np.random.default_rng(0))  # equal biases would be stored once
    report = to_lce(model, tmp_path / "model.tflite", snap=False)
    hidden = 4 * 9 * 64 * 64  # the first stage's four 3x3 convolutions
    for channels in (128, 256, 512):  # of four 3x3 and a 1x1 one, two have half the inputs
        hidden += (9 * 3.5 + 0.5) * channels**2
    ends = 7 * 7 * 3 * 64 + 512 * 100
    channels = 64 + 4 * 64 + 5 * (128 + 256 + 512) + 100
    # Hidden weights in bits, the ends in bytes, a float32 scale and bias for each channel.
    assert report.census.file_bytes < 1.05 * (hidden * weight_bits / 8 + ends + 8 * channels)


def test_equal_vectors_are_written_once(tmp_path):
    model = small_network(weight_bits=1)
    report = to_lce(model, tmp_path / "model.tflite", snap=False)
    content = flatbuffer.read(report.path)
    data = Path(report.path).read_bytes()
    options = {
        bytes(operator.customOptions)
        for operator in content.subgraphs[0].operators
        if operator.customOptions is not None and len(operator.customOptions)
    }
    assert report.census.operators["LceBconv2d"] == 2
    assert [data.count(each) for each in options] == [1]
    for buffer in content.buffers:  # kernels read constants in place
        if buffer.data is not None and len(buffer.data) > 32:
            assert data.index(bytes(buffer.data)) % 16 == 0


def test_convolutions_beyond_the_limit_stay_on_other_kernels(tmp_path):
    model = small_network(weight_bits=4, activation_bits=4)
    report = to_lce(model, tmp_path / "model.tflite")
    assert "LceBconv2d" not in report.census.operators
    assert "Raise plane_limit to 16" in report.warnings[0]
    report = to_lce(model, tmp_path / "model.tflite", plane_limit=16, force=True)
    assert not any("plane_limit" in each for each in report.warnings)
    assert report.census.operators["LceBconv2d"] == 16
    assert parity(model, report.path, images_for(model)).first_diverging is None


def resnet(**options):
    """A 1-bit ResNet-18 of 2-bit activations whose stages have 16 to 128 channels."""
    options = dict(width=16, weight_bits=1, activation_bits=2) | options
    return randomize(dlqat_tf.resnet18(4, input_shape=(16, 16, 3), **options))


def test_layers_run_where_they_are_cheaper_on_the_target(tmp_path):
    model = resnet(residual_bits=8)
    path = tmp_path / "model.tflite"
    everything = to_lce(model, path, snap=False)
    kernels = {each.layer: each.kernel for each in everything.placements}
    assert list(kernels.values()).count("planes") == 19
    report = to_lce(model, path, snap=False, force=True, target="dotprod")
    found = {each.layer: each for each in report.placements}
    # Sums of 3 x 3 x 128 products, the last stage's, are the only ones of 1152 or more; its image
    # has 2 x 2 pixels.
    planes = [name for name, each in found.items() if each.kernel == "planes"]
    assert len(planes) == 3
    assert report.census.operators["LceBconv2d"] == 2 * 3
    moved = [found[name] for name, kernel in kernels.items() if kernel == "planes"]
    others = [each for each in moved if each.kernel == "int8"]
    assert len(others) == 16
    assert any("16 input channels, planes pay from 32 on" in each.why for each in others)
    assert any("2 planes of 576 products, on dotprod" in each.why for each in others)
    text = "\n".join(str(each.why) for each in report.placements)
    assert "reads what comes in" in text  # the first convolution
    assert "not a convolution" in text  # the head
    result = parity(model, path, images_for(model, 4), batch_size=4)
    assert result.first_diverging is None
    assert result.other_constants == []
    assert result.agreement["simulation_file"] == 100.0


def test_layers_that_int8_cannot_run_stay_planes(tmp_path):
    """Nothing rounds the branches of these residual adds, and there are no calibration images."""
    report = to_lce(resnet(), tmp_path / "model.tflite", snap=False, target="dotprod")
    unrounded = [each for each in report.placements if "calibration images" in each.why]
    assert {each.kernel for each in unrounded} == {"planes"}
    assert len(unrounded) == 8 - 2 + 3  # ends of blocks without the last stage, shortcuts


def test_a_target_for_which_nothing_is_cheaper(tmp_path):
    with pytest.raises(ExportError, match=r"target to be one of armv8\.0"):
        to_lce(small_network(), tmp_path / "model.tflite", target="x86")
    assert list(tmp_path.iterdir()) == []
    report = to_lce(small_network(), tmp_path / "model.tflite", target="i8mm")
    assert "LceBconv2d" not in report.census.operators
    assert "no layer is cheaper as planes on i8mm cores" in report.warnings[0]


@pytest.mark.parametrize(("bits", "compared"), [(1, 1), (2, 3), (3, 7), (4, 0)])
def test_narrow_codes_are_packed_without_floats(tmp_path, bits, compared):
    model = small_network(weight_bits=1, activation_bits=bits, residual_bits=None, channels=40)
    report = to_lce(model, tmp_path / "model.tflite", snap=False)
    operators = report.census.operators
    # A threshold for each level, or a fold for each bit.
    assert operators.get("BITCAST", 0) == compared
    assert operators["LceQuantize"] == (compared or bits)
    assert operators.get("SUB", 0) == (0 if compared else bits)
    assert operators["LceBconv2d"] == bits
    assert "MUL" not in operators
    assert parity(model, report.path, images_for(model), batch_size=8).first_diverging is None


def test_a_convolution_and_its_shortcut_share_their_planes(tmp_path):
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 32, 3, weight_bits=8))
    branches = [convolution(x, 8, size, 2, weight_bits=1) for size in (3, 1)]
    outputs = layers.GlobalAveragePooling2D()(dlqat_tf.CGPACT(2, 2.0)(layers.Add()(branches)))
    report = to_lce(
        randomize(tf.keras.Model(inputs, outputs)), tmp_path / "model.tflite", snap=False
    )
    assert report.census.operators["LceBconv2d"] == 4
    assert report.census.operators["LceQuantize"] == 3


@pytest.mark.parametrize("kernel_quantizer", ["ste_sign", "magnitude_aware_sign"])
@pytest.mark.parametrize("pad_values", [0.0, 1.0])
def test_plain_binary_network(tmp_path, pad_values, kernel_quantizer):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same")(inputs))
    for name in ("first", "second"):
        y = lq.layers.QuantConv2D(
            32,
            3,
            padding="same",
            pad_values=pad_values,
            input_quantizer="ste_sign",
            kernel_quantizer=kernel_quantizer,
            kernel_constraint="weight_clip",
            use_bias=False,
            name=name,
        )(x)
        x = layers.Add()([layers.BatchNormalization()(layers.ReLU()(y)), x])
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    model = randomize(tf.keras.Model(inputs, outputs))
    report = to_lce(model, tmp_path / "model.tflite")
    assert report.census.operators["LceBconv2d"] == 2
    images = images_for(model, 32)
    result = parity(model, report.path, images)
    assert result.first_diverging is None
    assert result.agreement["keras_file"] == 100.0


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "pad_values", "corrected"),
    [
        ((3, 3), 3, 1, 0.0, False),
        ((2, 2), 3, 1, 0.0, True),
        ((1, 1), 3, 1, 0.0, True),
        ((5, 2), (3, 1), 1, 0.0, False),
        ((2, 5), (3, 1), 1, 0.0, True),
        ((5, 2), (1, 3), 1, 0.0, True),
        ((5, 5), 3, 2, 0.0, False),
        ((5, 4), 3, 2, 0.0, True),
        ((2, 2), 3, 1, 1.0, False),
    ],
)
@pytest.mark.parametrize("quantizer", ["ste_sign", SATWeights(2)])
def test_zeros_around_windows_larger_than_the_image(
    tmp_path, shape, kernel, dilation, pad_values, corrected, quantizer
):
    """LCE's correction of zero padding takes a window to stick out on one side only."""
    inputs = tf.keras.Input((*shape, 3))
    options = dict(padding="same", input_quantizer="ste_sign", kernel_quantizer="ste_sign")
    x = layers.BatchNormalization()(layers.Conv2D(8, 1)(inputs))
    x = lq.layers.QuantConv2D(32, 1, name="first", **options)(x)
    options |= dict(dilation_rate=dilation, pad_values=pad_values, kernel_quantizer=quantizer)
    x = layers.BatchNormalization()(lq.layers.QuantConv2D(8, kernel, name="second", **options)(x))
    model = tf.keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    report = to_lce(randomize(model), tmp_path / "model.tflite")
    bits = 1 if quantizer == "ste_sign" else 2
    assert report.census.operators["LceBconv2d"] == 1 + bits
    assert report.census.operators.get("ADD", 0) == corrected + bits - 1
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 32))
    assert result.first_diverging is None
    assert result.logit_difference["keras_file"] < 1e-4


def test_calibration_puts_the_rest_on_int8_kernels(tmp_path):
    inputs = tf.keras.Input((6, 6, 3))
    x = shortcut = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(x, 8, 3, weight_bits=1))
    x = dlqat_tf.CGPACT(2, 2.0)(layers.Add()([depthwise(x, 3, 1, "same", 1, 4), shortcut]))
    outputs = dlqat_tf.LinearHead(3)(layers.GlobalAveragePooling2D()(x))
    model = randomize(tf.keras.Model(inputs, outputs))
    images = images_for(model, 16)
    for name, calibration, kernel in (("float", None, "float32"), ("int8", images, "int8")):
        path = tmp_path / f"{name}.tflite"
        report = to_lce(model, path, calibration=calibration, snap=False)
        assert report.census.layers[2].kernel == f"DEPTHWISE_CONV_2D {kernel}"
        assert parity(model, path, images).agreement["simulation_file"] == 100.0
    assert len(report.calibrated) == 1


def test_a_missing_engine_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "larq_compute_engine.tflite.python.interpreter", None)
    with pytest.raises(ExportError, match="pip install larq-compute-engine"):
        to_lce(small_network(), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_planes_of_codes_are_their_bits():
    from dlqat_tf.export.integer.binary import planes
    from dlqat_tf.export.integer.nodes import Convolution

    codes = np.array([-3, -1, 1, 3], np.int16).reshape(1, 1, 1, 4)
    node = Convolution(name="x", weights=codes, step=np.ones(4), bias=np.zeros(4), bits=2)
    low, high = (plane.ravel().tolist() for plane in planes(node))
    assert low == [-1, 1, -1, 1]
    assert high == [-1, -1, 1, 1]


@pytest.mark.parametrize("nested", [False, True])
def test_two_images_through_one_tower(tmp_path, nested):
    model = siamese_network(nested=nested, shapes=((6, 6, 3), (8, 5, 3)), channels=32)
    report = to_lce(model, tmp_path / "model.tflite")
    assert report.census.operators["LceBconv2d"] == 2 * 2 * 2
    layer_bytes = {layer.layer.split("/")[-1]: layer.bytes for layer in report.census.layers}
    assert layer_bytes["second"] == 3 * 3 * 32 * 32 * 2 // 8
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 32))
    assert result.first_diverging is None
    assert result.agreement["simulation_file"] == 100.0


@pytest.mark.parametrize(
    "body",
    [
        [layers.Conv2D(8, 3, groups=2, activation="relu"), layers.GlobalAveragePooling2D()],
        [layers.DepthwiseConv2D(3, activation="relu"), layers.GlobalAveragePooling2D()],
    ],
)
def test_networks_without_a_binary_form_are_int8_files(body, tmp_path):
    first = layers.Conv2D(8, 3, activation="relu")
    source = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), first, *body, layers.Dense(4)])
    model, _ = dlqat_tf.quantize(source, 1, 2)
    report = to_lce(model, tmp_path / "model.tflite")
    assert [each.kernel.split()[-1] for each in report.census.layers] == ["int8", "int8", "float32"]
    assert "nothing runs on binary kernels" in report.warnings[0]
    assert "plane_limit" not in report.warnings[0]
    assert parity(model, report.path, images_for(model, 8)).first_diverging is None


def of_mean_size(kernel):
    return lq.math.sign(kernel) * tf.reduce_mean(tf.abs(kernel))


@pytest.mark.parametrize(
    ("input_quantizer", "kernel_quantizer", "planes"),
    [
        ("ste_sign", "ste_sign", 1),
        (lq.quantizers.approx_sign, lq.quantizers.ste_sign, 1),
        (lq.quantizers.DoReFa(2), "magnitude_aware_sign", 2),
        (lq.quantizers.DoReFa(2), lq.quantizers.DoReFa(2, mode="weights"), 4),
        ("ste_heaviside", "ste_sign", 1),
        (lq.quantizers.ste_heaviside, "ste_sign", 1),
        ("ste_sign", of_mean_size, 1),
        ("ste_tern", "ste_sign", 0),
        ("ste_sign", "ste_tern", 0),
    ],
)
def test_dense_layers_and_convolutions_of_larq(tmp_path, input_quantizer, kernel_quantizer, planes):
    options = dict(input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer)
    inputs = tf.keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs))
    x = lq.layers.QuantConv2D(32, 3, use_bias=False, **options)(x)
    x = layers.Flatten()(layers.BatchNormalization()(x))
    for units in (24, 16):
        x = layers.BatchNormalization()(lq.layers.QuantDense(units, **options)(x))
    model = randomize(tf.keras.Model(inputs, layers.Dense(4)(x)))
    # Larq makes something else of its own functions when it copies or loads a model.
    snap = not {lq.quantizers.approx_sign, lq.quantizers.ste_heaviside} & {input_quantizer}
    report = to_lce(model, tmp_path / "model.tflite", snap=snap)
    assert report.census.operators.get("LceBconv2d", 0) == 3 * planes
    if snap:
        with tf.keras.utils.custom_object_scope({"of_mean_size": of_mean_size}):
            model = tf.keras.models.load_model(report.snapped)
    result = parity(model, report.path, images_for(model, 32))
    assert result.first_diverging is None
    assert result.agreement["simulation_file"] == 100.0
    assert result.logit_difference["keras_file"] < 1e-4


@pytest.mark.parametrize("pad_values", [0.0, 1.0])
def test_relu_and_norm_are_part_of_a_binary_convolution(tmp_path, pad_values):
    """In the order of QuickNet. LCE's kernel cannot clip what it corrects for zeros around."""
    inputs = tf.keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same")(inputs))
    y = lq.layers.QuantConv2D(
        32,
        3,
        padding="same",
        pad_values=pad_values,
        activation="relu",
        input_quantizer="ste_sign",
        kernel_quantizer="ste_sign",
        use_bias=False,
    )(x)
    x = layers.BatchNormalization()(y) + x
    model = tf.keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    randomize(model)
    assert min(model.layers[4].gamma.numpy()) < 0  # which no step can hold
    report = to_lce(model, tmp_path / "model.tflite")
    assert report.census.operators.get("MUL", 0) == (not pad_values)
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 32))
    assert result.first_diverging is None
    assert result.logit_difference["keras_file"] < 1e-5


def test_lambdas_that_change_nothing_are_no_islands(tmp_path):
    inputs = tf.keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(32, 3, name="first")(inputs))
    x = layers.Lambda(lambda x: x)(x)
    x = lq.layers.QuantConv2D(32, 3, input_quantizer="ste_sign", kernel_quantizer="ste_sign")(x)
    model = tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)))
    report = to_lce(randomize(model), tmp_path / "model.tflite")
    assert [each.layers for each in report.census.islands] == [["first"]]  # not rounded
    snapped = tf.keras.models.load_model(report.snapped, safe_mode=False)
    assert parity(snapped, report.path, images_for(model, 8)).agreement["keras_file"] == 100.0
