import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.nodes import PReLU
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.rounding import RUNTIMES, Sloped
from dlqat_tf.export.integer.slopes import codes_of_slopes, slopes_of
from dlqat_tf.export.integer.snap import snap
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, images_for, randomize

layers = tf.keras.layers


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.LeakyReLU(0.25), [0.25]),
        (layers.ReLU(negative_slope=0.5), [0.5]),
        (layers.Activation(tf.nn.leaky_relu), [0.2]),
        (tf.nn.leaky_relu, [0.2]),
        (layers.ReLU(max_value=6, negative_slope=0.5), None),
        (layers.ReLU(threshold=1.0), None),
        (layers.ReLU(), None),
        (layers.Activation("tanh"), None),
    ],
)
def test_slopes_of_layers(layer, expected):
    found = slopes_of(layer)
    assert (found if found is None else found.tolist()) == (
        expected and np.float32(expected).tolist()
    )


SIGNED = ActivationGrid(-128, 127, np.float32(0.031))


def test_codes_hold_the_largest_slope_and_stay():
    slopes = np.float32([-0.127, 0.0635, 0.0004, 0.0])
    codes, step = codes_of_slopes(slopes, SIGNED, SIGNED)
    assert codes[0] == -127
    assert codes[3] == 0
    assert np.abs(codes - slopes / 0.001).max() < 2
    assert step == pytest.approx(0.001, rel=2**-10)
    again, same = codes_of_slopes(codes * step, SIGNED, SIGNED)
    assert (again.tolist(), same) == (codes.tolist(), step)
    assert codes_of_slopes(np.zeros(2, np.float32), SIGNED, SIGNED)[0].tolist() == [0, 0]


def test_a_largest_slope_that_moves_moves_all_until_they_stay():
    """The step that it suits is longer, and one code less of it is the nearest: 126."""
    grids = ActivationGrid(-1, 2, np.float32(0.821)), ActivationGrid(-128, 127, np.float32(0.053))
    slopes = np.float32([-1.061, 0.092])
    codes, step = codes_of_slopes(slopes, *grids)
    assert codes.tolist() == [-127, 10]
    np.testing.assert_allclose(codes * step, slopes, atol=2 * step)
    again, same = codes_of_slopes(codes * step, *grids)
    assert (again.tolist(), same) == ([-127, 10], step)


@settings(max_examples=300)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5),
    st.sampled_from([0.0203, 0.031, 0.0449, 0.031326376]),  # 48 of these are 47.5 of the last
)
def test_the_kernel_rounds_as_float_does(slopes, step):
    """And codes of slopes are at most a few from the nearest."""
    target = ActivationGrid(-128, 127, np.float32(step))
    found = codes_of_slopes(np.float32(slopes), SIGNED, target)
    if found is None:
        return
    codes, step = found
    inputs = np.arange(-128, 128)[:, None]
    sloped = Sloped(inputs, SIGNED, codes.astype(int), step)
    values = np.where(inputs < 0, codes * step, 1) * (inputs * SIGNED.step)
    expected = np.rint(values * (1 / target.step))
    for kernels in ("tflite", "builtin", "micro"):
        found = np.clip(RUNTIMES[kernels].sloped(sloped, target), -128, 127)
        np.testing.assert_array_equal(found, np.clip(expected, -128, 127))
    assert np.abs(codes * step - slopes).max() <= 5.01 * step


def test_an_output_of_few_codes_has_none():
    """Codes 0 to 127 by 1 / 79: the kernel rounds 39 / 79 up."""
    target = ActivationGrid(-2, 1, np.float32(0.031 * 79))
    assert codes_of_slopes(np.float32([0.137]), SIGNED, target) is None
    assert codes_of_slopes(np.float32([0.137]), SIGNED, SIGNED) is not None


def test_halves_are_rounded_otherwise():
    """Half of -5 is between two codes: -2 is even, and -3 away from zero."""
    grid = ActivationGrid(-128, 127, np.float32(0.5))
    assert codes_of_slopes(np.float32([0.5]), grid, grid) is None


def sloped(function, signed=True, bits=8):
    """Codes below and above zero, a function of two slopes, and what rounds its output."""
    inputs = tf.keras.Input((6, 6, 3))
    x = convolution(inputs, 32, 3, weight_bits=8)
    x = dlqat_tf.CGPACT(8, 3.9, signed=True, name="before")(x)
    x = dlqat_tf.CGPACT(bits, 3.7, signed=signed, name="after")(function(x))
    x = convolution(x, 32, 3, weight_bits=1)
    x = layers.GlobalAveragePooling2D()(dlqat_tf.CGPACT(2, 2.0)(x))
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x)))


FUNCTIONS = {
    "leaky": lambda: layers.LeakyReLU(0.13),
    "prelu": lambda: layers.PReLU("uniform", shared_axes=[1, 2], name="slopes"),
    "of each position": lambda: layers.PReLU("uniform", name="slopes"),
}


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_file_has_one_operation(tmp_path, name, kernels):
    model = sloped(FUNCTIONS[name]())
    if name != "leaky":
        alpha = model.get_layer("slopes").alpha
        alpha.assign(np.random.default_rng(0).uniform(-0.2, 0.6, alpha.shape))
    images = images_for(model, 64)
    report = to_tflite(model, tmp_path / "model.tflite", kernels=kernels)
    assert report.census.operators["PRELU"] == 1
    assert not report.census.islands
    assert [each.layer for each in report.levels] == ["slopes"] * (name != "leaky")
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, report.path, images, trained=model)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100
    if name != "leaky":
        moved = np.abs(snapped.get_layer("slopes").alpha - alpha)
        assert moved.max() == pytest.approx(report.levels[0].largest, abs=1e-6)
        assert 0 < moved.max() < 5 * 0.6 / 127


def test_it_is_one_in_the_file_of_binary_kernels(tmp_path):
    model = sloped(layers.LeakyReLU(0.13))
    report = to_lce(model, tmp_path / "model.tflite")
    assert report.census.operators["PRELU"] == 1
    found = parity(tf.keras.models.load_model(report.snapped), report.path, images_for(model, 32))
    assert found.first_diverging is None


@pytest.mark.parametrize(("signed", "bits"), [(False, 7), (True, 3)])
def test_what_the_operation_cannot_clip_or_round_stays_float(tmp_path, signed, bits):
    model = sloped(layers.LeakyReLU(0.13), signed=signed, bits=bits)
    report = to_tflite(model, tmp_path / "model.tflite")
    assert "PRELU" not in report.census.operators
    assert len(report.census.islands) == 1


@pytest.mark.parametrize(("second", "count"), [(4.0, 2), (3.1, 0)])
def test_slopes_of_calls_on_several_grids_stay_float(second, count):
    """On one grid both calls have the codes of the file; a step of 3.1 / 127 asks for others."""
    slopes = layers.PReLU("uniform", shared_axes=[1, 2], name="slopes")
    inputs = x = tf.keras.Input((6, 6, 3))
    for i, end in enumerate((4.0, second)):
        x = dlqat_tf.CGPACT(8, 4.0, signed=True, name=f"q{i}")(convolution(x, 8, 3, weight_bits=8))
        x = dlqat_tf.CGPACT(8, end, signed=True, name=f"after{i}")(slopes(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x))
    slopes.alpha.assign(np.random.default_rng(0).uniform(-0.2, 0.6, slopes.alpha.shape))
    network = plan(lower(model))
    assert sum(isinstance(node, PReLU) for node in network) == count
    snap(model)
