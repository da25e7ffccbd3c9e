"""Networks with parts that run in float, and with several outputs: simulation = file."""

import dlqat_tf  # noqa: I001  (first: it decides which Keras is used)
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT
from dlqat_tf.export import lower, parity, to_lce, to_tflite
from dlqat_tf.export.integer.nodes import FromIsland
from tests.export.networks import convolution, images_for, randomize

layers = tf.keras.layers


def classifier(middle):
    """Two low-bit convolutions with something else in between, and a head."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = CGPACT(8, 2.0, signed=True)(convolution(x, 8, 3, weight_bits=1))
    x = CGPACT(2, 1.7)(middle(x))
    x = CGPACT(2, 2.0)(convolution(x, 8, 3, weight_bits=2))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5, name="head")(x)))


def norm(x):
    return layers.LayerNormalization(name="norm")(x)


def attention(x):
    tokens = layers.Reshape((64, 8))(x)
    mixed = layers.MultiHeadAttention(2, 4, name="attention")(tokens, tokens)
    tokens = layers.LayerNormalization()(tokens + mixed)
    return layers.Reshape((8, 8, 8))(tokens)


def convnext_block(x):
    """Depthwise 7x7, layer norm, two dense layers with GELU between, scale, residual."""
    y = layers.DepthwiseConv2D(7, padding="same")(x)
    y = layers.LayerNormalization(epsilon=1e-6)(y)
    y = layers.Dense(16, activation="gelu")(y)
    y = layers.Dense(8)(y) * 0.5
    return layers.Add()([x, y])


def decoder(x):
    """A transposed convolution without an int8 kernel, whose size TFLite learns when it runs."""
    y = layers.Conv2DTranspose(8, 2, 2, output_padding=0, activation="relu")(layers.MaxPool2D()(x))
    return layers.Concatenate()([x, y])


MIDDLES = [norm, attention, convnext_block, decoder]


def proof(model, write, path):
    report = write(model, path)
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, path, images_for(model, 24), layer_images=24)
    assert found.agreement["simulation_file"] == 100.0
    assert found.first_diverging is None
    assert found.failures(keras_agreement=95.0) == []
    return report, found


@pytest.mark.parametrize("write", [to_tflite, to_lce])
@pytest.mark.parametrize("middle", MIDDLES)
def test_a_part_in_float(tmp_path, middle, write):
    model = classifier(middle)
    report, found = proof(model, write, tmp_path / "model.tflite")
    assert len(report.census.islands) >= 1
    outputs = {node.name for node in lower(model) if isinstance(node, FromIsland)}
    assert outputs
    assert outputs <= {each.layer for each in found.layers}


RECURRENT = {
    "lstm": lambda: layers.LSTM(64, return_sequences=True, name="steps"),
    "gru": lambda: layers.GRU(64, return_sequences=True, name="steps"),
    "gru of one bias": lambda: layers.GRU(
        64, return_sequences=True, reset_after=False, name="steps"
    ),
    "simple": lambda: layers.SimpleRNN(64, return_sequences=True, name="steps"),
    "both ways": lambda: layers.Bidirectional(layers.LSTM(32, return_sequences=True), name="steps"),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_run_step_by_step(tmp_path, kind):
    layer = RECURRENT[kind]()

    def middle(x):
        return layers.Reshape((8, 8, 8))(layer(layers.Reshape((8, 64))(x)))

    report, _ = proof(classifier(middle), to_tflite, tmp_path / "model.tflite")
    assert [island.layers for island in report.census.islands] == [["steps"]]
    # In Keras they stay the loops that they are.
    loops = [each for each in layer.submodules if isinstance(each, layers.RNN)] or [layer]
    assert not any(each.unroll for each in loops)
    assert all(each._could_use_gpu_kernel for each in loops if kind == "lstm")


def mixing(x):
    tokens = layers.Reshape((64, 8))(x)
    mixed = layers.MultiHeadAttention(2, 4, name="attention")(tokens, tokens)
    return layers.Reshape((8, 8, 8))(mixed)


def test_what_a_part_costs(tmp_path):
    report, _ = proof(classifier(mixing), to_tflite, tmp_path / "model.tflite")
    (island,) = report.census.islands
    assert island.layers == ["attention"]
    # Query, key, value and output 64 x 8 x 8 each; scores and mix 2 heads x 64 x 64 x 4 each.
    assert island.macs == 4 * 64 * 8 * 8 + 2 * (2 * 64 * 64 * 4)
    convolutions = 64 * 9 * (3 * 8 + 2 * 8 * 8)
    assert island.share == pytest.approx(island.macs / (island.macs + convolutions + 8 * 5))
    # Four projections and the mix, and twice the scores: a softmax comes after them.
    assert island.values >= 5 * 64 * 8 + 2 * (2 * 64 * 64)
    # Four kernels of 8 x 8, their biases and small constants.
    assert 4 * 4 * 64 < island.bytes < 4 * 4 * 64 + 4 * 100
    report.print()


@pytest.mark.parametrize("write", [to_tflite, to_lce])
def test_what_layers_with_weights_cost_that_are_kept_float(tmp_path, write):
    def middle(x):
        x = layers.Dense(8, name="dense")(layers.Conv2D(8, 3, padding="same", name="conv")(x))
        return layers.DepthwiseConv2D(1, name="scales")(x)

    report, _ = proof(classifier(middle), write, tmp_path / "model.tflite")
    found = {each.name: each for each in report.census.islands}
    assert [each.layers for each in report.census.islands] == [["conv"], ["dense"], ["scales"]]
    # A product and a sum of each channel.
    assert [each.operators for each in found.values()] == [1, 1, 2]
    assert [each.macs for each in found.values()] == [64 * 9 * 8 * 8, 64 * 8 * 8, 0]
    # Kernel and bias in float32, and values of 8 x 8 x 8.
    assert [each.bytes for each in found.values()] == [4 * 584, 4 * 72, 4 * 16]
    assert [each.values for each in found.values()] == [512, 512, 2 * 512]
    if write is to_tflite:
        every = 64 * 9 * (3 * 8 + 2 * 8 * 8) + 8 * 5 + 64 * 9 * 8 * 8 + 64 * 8 * 8
        assert found["conv"].share == pytest.approx(64 * 9 * 8 * 8 / every)


def two_outputs():
    """A classifier of ten, another of four, and the features that both read."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = CGPACT(2, 2.0, name="codes")(convolution(x, 8, 3, weight_bits=2))
    features = layers.GlobalAveragePooling2D(name="features")(x)
    outputs = [
        dlqat_tf.LinearHead(10, name="kind")(features),
        dlqat_tf.GaussianMixtureHead(4, name="colour")(features),
        features,
    ]
    return randomize(tf.keras.Model(inputs, outputs))


@pytest.mark.parametrize("write", [to_tflite, to_lce])
def test_several_outputs(tmp_path, write):
    model = two_outputs()
    path = tmp_path / "model.tflite"
    _, found = proof(model, write, path)
    assert [each.output for each in found.outputs] == ["kind", "colour", "features"]
    interpreter = tf.lite.Interpreter(str(path)) if write is to_tflite else None
    if interpreter:
        shapes = [tuple(each["shape"]) for each in interpreter.get_output_details()]
        assert shapes == [(1, 10), (1, 4), (1, 8)]


def test_labels_of_several_outputs(tmp_path):
    model, path = two_outputs(), tmp_path / "model.tflite"
    to_tflite(model, path)
    images = images_for(model, 24)
    snapped = tf.keras.models.load_model(tmp_path / "model.snapped.keras")
    kinds = snapped.predict(images / np.float32(255), verbose=0)[0].argmax(1)
    found = parity(snapped, path, images, {"kind": kinds, "colour": np.zeros(24)})
    assert found.outputs[0].top1["keras"] == 100.0
    assert found.outputs[2].top1 == {}
    mean = (100.0 + found.outputs[1].top1["keras"]) / 2
    assert found.top1["keras"] == pytest.approx(mean)
