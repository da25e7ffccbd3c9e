import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.export.integer.snap import snap
from tests.export.networks import convolution, images_for, randomize

layers = tf.keras.layers


def upsampled(size, quantizer=True):
    inputs = tf.keras.Input((5, 4, 3))
    x = dlqat_tf.CGPACT(4, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = layers.UpSampling2D(size, interpolation="bilinear", name="up")(x)
    x = dlqat_tf.CGPACT(8, 1.8137, name="after")(x) if quantizer else x
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(x, 32, 3, weight_bits=1))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x)))


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (3, 4), (5, 6)])
def test_windows_of_repeated_values_are_what_keras_computes(size):
    model, _ = snap(upsampled(size))
    images = images_for(model, 4)
    simulation = Simulation(plan(lower(model)))
    found = simulation.run(images, ["up_repeated", "up_padded", "after"])
    assert found["up_padded"].shape[1:3] == tuple(
        n * factor + 2 * (factor // 2) for n, factor in zip((5, 4), size, strict=True)
    )
    ends = tf.keras.Model(model.inputs, model.get_layer("after").output)
    expected = ends(np.float32(images / 255)).numpy()
    step = np.float32(1.8137 / 255)
    np.testing.assert_array_equal(found["after"], np.rint(expected / step))


@pytest.mark.parametrize("export", [to_tflite, to_lce])
def test_the_file_equals_the_simulation_and_keras(tmp_path, export):
    model = upsampled((2, 3))
    report = export(model, tmp_path / "model.tflite")
    assert report.census.operators["MIRROR_PAD"] == 1
    assert not report.census.islands
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, report.path, images_for(model, 64), trained=model)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100


def test_builtin_kernels(tmp_path):
    model = upsampled((2, 2))
    report = to_tflite(model, tmp_path / "model.tflite", kernels="builtin")
    found = parity(tf.keras.models.load_model(report.snapped), report.path, images_for(model, 32))
    assert found.first_diverging is None


def test_it_stays_float_where_nothing_rounds_it(tmp_path):
    report = to_tflite(upsampled((2, 2), quantizer=False), tmp_path / "model.tflite")
    assert report.census.operators["RESIZE_BILINEAR"] == 1
    assert [each.layers for each in report.census.islands] == [["up"]]


def test_a_small_u_net(tmp_path):
    """Skip connections, concatenated with what `tf.image.resize` and UpSampling2D make."""
    inputs = tf.keras.Input((8, 8, 3))
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPool2D()(first)
    second = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPool2D()(second))
    x = layers.Concatenate()([tf.image.resize(x, (4, 4)), second])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([layers.UpSampling2D(2, interpolation="bilinear")(x), first])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    model = tf.keras.Model(inputs, layers.Conv2D(2, 1)(x))
    images = np.float32(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)) / 255)
    converted, _ = dlqat_tf.quantize(model, 8, 8, head=None, images=images)
    report = to_tflite(converted, tmp_path / "model.tflite")
    assert report.census.operators["MIRROR_PAD"] == 2
    assert not report.census.islands
    found = parity(tf.keras.models.load_model(report.snapped), report.path, images)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == 100
    assert found.agreement["keras_file"] > 99
