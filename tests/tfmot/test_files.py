"""Trained, saved and exported networks of wrappers."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import methods
from dlqat_tf.export import lower, parity, to_lce, to_tflite
from dlqat_tf.quantizers import unwrapped
from dlqat_tf.quantizers.calibration import calibrate
from dlqat_tf.tfmot import QuantizeConfig, Scheme
from tests.tfmot.networks import (
    applied,
    images,
    network,
)

layers = tf.keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_layer


@pytest.fixture(scope="module")
def trained():
    """A bridge model after a short fit, on images whose class is which half is brighter."""
    model = applied(network(), alpha_init=2.0)
    x = images(256)
    y = (x[:, :4].mean((1, 2, 3)) > x[:, 4:].mean((1, 2, 3))).astype(int)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(0.01), loss)
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(x / np.float32(255), y, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), f"{variable.name} was not trained"
    return model


@pytest.mark.parametrize("export", [to_tflite, to_lce])
def test_files_compute_what_was_trained(trained, tmp_path, export):
    report = export(trained, tmp_path / "model.tflite")
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images(256))
    assert result.agreement == {
        "keras_file": 100.0,
        "keras_simulation": 100.0,
        "simulation_file": 100.0,
    }
    assert result.failures() == []
    declared = {layer.layer: layer.declared_bits for layer in report.census.layers}
    assert declared["quant_second"] == declared["quant_depthwise"] == 1
    assert report.shifts  # biases in wrapped layers and batch norms moved


@pytest.mark.parametrize("kind", ["transposed", "depthwise"])
@pytest.mark.parametrize("method", ["sat", "hawq", "lqnet"])
def test_kernels_have_steps_of_output_channels(method, kind, tmp_path):
    """Without a norm behind it SAT has them too."""
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    if kind == "transposed":
        layer, shape = layers.Conv2DTranspose(6, 2, 2, activation="relu", name="odd"), (6, 1)
    else:
        layer, shape = layers.DepthwiseConv2D(3, activation="relu", name="odd"), (4, 1)
    x = layer(x)
    x = layers.GlobalAveragePooling2D()(x)
    source = tf.keras.Model(inputs, layers.Dense(3)(x))
    bits = 3 if method == "hawq" else 1
    model = applied(source, weight_bits=bits, method=method)
    model(images(8) / np.float32(255), training=True)
    parts = unwrapped(model.get_layer("quant_odd"))
    assert parts.kernel_quantizer.grid(parts.kernel).step.shape == shape
    report = to_lce(model, tmp_path / "model.tflite")
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images(64))
    assert result.agreement["keras_file"] == result.agreement["simulation_file"] == 100.0


def test_softmax_runs_in_float():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.Dense(3, activation="softmax", name="last")(layers.Flatten()(x))
    network = lower(applied(tf.keras.Model(inputs, x)))
    assert network["quant_last_activation/island"].inputs == ("quant_last",)


LOAD = """
import sys
import dlqat_tf
import numpy as np
import tensorflow as tf

assert "tensorflow_model_optimization" not in sys.modules, "TF-MOT should wait for its use"
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
expected = np.load(f"{folder}/logits.npy")
for name in ("model.keras", "model.h5", "model"):
    model = tf.keras.models.load_model(f"{folder}/{name}")
    np.testing.assert_array_equal(model.predict(images, verbose=0), expected, err_msg=name)
    print(name, len(dlqat_tf.export.lower(model).nodes))
print(type(tf.keras.models.load_model(f"{folder}/annotated.keras").layers[2]).__name__)
"""


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_saved_models_load_without_a_scope(tmp_path):
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.ReLU()(inputs)  # feeds an annotated layer: wrapped by a configuration of TF-MOT's
    x = annotate(layers.DepthwiseConv2D(3, activation="relu"), QuantizeConfig(2, 3))(x)
    x = annotate(layers.BatchNormalization())(annotate(layers.Conv2D(4, 1))(x))
    x = annotate(layers.Dense(3))(layers.Flatten()(x))
    annotated = tf.keras.Model(inputs, x)
    model = tfmot.quantization.keras.quantize_apply(annotated, Scheme())
    rng = np.random.default_rng(0)  # no two variables alike, or their order would not matter
    model.set_weights(
        [w + rng.uniform(0, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    np.save(tmp_path / "images.npy", images() / np.float32(255))
    np.save(tmp_path / "logits.npy", model.predict(images() / np.float32(255), verbose=0))
    annotated.save(tmp_path / "annotated.keras")
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    nodes = len(lower(model).nodes)
    expected = [f"{name} {nodes}" for name in ("model.keras", "model.h5", "model")]
    assert result.stdout.splitlines() == [*expected, "QuantizeAnnotate"], result.stderr


def test_unknown_attributes_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dlqat_tf.nothing  # noqa: B018


@pytest.mark.parametrize("where", ["model", "outside"])
def test_prepared_images(tmp_path, where):
    """A quantizer of the range of all 256 pixels behind what prepares them."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs) if where == "model" else inputs
    x = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = layers.Dense(3, name="last")(layers.Flatten()(x))
    said = {} if where == "model" else {"preprocessing": "tf"}
    scheme = Scheme(2, 4, **said)
    annotated = tfmot.quantization.keras.quantize_annotate_model(tf.keras.Model(inputs, x))
    model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    quantizer = model.get_layer("images_codes")
    assert (quantizer.signed, float(quantizer.alpha), quantizer.trainable) == (True, 1.0, False)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    images = pixels.astype(np.float32) if where == "model" else pixels / np.float32(127.5) - 1
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(8) % 3, verbose=0)
    report = to_tflite(model, tmp_path / "model.tflite")
    assert report.census.inputs[0].type == "uint8"
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert not parity(snapped, report.path, pixels, trained=model).failures()


def test_vectors(tmp_path):
    source = tf.keras.Sequential(
        [
            tf.keras.Input((6,), name="features"),
            layers.Dense(8, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(3, name="last"),
        ]
    )
    model = applied(source)
    values = np.random.default_rng(0).normal(0, 5, (64, 6)).astype(np.float32)
    ranges = calibrate(model, source, values)
    assert ranges["features_codes"] == pytest.approx(np.abs(values).max(), rel=0.05)
    for input_type in ("float32", "int8"):
        path = tmp_path / f"{input_type}.tflite"
        report = to_tflite(model, path, input_type=input_type)
        snapped = tf.keras.models.load_model(report.snapped, compile=False)
        assert not parity(snapped, path, values).failures()


def test_a_method_trains_in_wrappers_and_is_exported(tmp_path):
    """LSQ starts steps from the first batch, INQ freezes by its callback: both in wrappers."""
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="hidden")(x)
    x = layers.GlobalAveragePooling2D()(x)
    float_model = tf.keras.Model(inputs, layers.Dense(3)(x))
    pixels = images(16)
    for name in ("lsq", "inq"):
        tf.keras.utils.set_random_seed(0)
        model = applied(float_model, 2, 2, method=name)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(0.01), loss)
        callbacks = methods.get(name).callbacks(10)
        model.fit(pixels / 255, np.arange(16) % 3, 16, 10, callbacks=callbacks, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        loaded = tf.keras.models.load_model(tmp_path / f"{name}.keras")
        to_tflite(loaded, tmp_path / f"{name}.tflite")
        agreement = parity(loaded, tmp_path / f"{name}.tflite", pixels).agreement
        assert agreement["simulation_file"] == 100.0
