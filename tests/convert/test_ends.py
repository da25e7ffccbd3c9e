"""Heads of several outputs."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import ConversionError, quantize
from dlqat_tf.export import parity, to_tflite
from tests.convert.networks import Model, layers

RNG = np.random.default_rng(0)
IMAGES = (RNG.integers(0, 256, (24, 8, 8, 1)) / 255).astype(np.float32)
KINDS, COLOURS = np.arange(24) % 3, np.arange(24) % 4


def detector():
    """Two classifiers, one of them with a softmax, and a box."""
    tf.keras.utils.set_random_seed(0)  # which start of a mixture is better depends on the weights
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="body")(x)
    features = layers.GlobalAveragePooling2D(name="features")(x)
    kind = layers.Dense(3, activation="softmax", name="kind")(features)
    colour = layers.Softmax(name="shade")(layers.Dense(4, name="colour")(features))
    return Model(inputs, [kind, colour, layers.Dense(4, name="box")(features)])


HEADS = {"kind": "gml", "shade": "cosine"}


def test_heads_by_output():
    labels = {"kind": KINDS, "shade": COLOURS}
    model, report = quantize(detector(), 4, 4, HEADS, images=IMAGES, labels=labels)
    kind, colour, box = (model.get_layer(name) for name in ("kind", "colour", "box"))
    assert isinstance(kind, dlqat_tf.GaussianMixtureHead)
    assert isinstance(colour, dlqat_tf.CosineHead)
    assert box.kernel_quantizer.bits == 8
    rows = {row.layer: row for row in report.conversions}
    assert rows["shade"].became == "dropped"
    assert rows["kind"].note.count("softmax is dropped") == 1
    # The means of a mixture are those of the features of each class.
    features = Model(model.input, model.get_layer("features").output)(IMAGES).numpy()
    for label in range(3):
        mean = features[label == KINDS].mean(axis=0)
        np.testing.assert_allclose(kind.kernel[:, label], mean, rtol=1e-3, atol=1e-5)
    mean = features / np.linalg.norm(features, axis=1, keepdims=True)
    columns = [mean[label == COLOURS].mean(axis=0) for label in range(4)]
    expected = np.array([each / np.linalg.norm(each) for each in columns]).T
    found = np.tanh(colour.kernel.numpy())
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), rtol=1e-3)


def test_labels_in_a_list_are_those_of_a_dict():
    by_name, by_place = (
        quantize(detector(), 4, 4, HEADS, images=IMAGES, labels=labels)[0].get_weights()
        for labels in ({"kind": KINDS}, [KINDS, None, None])
    )
    other = quantize(detector(), 4, 4, HEADS, images=IMAGES)[0].get_weights()
    for first, second in zip(by_name, by_place, strict=True):
        assert first.shape == second.shape
    assert len(other) == len(by_name)


def test_several_outputs_train_and_export(tmp_path):
    model, _ = quantize(detector(), 4, 4, HEADS, images=IMAGES)
    losses = {"kind": dlqat_tf.GMLoss(), "colour": dlqat_tf.AMSLoss(), "box": "mse"}
    model.compile("sgd", loss=dict(zip(model.output_names, losses.values(), strict=True)))
    targets = [KINDS, COLOURS, np.zeros((24, 4), np.float32)]
    model.fit(IMAGES, targets, 12, 1, verbose=0)
    path = tmp_path / "model.tflite"
    report = to_tflite(model, path)
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, path, IMAGES, [KINDS, COLOURS, None], trained=model)
    assert [each.output for each in found.outputs] == ["kind", "colour", "box"]
    assert found.agreement["simulation_file"] == 100.0
    assert found.first_diverging is None


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("gml", r"one output.*for head='gml'.*3, kind, shade, box\. Say.*\{'kind': 'gml', 'shade'"),
        ({"kinds": "gml"}, r"output name, of kind, shade, box\. Received: 'kinds'"),
        ({"kind": "softmax"}, "Expected head to be one of linear, cosine, gml"),
        ({"kind": ["gml"]}, r"Expected head to be one of linear, cosine, gml.*\['gml'\]"),
        (["gml"], r"Expected head to be one of linear, cosine, gml.*head=\['gml'\]"),
    ],
)
def test_what_is_no_head_of_these_outputs(head, message):
    with pytest.raises(ConversionError, match=message):
        quantize(detector(), head=head)


def test_scores_that_something_else_reads():
    inputs = tf.keras.Input((8, 8, 1))
    scores = layers.Dense(3, name="scores")(layers.Flatten()(inputs))
    model = Model(inputs, [scores, layers.Dense(2, name="other")(scores)])
    with pytest.raises(ConversionError, match="'scores', which 'other' reads"):
        quantize(model, head={"scores": "linear"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"kinds": KINDS}, "by output name, of kind, shade, box"),
        (KINDS, "labels of each output, kind, shade, box"),
        ({"kind": KINDS[:5]}, r"one integer class per image, shape \(24,\)"),
        ({"shade": COLOURS + 1}, "from 0 to 3. Received: 1 to 4"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ConversionError, match=message):
        quantize(detector(), head=HEADS, images=IMAGES, labels=labels)
