"""Normalised measurements: the same codes from float32 values and from int8 ones."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.export.files.flatbuffer import read
from dlqat_tf.export.runtimes.host import runner

layers = tf.keras.layers
BODIES = {
    (6,): lambda x: layers.Dense(16, activation="relu")(x),
    (12, 5): lambda x: layers.Flatten()(layers.Conv1D(8, 3, activation="relu")(x)),
    (8, 7, 2): lambda x: layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(x)),
}


def measurements(shape):
    """Values of channels of very different units."""
    random = np.random.default_rng(0)
    units = random.uniform(0.1, 50, shape[-1]), random.uniform(-100, 100, shape[-1])
    return np.float32(random.normal(size=(256, *shape)) * units[0] + units[1])


def measured(shape, reshape=None):
    """A network with a Normalization, behind another shape or not, and measurements."""
    values = measurements(shape)
    x = inputs = tf.keras.Input(shape, name="measured")
    norm = layers.Normalization(name="norm")
    if reshape is not None:
        x = layers.Reshape(reshape)(x)
    norm.adapt(values.reshape(-1, *x.shape[1:]))
    model = tf.keras.Model(inputs, layers.Dense(3)(BODIES[tuple(x.shape[1:])](norm(x))))
    converted, _ = dlqat_tf.quantize(model, 8, 8, "linear", images=values, preprocessing="values")
    return converted, values


@pytest.mark.parametrize("shape", BODIES)
def test_both_types_give_the_same_file_behind_the_codes(tmp_path, shape):
    model, values = measured(shape)
    quantizer = next(each for each in model.layers if isinstance(each, dlqat_tf.InputQuantizer))
    assert quantizer.grid().lowest < 0
    outputs = {}
    for kind in ("float32", "int8"):
        report = to_tflite(model, tmp_path / f"{kind}.tflite", input_type=kind)
        snapped = tf.keras.models.load_model(report.snapped)
        found = parity(snapped, report.path, values, trained=model)
        assert found.first_diverging is None
        assert found.agreement["simulation_file"] == 100
        assert found.agreement["keras_file"] > 99
        outputs[kind] = report.census
    taken = outputs["int8"].inputs[0]
    assert taken.scale == pytest.approx(float(quantizer.grid().step))
    assert outputs["float32"].inputs[0].gain is None
    # As an application makes the codes, of what the report says.
    prepared = values * np.float32(taken.gain) + np.float32(taken.offset)
    codes = np.clip(np.rint(prepared / taken.scale) + taken.zero_point, -128, 127)
    made = {kind: runner(read(tmp_path / f"{kind}.tflite"), 1) for kind in ("float32", "int8")}
    given = {"float32": values, "int8": codes.astype(np.int8)}
    first, second = (
        np.concatenate([made[kind]([each[None]])[0] for each in given[kind][:64]])
        for kind in ("float32", "int8")
    )
    np.testing.assert_array_equal(first, second)
    assert not {"MUL", "ADD", "QUANTIZE"} & set(outputs["int8"].operators)
    assert f"{taken.gain[0]:.6g}" in str(taken)


def test_a_normalization_behind_another_shape(tmp_path):
    """Which nothing moves, so that its biases in the file are not those of Keras."""
    model, values = measured((6, 10), (12, 5))
    report = to_tflite(model, tmp_path / "model.tflite", input_type="int8")
    found = parity(tf.keras.models.load_model(report.snapped), report.path, values, trained=model)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == 100


def test_codes_in_the_shape_that_comes_in(tmp_path):
    """A shape, a norm, another shape, and another norm before the one quantizer."""
    values, norms = measurements((6, 10)), [layers.Normalization() for _ in range(2)]
    inputs = tf.keras.Input((6, 10))
    norms[0].adapt(values.reshape(-1, 12, 5))
    x = norms[0](layers.Reshape((12, 5))(inputs))
    norms[1].adapt(np.random.default_rng(1).uniform(-3, 2, (64, 15, 4)))
    x = norms[1](layers.Reshape((15, 4))(x))
    x = layers.Flatten()(dlqat_tf.CGPACT(8, 3.0, signed=True)(x))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x))
    report = to_tflite(model, tmp_path / "model.tflite", input_type="int8")
    taken = report.census.inputs[0]
    assert taken.shape == (6, 10)
    assert len(taken.gain) == len(taken.offset) == 60  # of each value
    found = parity(tf.keras.models.load_model(report.snapped), report.path, values, trained=model)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100
    prepared = values.reshape(-1, 60) * taken.gain + taken.offset
    expected = norms[1](norms[0](values.reshape(-1, 12, 5)).numpy().reshape(-1, 15, 4))
    np.testing.assert_allclose(prepared, expected.numpy().reshape(-1, 60), atol=1e-4)


def test_binary_kernels_take_them_too(tmp_path):
    model, values = measured((6,))
    report = to_lce(model, tmp_path / "model.tflite", input_type="int8")
    found = parity(tf.keras.models.load_model(report.snapped), report.path, values)
    assert found.agreement["simulation_file"] == 100
