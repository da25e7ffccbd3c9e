"""Hard-sigmoid and hard-swish as MobileNet v3 spells them out."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import quantize
from dlqat_tf.canonical import hard_sigmoid, hard_swish
from dlqat_tf.export import lower, parity, to_tflite
from dlqat_tf.export.integer.nodes import Multiply
from tests.convert.networks import FLOAT, alive, conv_norm

layers = tf.keras.layers


def gate(x, name):
    return layers.ReLU(6.0, name=name)(x + 3.0) * (1.0 / 6.0)


def mobile():
    """A hard-swish, and squeeze and excitation by a hard-sigmoid."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = conv_norm(inputs, 8, 3, name="first")
    x = layers.Multiply(name="swish")([x, gate(x, "swish_relu")])
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    squeezed = layers.Conv2D(8, 1, name="expand")(squeezed)
    x = layers.Multiply(name="excite")([x, gate(squeezed, "gate_relu")])
    x = layers.ReLU(name="last_relu")(conv_norm(x, 8, 3, name="last"))
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(layers.Flatten(name="flat")(x)))


def test_functions_have_the_values_of_the_paper():
    x = tf.constant([-4.0, -3.0, -1.5, 0.0, 1.5, 3.0, 4.0])
    np.testing.assert_allclose(hard_sigmoid(x), [0, 0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(hard_swish(x), [0, 0, -0.375, 0, 1.125, 3, 4], rtol=1e-6)


def test_each_is_one_function_between_quantizers(tmp_path):
    tf.keras.utils.set_random_seed(0)
    model, labels = mobile(), np.arange(32) % 5
    images = alive(model, (32, 6, 6, 3))
    same, _ = quantize(model, head=None, **FLOAT, images=images)
    expected, computed = (np.asarray(each(images, training=False)) for each in (model, same))
    np.testing.assert_allclose(computed, expected, atol=0.03 * np.abs(expected).max())
    converted, report = quantize(model, 2, 4, "gml", images=images, labels=labels)
    assert not [note for note in report.notes if "float" in note]
    assert converted.get_layer("swish").activation is hard_swish
    assert "swish_relu" not in {layer.name for layer in converted.layers}
    gates = [each for each in converted.layers if getattr(each, "activation", 0) is hard_sigmoid]
    assert len(gates) == 1
    # Gates keep the bits of residuals, values those of activations.
    assert converted.get_layer("swish_act").bits == 4
    assert converted.get_layer(f"{gates[0].name}_act").bits == 8
    exported = to_tflite(converted, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    assert parity(snapped, exported.path, images, labels).failures(keras_agreement=90) == []
    assert isinstance(lower(converted)["excite"], Multiply)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda x: layers.ReLU(6.0)(x + 2.0) * (1.0 / 6.0),
        lambda x: layers.ReLU(6.0)(x + 3.0) * (1.0 / 5.0),
        lambda x: layers.ReLU(5.0)(x + 3.0) * (1.0 / 6.0),
    ],
)
def test_what_computes_something_else_stays(spelled):
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = spelled(conv_norm(inputs, 4, 3, name="first"))
    model = tf.keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    converted, _ = quantize(model, head=None)
    assert not [each for each in converted.layers if getattr(each, "activation", 0) is hard_sigmoid]


def test_a_gate_that_something_else_reads_too_stays_apart():
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = conv_norm(inputs, 4, 3, name="first")
    gated = gate(x, "relu")
    x = layers.Concatenate()([layers.Multiply(name="swish")([x, gated]), gated])
    model = tf.keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    converted, _ = quantize(model, head=None)
    activations = [getattr(each, "activation", None) for each in converted.layers]
    assert hard_sigmoid in activations
    assert hard_swish not in activations
