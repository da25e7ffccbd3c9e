import json
import os
import re
import zipfile

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf._host import replacing
from dlqat_tf._litert import tflite_interpreter
from dlqat_tf.export import ExportError, parity, to_lce, to_tflite
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.runtimes.host import runner
from tests.export.networks import (
    convolution,
    draw_network,
    images_for,
    quantized,
    randomize,
    siamese_network,
    small_network,
)

layers = tf.keras.layers


@given(data=st.data())
@settings(max_examples=25)
def test_every_integer_of_the_file_is_that_of_the_simulation(data, tmp_path_factory):
    model = draw_network(data.draw)
    path = tmp_path_factory.mktemp("random") / "model.tflite"
    to_tflite(model, path, snap=False)
    report = parity(model, path, images_for(model, 16), batch_size=16)
    assert [layer for layer in report.layers if layer.differing] == []
    assert report.agreement["simulation_file"] == 100.0


def test_resnet_has_only_the_expected_operations(tmp_path):
    model = dlqat_tf.resnet18(10, width=8, residual_bits=8, stem="imagenet")
    report = to_tflite(model, tmp_path / "model.tflite")
    assert report.census.operators == {
        "QUANTIZE": 1,  # uint8 pixels
        "CONV_2D": 20,
        "MAX_POOL_2D": 1,
        "ADD": 8,
        "DEQUANTIZE": 2,  # the features, and once at load the head's 8-bit weights
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }
    assert abs(report.census.predicted_bytes / report.census.file_bytes - 1) < 0.05
    (line,) = (each for each in report.census.tables() if str(each).startswith("constants "))
    parts = [int(each.replace(",", "")) for each in re.findall(r"([\d,]+) bytes", line)]
    assert sum(parts) == report.census.file_bytes
    assert [layer.declared_bits for layer in report.census.layers] == [8, *[1] * 19, 8]
    with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED) as app:
        app.write(report.path)
        (entry,) = app.infolist()
    assert report.census.deflated_bytes == entry.compress_size < report.census.file_bytes / 2


def test_snapped_model_agrees_with_the_file_on_every_image(tmp_path):
    model = randomize(dlqat_tf.resnet18(10, width=8, residual_bits=8, head="gml"))
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    agreement = parity(snapped, report.path, images_for(model, 64))
    assert agreement.failures(keras_agreement=99.9) == []
    assert 0 < max(shift.steps for shift in report.shifts) < 0.5


@pytest.mark.parametrize("input_type", ["uint8", tf.uint8, np.int8, "float32", tf.float32])
def test_input_types_give_the_same_logits(tmp_path, input_type):
    model = dlqat_tf.resnet18(10, width=4, residual_bits=8)
    path = tmp_path / "model.tflite"
    to_tflite(model, path, input_type=input_type, snap=False)
    assert parity(model, path, images_for(model, 4)).agreement["simulation_file"] == 100.0


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [({}, 1), ({"batch_size": np.int64(3)}, 3), ({"batch_size": None}, None)],
)
@pytest.mark.parametrize("write", [to_tflite, to_lce])
def test_batch_sizes(tmp_path, write, batch_size, expected):
    model = small_network()
    report = write(model, tmp_path / "model.tflite", **batch_size)
    content = flatbuffer.read(report.path)
    graph = content.subgraphs[0]
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        if expected is None:
            assert tensor.shapeSignature[0] == -1
        else:
            assert tensor.shapeSignature is None
            assert tensor.shape[0] == expected
    assert report.census.batch_size == expected
    assert json.loads(report.to_json())["census"]["batch_size"] == expected
    # 6 x 6 bytes of 8 channels, of both inputs of the add and of its output; of one image.
    if write is to_tflite:
        assert report.census.peak_activation_bytes == 36 * 8 * 5
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 7))  # no multiple of 3
    assert result.failures() == []
    assert result.layers[0].values == 7 * 36 * 8


def test_two_batch_sizes_give_the_same_logits(tmp_path):
    model, logits = small_network(), []
    images = images_for(model, 4)
    for batch_size in (1, 4):
        path = tmp_path / f"{batch_size}.tflite"
        to_tflite(model, path, batch_size=batch_size, snap=False)
        logits.append(runner(flatbuffer.read(path), 2)([images])[0])
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0, "1"])
def test_batch_sizes_that_are_none(tmp_path, batch_size):
    for write in (to_tflite, to_lce):
        with pytest.raises(ExportError, match="batch_size to be a positive integer"):
            write("not looked at", tmp_path / "model.tflite", batch_size=batch_size)


def growing(kind=layers.Conv2DTranspose, **options):
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 4, 3, weight_bits=8))
    x = kind(4, 3, name="up", **options)(x)
    x = dlqat_tf.CGPACT(2, 2.0)(x)
    return tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x)))


@pytest.mark.parametrize("batch_size", [2, None])
def test_parts_for_one_image_want_files_for_one_image(tmp_path, batch_size):
    model = growing(output_padding=0)
    with pytest.raises(ExportError, match=r"for up take one image at once: .* batch_size=1\."):
        to_tflite(model, tmp_path / "model.tflite", batch_size=batch_size)
    assert to_tflite(model, tmp_path / "model.tflite").census.batch_size == 1


def test_transposed_convolutions_are_for_a_known_number_of_images(tmp_path):
    model, path = growing(), tmp_path / "model.tflite"
    report = to_tflite(model, path, batch_size=3, snap=False)
    assert report.census.batch_size == 3
    assert parity(model, path, images_for(model, 5)).first_diverging is None
    with pytest.raises(ExportError, match=r"'up', are written for .* batch_size=None\."):
        to_tflite(model, tmp_path / "any.tflite", batch_size=None)


@pytest.mark.parametrize("write", [to_tflite, to_lce])
def test_transposed_convolutions_are_among_the_layers(tmp_path, write):
    quantizer = dlqat_tf.quantizers.TransposedWeights(dlqat_tf.SATWeights(2))
    model = growing(lq.layers.QuantConv2DTranspose, kernel_quantizer=quantizer)
    report = write(model, tmp_path / "model.tflite")
    (layer,) = (each for each in report.census.layers if each.layer == "up")
    assert (layer.declared_bits, layer.stored_bits) == (2, 8)
    assert layer.weights == layer.bytes == 3 * 3 * 4 * 4
    summarized = {each.layer: each for each in dlqat_tf.summary(model).layers}
    assert summarized["up"].bytes["int8"] == layer.bytes


def test_int4_is_half_the_size_and_simulated_exactly(tmp_path):
    model = randomize(dlqat_tf.resnet18(10, width=16, weight_bits=3, residual_bits=8))
    path = tmp_path / "model.tflite"
    report = to_tflite(model, path, weights="int4", snap=False)
    assert {layer.stored_bits for layer in report.census.layers[1:-1]} == {4}
    assert any("outside XNNPACK" in warning for warning in report.census.warnings)
    result = parity(model, path, images_for(model, 16))
    assert result.first_diverging is None
    assert result.agreement["simulation_file"] == 100.0


def test_int4_refuses_weights_that_do_not_fit(tmp_path):
    model = dlqat_tf.resnet18(10, width=4, weight_bits=4, residual_bits=8)
    with pytest.raises(ExportError, match="codes from -7 to 7"):
        to_tflite(model, tmp_path / "model.tflite", weights="int4")
    assert list(tmp_path.iterdir()) == []


def test_an_add_without_ranges_needs_images_and_says_both_cures(tmp_path):
    model = randomize(dlqat_tf.resnet18(10, width=4))
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"stage1_block1_2_conv.*residual_bits=8.*calibration"):
        to_tflite(model, path)
    images = images_for(model, 8)
    report = to_tflite(model, path, calibration=images)
    assert len(report.calibrated) == 11
    assert parity(model, path, images).agreement["simulation_file"] == 100.0


def test_logits_are_float_and_do_not_tie(tmp_path):
    model = randomize(dlqat_tf.resnet18(100, width=4, residual_bits=8))
    path = tmp_path / "model.tflite"
    to_tflite(model, path, snap=False)
    interpreter = tflite_interpreter(path)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images_for(model, 1))
    interpreter.invoke()
    logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert logits.dtype == np.float32
    assert len(np.unique(logits)) == 100


def test_float_convolutions_stay_float_and_are_named(tmp_path):
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(2, 1.0)(layers.Conv2D(8, 3, name="plain")(inputs))
    x = dlqat_tf.CGPACT(2, 1.0)(convolution(x, 8, 3, weight_bits=1))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x)))
    report = to_tflite(model, tmp_path / "model.tflite")
    assert report.census.layers[0].stored_bits == 32
    assert any(warning.startswith("plain: runs in float32") for warning in report.census.warnings)
    assert parity(model, report.path, images_for(model)).first_diverging is None


def test_existing_files_are_kept_unless_forced(tmp_path):
    model, path = dlqat_tf.resnet18(10, width=4, residual_bits=8), tmp_path / "model.tflite"
    path.write_text("mine")
    with pytest.raises(ExportError, match="exists"):
        to_tflite(model, path)
    assert path.read_text() == "mine"
    to_tflite(model, path, force=True)
    assert sorted(os.listdir(tmp_path)) == ["model.snapped.keras", "model.tflite"]


def test_a_failed_export_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ExportError, match="No space"):
        to_tflite(dlqat_tf.resnet18(10, width=4, residual_bits=8), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_replace_one_file_replaces_none(tmp_path, monkeypatch):
    path, replace = tmp_path / "model.tflite", os.replace
    for name in ("model.tflite", "model.snapped.keras"):
        (tmp_path / name).write_text("old")

    def refused(source, target):
        if str(target).endswith(".keras"):
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(ExportError, match="not permitted"):
        to_tflite(dlqat_tf.resnet18(10, width=4, residual_bits=8), path, force=True)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "model.tflite": "old",
        "model.snapped.keras": "old",
    }


def test_what_a_killed_export_left_is_gone_after_the_next(tmp_path):
    path = tmp_path / "model.tflite"
    with replacing(path) as first, replacing(tmp_path / "model.snapped.keras") as second:
        names = first.name, second.name
    for name in names:  # as of a process that is not there any more
        (tmp_path / name).write_text("half")
    path.unlink()
    (tmp_path / "model.snapped.keras").unlink()
    to_tflite(dlqat_tf.resnet18(10, width=4, residual_bits=8), path)
    assert sorted(os.listdir(tmp_path)) == ["model.snapped.keras", "model.tflite"]


def test_a_model_that_keras_cannot_save_has_no_snapped_one(tmp_path):
    inputs = tf.keras.Input((4, 4, 3))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 4, 1, weight_bits=2))
    x = layers.GlobalAveragePooling2D()(x[..., ::2, :])  # dlqat_tf.quantize writes ... in full
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(2)(x))
    with pytest.raises(ExportError, match=r"cannot save .*Ellipsis.*or export with snap=False\."):
        to_tflite(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []
    to_tflite(model, tmp_path / "model.tflite", snap=False)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    model = dlqat_tf.resnet18(10, width=4, residual_bits=8)
    with pytest.raises(ExportError, match=r"a folder that can be written to, received .*/file"):
        to_tflite(model, tmp_path / "file" / "model.tflite")


@pytest.mark.parametrize("path", [None, 3, [], b"model.tflite"])
@pytest.mark.parametrize("write", [to_tflite, to_lce])
def test_what_is_no_path(write, path):
    with pytest.raises(ExportError, match=f"the path of .*Received: {type(path).__name__}"):
        write("not looked at", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_type": "int16"}, "input_type"),
        ({"input_type": tf.int16}, "input_type='int16'"),
        ({"input_type": object()}, "input_type=<object"),
        ({"calibration": iter([])}, "Received: list_iterator"),
        ({"weights": "int2"}, "weights"),
        ({"weights": np.array(["int8", "int4"])}, "weights to be one of int8, int4"),
        ({"snap": "no"}, "snap to be True or False. Received: snap='no'"),
        ({"snap": None}, "snap to be True or False. Received: snap=None"),
        ({"force": "false"}, "force to be True or False. Received: force='false'"),
        ({"outputs": ["logits"]}, r'"logits", "probabilities", .*outputs=\[.logits.\]'),
        ({"calibration": np.full((2, 32, 32, 3), "200")}, r"float ones in .*Received: <U3\."),
        ({"calibration": np.zeros((2, 5, 5, 3), np.uint8)}, "images of shape"),
        ({"calibration": np.full((2, 32, 32, 3), 200.0)}, "float ones in"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ExportError, match=message):
        to_tflite(dlqat_tf.resnet18(10, width=4), tmp_path / "model.tflite", **arguments)


def test_report_is_json(tmp_path):
    report = to_tflite(
        dlqat_tf.resnet18(10, width=4, residual_bits=8), tmp_path / "m.tflite", snap=False
    )
    assert json.loads(report.to_json())["census"]["operators"]["CONV_2D"] == 20
    report.print()


def test_collapsed_gains_and_ranges(tmp_path):
    model = randomize(dlqat_tf.resnet18(10, width=8, residual_bits=8))
    gamma = model.get_layer("stage2_block1_1_bn").gamma
    values = gamma.numpy()
    values[:3] = [0.0, 1e-20, -1e-20]  # constant channels
    gamma.assign(values)
    model.get_layer("stage3_block1_1_act").alpha.assign(1e-3)
    path = tmp_path / "model.tflite"
    to_tflite(model, path, snap=False)
    result = parity(model, path, images_for(model, 8))
    assert result.first_diverging is None


def test_raw_pixels_and_features_side_by_side(tmp_path):
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(2, 1.0)(convolution(layers.Rescaling(1 / 255)(inputs), 8, 3, weight_bits=2))
    flat = layers.Concatenate()([layers.Flatten()(x), layers.GlobalAveragePooling2D()(x)])
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(flat)))
    report = to_tflite(model, tmp_path / "model.tflite")
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images_for(model, 32))
    assert result.failures() == []


@pytest.mark.parametrize("merge", [layers.Concatenate, layers.Add])
@pytest.mark.parametrize("nested", [False, True])
def test_two_images_through_one_tower(tmp_path, merge, nested):
    model = siamese_network(merge, nested=nested)
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 64))
    assert result.failures(keras_agreement=100.0) == []
    assert len(report.shifts) == 4
    # The weights of both calls are stored once.
    layer_bytes = {layer.layer.split("/")[-1]: layer.bytes for layer in report.census.layers}
    assert (layer_bytes["first"], layer_bytes["second"]) == (3 * 3 * 3 * 8, 3 * 3 * 8 * 8)
    assert sum(report.census.constants.values()) < 1.5 * (3 * 3 * 3 * 8 + 3 * 3 * 8 * 8)


@pytest.mark.parametrize("input_type", ["uint8", "int8", "float32"])
def test_images_of_unequal_size_one_of_them_raw(tmp_path, input_type):
    left, right = tf.keras.Input((6, 6, 3), name="left"), tf.keras.Input((5, 8, 1), name="right")
    parts = [
        dlqat_tf.CGPACT(2, 1.0)(convolution(x, 4, 3, weight_bits=2))
        for x in (left, layers.Rescaling(1 / 255)(right))
    ]
    flat = layers.Concatenate()([layers.GlobalAveragePooling2D()(each) for each in parts])
    # The order of the model's inputs is not the one in which the layers read them.
    model = randomize(tf.keras.Model([right, left], dlqat_tf.LinearHead(3)(flat)))
    report = to_tflite(model, tmp_path / "model.tflite", input_type=input_type)
    details = tflite_interpreter(report.path).get_input_details()
    assert [each["name"] for each in details] == ["right", "left"]
    assert {each["dtype"] for each in details} == {np.dtype(input_type).type}
    snapped = tf.keras.models.load_model(report.snapped)
    assert parity(snapped, report.path, images_for(model, 32)).failures() == []


def test_calibration_takes_an_array_for_each_input(tmp_path):
    inputs = [tf.keras.Input((6, 6, 3), name=name) for name in ("left", "right")]
    branches = [convolution(x, 8, 3, weight_bits=8) for x in inputs]
    x = dlqat_tf.CGPACT(2, 2.0)(layers.Add()(branches))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(layers.Flatten()(x))))
    left, right = images_for(model, 8)
    reports = [
        to_tflite(model, tmp_path / "model.tflite", calibration=images, force=True)
        for images in ([left, right], {"right": right, "left": left}, [right, left])
    ]
    assert len(reports[0].calibrated) == 2
    assert reports[0].calibrated == reports[1].calibrated != reports[2].calibrated
    assert parity(model, reports[0].path, [left, right]).agreement["simulation_file"] == 100.0
    with pytest.raises(ExportError, match="each input, left, right"):
        to_tflite(model, tmp_path / "model.tflite", calibration=left, force=True)


def _classifier(*after):
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(4, 9.0)(convolution(inputs, 8, 3, weight_bits=2))
    for layer in after:
        x = layer(x)
    return randomize(tf.keras.Model(inputs, x))


def _pointwise(filters):
    return lq.layers.QuantConv2D(filters, 1, kernel_quantizer=dlqat_tf.SATWeights(8))


@pytest.mark.parametrize(
    "after",
    [
        [layers.GlobalMaxPooling2D(), dlqat_tf.LinearHead(5)],
        [layers.GlobalAveragePooling2D(keepdims=True), _pointwise(5), layers.Reshape((5,))],
        [
            layers.GlobalAveragePooling2D(),
            layers.Reshape((1, 1, 8)),
            _pointwise(5),
            layers.Flatten(),
        ],
        [layers.ReLU(6.0), layers.Flatten(), dlqat_tf.LinearHead(5)],
        [
            quantized(8, 2),
            layers.ReLU(6.0),
            dlqat_tf.CGPACT(4, 9.0),
            layers.Flatten(),
            dlqat_tf.LinearHead(5),
        ],
        [
            lq.layers.QuantDense(5, kernel_quantizer=dlqat_tf.SATWeights(2)),
            dlqat_tf.CGPACT(2, 2.0),
            layers.Flatten(),
            dlqat_tf.LinearHead(5),
        ],
    ],
    ids=["global_max", "fully_convolutional", "reshape", "relu6", "relu6_grid", "dense_on_image"],
)
def test_ends_of_classifiers(tmp_path, after):
    model = _classifier(*after)
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    assert parity(snapped, report.path, images_for(model, 32)).failures() == []
