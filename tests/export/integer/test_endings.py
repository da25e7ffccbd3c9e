"""Outputs with and without a softmax or sigmoid."""

import dlqat_tf  # noqa: I001  (first: it decides which Keras is used)
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.endings import ending_of
from dlqat_tf.export import ExportError, lower, parity, to_tflite
from dlqat_tf.export.integer.endings import wanted, with_endings
from tests.export.networks import images_for, small_network

layers = tf.keras.layers


def scores(*end, name="scores"):
    inputs = tf.keras.Input((2, 2, 1))
    x = layers.Flatten()(inputs)
    for layer in end:
        x = layer(x)
    return tf.keras.Model(inputs, x, name=name)


ENDS = {
    "dense softmax": [layers.Dense(3, activation="softmax")],
    "softmax": [layers.Dense(3), layers.Softmax()],
    "activation": [layers.Dense(3), layers.Activation("softmax")],
    "sigmoid": [layers.Dense(1, activation="sigmoid")],
    "tensorflow": [layers.Dense(3, activation=tf.nn.softmax)],
}
IMAGES = np.random.default_rng(0).random((5, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", ENDS)
def test_an_ending_is_found_and_taken_off(kind):
    model = scores(*ENDS[kind])
    ending = "sigmoid" if kind == "sigmoid" else "softmax"
    assert ending_of(model.output) == ending
    logits = with_endings(model, [""])
    assert ending_of(logits.output) == ""
    function = tf.sigmoid if kind == "sigmoid" else tf.nn.softmax
    np.testing.assert_allclose(function(logits(IMAGES)), model(IMAGES), rtol=1e-5)
    assert with_endings(model, [ending]) is model
    assert lower(model).outputs[0].ending == ending


def test_an_ending_is_put_on():
    several, one = scores(layers.Dense(3)), scores(layers.Dense(1))
    for model, ending, function in (
        (several, "softmax", tf.nn.softmax),
        (one, "sigmoid", tf.sigmoid),
    ):
        assert wanted(model, "probabilities") == [ending]
        made = with_endings(model, [ending])
        np.testing.assert_allclose(made(IMAGES), function(model(IMAGES)), rtol=1e-6)
        assert wanted(made, None) == [ending]
        assert wanted(made, "logits") == [""]


def test_outputs_by_name():
    inputs = tf.keras.Input((4,))
    outputs = {
        "a": layers.Dense(3, name="kind")(inputs),
        "b": layers.Dense(2, activation="softmax", name="colour")(inputs),
    }
    model = tf.keras.Model(inputs, outputs)
    assert wanted(model, {"kind": "probabilities"}) == ["softmax", "softmax"]
    assert wanted(model, {"colour": "logits"}) == ["", ""]
    made = with_endings(model, ["softmax", ""])
    assert set(made.output) == {"a", "b"}
    assert [ending_of(each) for each in made.outputs] == ["softmax", ""]
    for outputs in ("scores", {"kinds": "logits"}, {"kind": "scores"}):
        with pytest.raises(ExportError, match=r'"logits", "probabilities".*of kind, colour'):
            wanted(model, outputs)


def test_cosines_are_no_logits():
    model = scores(dlqat_tf.CosineHead(3, name="cosines"))
    assert with_endings(model, [""]) is model
    with pytest.raises(ExportError, match=r"'cosines' is the cosines of CosineHead"):
        with_endings(model, ["softmax"])


def test_an_ending_that_the_model_itself_reads():
    inputs = tf.keras.Input((4,))
    gate = layers.Dense(3, activation="softmax", name="gate")(inputs)
    model = tf.keras.Model(inputs, [gate, layers.Dense(2, name="other")(gate)])
    with pytest.raises(ExportError, match=r"read what 'gate' makes of logits"):
        with_endings(model, ["", ""])


@pytest.mark.parametrize("head", [dlqat_tf.LinearHead, dlqat_tf.GaussianMixtureHead])
def test_a_file_of_probabilities(tmp_path, head):
    source = small_network()
    model = tf.keras.Model(source.input, head(5, name="head")(source.get_layer("features").output))
    path = tmp_path / "model.tflite"
    report = to_tflite(model, path, outputs="probabilities")
    assert report.census.operators["SOFTMAX"] == 1
    images = images_for(model, 16)
    snapped = tf.keras.models.load_model(report.snapped)
    assert ending_of(snapped.output) == "softmax"
    for compared in (snapped, model):
        found = parity(compared, path, images)
        assert found.agreement["simulation_file"] == 100.0
        assert found.logit_difference["keras_file"] < 0.2
    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    (name,) = runner.get_output_details()
    (given,) = runner.get_input_details()
    (values,) = runner(**{given: images[:1]}).values()
    assert name == "head_probabilities"
    np.testing.assert_allclose(values.sum(), 1, rtol=1e-6)


def test_a_file_of_logits_of_a_model_of_probabilities(tmp_path):
    source = small_network()
    dense = layers.Dense(5, activation="softmax", name="scores")
    model = tf.keras.Model(source.input, dense(source.get_layer("features").output))
    path = tmp_path / "model.tflite"
    report = to_tflite(model, path, outputs="logits")
    assert "SOFTMAX" not in report.census.operators
    found = parity(model, path, images_for(model, 16))
    assert found.agreement["simulation_file"] == 100.0
    assert "SOFTMAX" in to_tflite(model, path, force=True).census.operators


def test_one_score_decides_at_its_border(tmp_path):
    source = small_network()
    dense = layers.Dense(1, activation="sigmoid", name="score")
    model = tf.keras.Model(source.input, dense(source.get_layer("features").output))
    images = images_for(model, 16)
    scores = model(images / np.float32(255)).numpy().ravel()
    model.get_layer("score").bias.assign([-np.median(np.log(scores / (1 - scores)))])
    labels = model(images / np.float32(255)).numpy().ravel() >= 0.5
    assert 0 < labels.mean() < 1
    for outputs in (None, "logits"):
        path = tmp_path / f"{outputs}.tflite"
        to_tflite(model, path, outputs=outputs, snap=False)
        found = parity(model, path, images, labels.astype(int))
        assert found.top1["keras"] == 100.0
        assert found.agreement["simulation_file"] == 100.0
