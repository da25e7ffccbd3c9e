import dataclasses
import json
import re

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, SATWeights
from dlqat_tf.export import ExportError, census, parity, to_lce, to_tflite
from dlqat_tf.export.files import flatbuffer
from tests.export.networks import (
    convolution,
    images_for,
    randomize,
    siamese_network,
    small_network,
)

layers = tf.keras.layers


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = small_network()
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    return model, to_tflite(model, path)


def test_report(exported):
    model, report = exported
    images = images_for(model, 20)
    snapped = tf.keras.models.load_model(report.snapped)
    labels = snapped(images.astype(np.float32) / np.float32(255)).numpy().argmax(1)
    result = parity(snapped, report.path, images, labels)
    assert result.top1 == {"keras": 100.0, "simulation": 100.0, "file": 100.0}
    assert result.agreement["keras_file"] == 100.0
    assert [each.layer for each in result.layers] == [
        "first_act",
        "second_residual",
        "sum_act",
        "features",
        "head",
    ]
    assert result.layers[0].values == 16 * 6 * 6 * 8
    assert result.failures() == []
    assert json.loads(result.to_json())["first_diverging"] is None
    result.print()


def test_trained_snapped_and_file(exported):
    model, report = exported
    images = images_for(model, 20)
    trained, snapped = (
        tf.keras.models.clone_model(model),
        tf.keras.models.load_model(report.snapped),
    )
    trained.set_weights(model.get_weights())
    labels = snapped(images.astype(np.float32) / np.float32(255)).numpy().argmax(1)
    result = parity(snapped, report.path, images, labels, trained=trained)
    assert result.top1 == dict.fromkeys(["trained", "keras", "simulation", "file"], 100.0)
    assert result.agreement["trained_file"] == result.agreement["trained_keras"] == 100.0
    assert result.failures() == []
    # The snapped model and the file know nothing of what this one says: always class 0.
    bias = trained.get_layer("head").bias
    bias.assign([1e3, 0, 0, 0, 0])
    result = parity(snapped, report.path, images, labels, trained=trained)
    share = 100.0 * np.mean(labels == 0)
    assert result.top1["trained"] == result.agreement["trained_file"] == pytest.approx(share)
    assert result.agreement["keras_file"] == 100.0
    assert result.other_constants == ["head/bias"]
    assert [failure.split(",")[0] for failure in result.failures()] == [
        f"trained and file agree on {share:.2f} %",
        "1 constants of the file are not those of the model",
        f"accuracy is {share:.2f} % as trained and 100.00 % in the file",
    ]
    result.print()


def test_a_model_trained_under_16_bits_and_its_file(tmp_path):
    """bfloat16 rounds sums to 8 bits, across the borders that the file's codes have."""
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model, same = small_network(channels=32), small_network(channels=32)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    images = images_for(model, 128)
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images, trained=model)
    assert result.agreement["keras_file"] == result.agreement["trained_file"] == 100.0
    assert result.logit_difference["keras_file"] < 1e-4
    assert parity(model, report.path, images).agreement["keras_file"] == 100.0
    same.set_weights(snapped.get_weights())  # under the policy
    assert parity(same, report.path, images).logit_difference["keras_file"] < 1e-4
    # As it is, it computes other logits.
    logits = [each(images / 255).numpy() for each in (model, snapped)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize("head", [dlqat_tf.GaussianMixtureHead, dlqat_tf.CosineHead])
def test_what_a_file_drops_of_logits_is_no_difference(tmp_path, head):
    """Distances have no common offset in the file, cosines no common factor."""
    body = small_network()
    logits = head(5)(body.get_layer("features").output)
    model = tf.keras.Model(body.inputs, logits)
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 16))
    assert result.logit_difference["keras_file"] < 1e-4


def test_float_images_are_the_same_images(exported):
    model, report = exported
    images = images_for(model, 5)
    first = parity(model, report.path, images)
    second = parity(model, report.path, images / 255.0)
    assert first == second


def test_the_layer_that_diverges_is_named(exported, tmp_path):
    model, report = exported
    content = flatbuffer.read(report.path)
    names = [tensor.name.decode() for tensor in content.subgraphs[0].tensors]
    weights = content.subgraphs[0].tensors[names.index("second/weights")]
    buffer = content.buffers[weights.buffer]
    buffer.data = (-buffer.data.view(np.int8)).view(np.uint8)
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(flatbuffer.packed(content))
    result = parity(model, changed, images_for(model, 8))
    assert result.first_diverging == "second_residual"
    # Given the file's own input, the layers after it are right.
    assert sum(each.differing > 0 for each in result.layers) == 1
    assert any("second_residual" in failure for failure in result.failures())


def test_a_difference_of_one_code_and_one_of_a_float(exported, tmp_path):
    model, report = exported
    content = flatbuffer.read(report.path)
    tensors = {tensor.name.decode(): tensor for tensor in content.subgraphs[0].tensors}

    def values(name, dtype):
        buffer = content.buffers[tensors[name].buffer]
        buffer.data = buffer.data.copy()
        return buffer.data.view(dtype)

    # A step of the output, in units of the sums; and a hundredth of a logit.
    steps = [tensors[name].quantization.scale[0] for name in ("second_residual", "second/bias")]
    values("second/bias", np.int32)[0] += round(steps[0] / steps[1])
    values("head/bias", np.float32)[1] += 0.01
    path = tmp_path / "changed.tflite"
    path.write_bytes(flatbuffer.packed(content))
    result = parity(model, path, images_for(model, 8))
    assert result.ties == 0
    found = {each.layer: each for each in result.layers if each.differing}
    assert found.keys() == {"second_residual", "head"}
    assert found["second_residual"].largest == 1
    assert 0 < found["second_residual"].differing <= 8 * 6 * 6  # one channel, less what clips
    assert (found["head"].differing, found["head"].largest) == (8, pytest.approx(0.01, rel=1e-3))
    assert result.other_constants == ["second/bias", "head/bias"]


def changed(path, change):
    """Return the graph of a file after ``change`` of its record."""
    content = flatbuffer.read(path)
    (entry,) = content.metadata
    record = json.loads(bytes(content.buffers[entry.buffer].data))
    change(record)
    content.buffers[entry.buffer].data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    return flatbuffer.packed(content)


def test_a_file_without_a_full_record_is_of_another_version(exported, tmp_path):
    model, report = exported
    older = tmp_path / "older.tflite"
    older.write_bytes(changed(report.path, lambda record: record.pop("plane_limit")))
    with pytest.raises(ExportError, match="another version of this package"):
        parity(model, older, images_for(model))


@pytest.mark.parametrize("export", [to_tflite, to_lce])
def test_constants_of_another_model_are_named(export, tmp_path):
    model = small_network(channels=32)
    path = tmp_path / "model.tflite"
    images = images_for(model)
    export(model, path, snap=False)
    assert parity(model, path, images).other_constants == []
    report = export(model, path, force=True)
    for same in (model, tf.keras.models.load_model(report.snapped)):
        assert parity(same, path, images).other_constants == []
    # One unit of one bias, which may change no code of these images.
    model.get_layer("first_bn").beta.assign_add(np.eye(32, dtype=np.float32)[3] * 1e-2)
    result = parity(model, path, images)
    assert result.other_constants == ["first/bias"]
    assert "1 constants of the file are not those of the model, first/bias" in str(
        result.failures()
    )


def test_bounds():
    from dlqat_tf.export import ParityReport
    from dlqat_tf.export.agreement import AccuracyChange, OutputParity

    top1 = {"keras": 70.0, "simulation": 69.8, "file": 69.8}
    agreement = {"keras_file": 99.0, "keras_simulation": 99.0, "simulation_file": 100.0}
    result = ParityReport(
        path="m.tflite",
        kernels="",
        images=1000,
        top1=top1,
        agreement=agreement,
        logit_difference={},
        layers=[],
        first_diverging=None,
        outputs=[OutputParity("scores", top1, agreement, {})],
    )
    assert len(result.failures()) == 2
    assert result.failures(keras_agreement=98.0, accuracy=0.2) == []  # 70.0 and 69.8
    assert len(result.failures(keras_agreement=98.0, accuracy=0.199)) == 1
    assert not any("ties" in str(each) for each in (*result.failures(), *result.tables()))
    of_scores = dataclasses.replace(
        result.outputs[0], change={"keras_file": AccuracyChange(-0.2, 0.15)}
    )
    result = dataclasses.replace(result, outputs=[of_scores])
    assert "0.1 points between them (the standard error of the difference is 0.15)" in str(
        result.failures()
    )
    first, *_ = zip(*(column.cells for column in result.tables()[0].columns), strict=True)
    assert first == ("keras - file", "99.00 %", "", "-0.20 ± 0.15")
    result = dataclasses.replace(result, ties=0.5)
    assert "agree on 99.00 %, expected 99.5 %; 0.50 % of the decisions are ties" in str(
        result.failures()
    )
    assert "ties, whose scores in the file are equal: 0.50 % of the decisions" in result.tables()
    result = dataclasses.replace(result, agreement=agreement | {"keras_file": 99.498})
    assert "agree on 99.49 %, expected 99.5 %" in str(result.failures())


@pytest.mark.parametrize("function", [census, lambda path: parity(small_network(), path, None)])
def test_files_that_are_something_else(tmp_path, exported, function):
    path = tmp_path / "file.tflite"
    with pytest.raises(ExportError, match=r"\.tflite file at"):
        function(path)
    path.write_text("not a model at all")
    with pytest.raises(ExportError, match="something else"):
        function(path)
    with open(exported[1].path, "rb") as whole:
        path.write_bytes(whole.read()[:3000])
    with pytest.raises(ExportError, match="damaged or cut short"):
        function(path)


def test_a_file_of_another_model_or_maker(tmp_path, exported):
    model, report = exported
    other = small_network(residual_bits=None)
    inputs = tf.keras.Input((6, 6, 3))
    plain = tf.keras.Model(inputs, tf.keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ExportError, match=r"another model.*first, head, second"):
        parity(plain, report.path, images_for(model))
    path = tmp_path / "foreign.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(plain).convert())
    with pytest.raises(ExportError, match="not written by this package"):
        parity(other, path, images_for(model))
    assert census(path).operators == {"CONV_2D": 1}
    assert census(path).layers[0].declared_bits is None


def test_labels_must_fit(exported):
    model, report = exported
    with pytest.raises(ExportError, match="Expected 4 labels"):
        parity(model, report.path, images_for(model, 4), np.zeros(3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["0", "1", "2", "3"]), "to be classes, integers. Received: <U1"),
        (np.array([0.5, 1, 2, 3]), "to be classes, integers. Received: float64 with fractions"),
        (np.array([0, 1, 2, np.nan]), "to be classes, integers. Received: float64 with"),
        (np.array([1, 2, 3, 10]), "from 0 to 4. Received: 1 to 10"),
        (np.array([-1, 2, 3, 4]), "from 0 to 4. Received: -1 to 4"),
    ],
    ids=str,
)
def test_labels_are_classes(exported, labels, message):
    model, report = exported
    with pytest.raises(ExportError, match=message):
        parity(model, report.path, images_for(model, 4), labels)


@pytest.mark.parametrize("value", [0, "4", 1.5, None, True, []])
@pytest.mark.parametrize("name", ["batch_size", "layer_images"])
def test_at_least_one_image_at_once(exported, name, value):
    model, report = exported
    message = re.escape(f"Expected {name} of at least 1. Received: {value!r}")
    with pytest.raises(ExportError, match=message):
        parity(model, report.path, images_for(model, 4), **{name: value})


@pytest.mark.parametrize("path", [None, 3, [], b"model.tflite"])
def test_what_is_no_path(exported, path):
    model, _ = exported
    message = f"the path of a .tflite file, .*Received: {type(path).__name__}"
    for read in (lambda: parity(model, path, images_for(model, 4)), lambda: census(path)):
        with pytest.raises(ExportError, match=message):
            read()


def test_images_that_are_no_numbers(exported):
    model, report = exported
    with pytest.raises(ExportError, match=r"float ones in \[0, 1\].*Received: <U3\."):
        parity(model, report.path, np.full((2, 6, 6, 3), "0.5"))
    with pytest.raises(ExportError, match=r"float ones in \[0, 1\].*nan"):
        parity(model, report.path, np.full((2, 6, 6, 3), np.nan, np.float32))


def test_census_counts_bytes(exported):
    _, report = exported
    result = census(report.path)
    first, second, head = result.layers
    assert (first.weights, first.bytes) == (3 * 3 * 3 * 8, 216)
    assert (second.weights, second.declared_bits, second.stored_bits) == (3 * 3 * 8 * 8, 2, 8)
    assert head.kernel == "FULLY_CONNECTED float32"
    # int32 biases and float32 ones, and the two axes of the mean.
    assert sum(result.constants.values()) == 216 + 576 + 8 * 5 + 4 * (8 + 8 + 5) + 4 * 2
    assert result.warnings == []


@pytest.fixture(scope="module")
def siamese(tmp_path_factory):
    model = siamese_network(shapes=((6, 6, 3), (5, 7, 3)))
    path = tmp_path_factory.mktemp("siamese") / "model.tflite"
    return model, to_tflite(model, path, snap=False).path


def test_images_of_several_inputs(siamese):
    model, path = siamese
    left, right = images_for(model, 6)
    result = parity(model, path, [left, right], batch_size=4, layer_images=3)
    assert (result.images, result.agreement["simulation_file"]) == (6, 100.0)
    assert result.layers[0].values == 3 * 6 * 6 * 8
    assert parity(model, path, (left / 255, right), batch_size=4, layer_images=3) == result
    named = {"right": right, "left": left}
    assert parity(model, path, named, batch_size=4, layer_images=3) == result


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda left, right: left, "each input, left, right. Received: 1 for 2"),
        (lambda left, right: [left, right, right], "Received: 3 for 2"),
        (lambda left, right: [right, left], r"\(images, 6, 6, 3\) for the input 'left'"),
        (lambda left, right: [left, right[:3]], "as many.*left, right. Received: 4, 3"),
        (lambda left, right: {"left": left, "top": right}, "for left, right. Received.*left, top"),
        (lambda left, right: [left, right + 0.5], "float ones in"),
    ],
)
def test_images_must_fit_the_inputs(siamese, images, message):
    model, path = siamese
    with pytest.raises(ExportError, match=message):
        parity(model, path, images(*images_for(model, 4)))


def test_one_input_takes_its_array_in_a_list_or_by_name(exported):
    model, report = exported
    images = images_for(model, 4)
    expected = parity(model, report.path, images)
    assert parity(model, report.path, [images]) == expected
    assert parity(model, report.path, {"images": images}) == expected


@pytest.mark.parametrize("export", [to_tflite, to_lce])
def test_features_on_two_grids_before_a_hidden_dense_layer(export, tmp_path):
    """Vectors go from grid to grid, and dense layers round as convolutions do, in both files."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = CGPACT(2, 2.0, name="act")(convolution(inputs, 16, 3, weight_bits=8, name="first"))
    x = CGPACT(2, 2.0, name="act2")(convolution(x, 32, 3, weight_bits=1, name="second"))
    pool = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Concatenate(name="both")(
        [CGPACT(8, alpha, name=f"pooled{alpha}")(pool) for alpha in (1.0, 1.5)]
    )
    dense = lq.layers.QuantDense(64, kernel_quantizer=SATWeights(1), use_bias=False, name="dense")
    x = CGPACT(8, 3.0, name="hidden")(layers.BatchNormalization(name="bn")(dense(x)))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5, name="head")(x)))
    report = export(model, tmp_path / "model.tflite", snap=False)
    result = parity(model, report.path, images_for(model, 128), layer_images=128)
    assert {"both_input1", "hidden"} <= {layer.layer for layer in result.layers}
    assert [layer for layer in result.layers if layer.differing] == []
    assert result.agreement["simulation_file"] == 100.0
