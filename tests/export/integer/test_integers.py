import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf import CGPACT
from dlqat_tf.export import lower, parity, to_lce
from dlqat_tf.export.integer.integers import _clear_move, integers, stored_bias
from dlqat_tf.export.integer.network import Activation, Convolution, Dense, Sign
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, images_for, randomize, small_network

layers = tf.keras.layers
CODES = ActivationGrid(0, 3, np.float32(1))


def dense(weights, step, bias, kernel="int8"):
    return Dense(
        name="dense",
        weights=np.array(weights, np.int16),
        step=np.float32(step),
        bias=np.asarray(bias, np.float64),
        bits=1,
        kernel=kernel,
    )


def binary(weights, step, bias):
    weights = np.array(weights, np.int16)[np.newaxis, np.newaxis]
    values = dict(weights=weights, step=np.float32(step), bias=np.float64(bias), bits=1)
    return Convolution(name="binary", kernel="planes", **values)


def rounding(highest=3, step=1.0, lowest=0):
    return Activation(name="act", grid=ActivationGrid(lowest, highest, np.float32(step)), bits=2)


def test_a_bias_on_a_tie_moves_and_another_stays():
    # Sums times 0.5 meet the thresholds 0.5, 1.5 and 2.5 at 1, 3 and 5; with 0.25 added they are
    # half a sum away from each.
    node = binary([[1, 1], [1, 1], [1, 1]], [0.5, 0.5], [0.0, 0.25])
    clearance = 2.0**-24 * (math.sqrt(3) + 16) * (5 + 0 + 3 * math.sqrt(3))
    moved, kept = stored_bias(node, CODES, rounding())
    assert moved == pytest.approx(-0.5 * clearance * 9 / 8)
    assert kept == 0.25
    assert stored_bias(node, CODES, rounding(), clear=False).tolist() == [0.0, 0.25]


def test_an_int8_bias_moves_by_its_own_unit():
    # Codes are stretched to 127, so that the bias is in units of 0.5 / 127.
    node = dense([[1], [1], [1]], [0.5], [0.0])
    moved = stored_bias(node, CODES, rounding())
    np.testing.assert_allclose(moved, [-0.5 / 127], rtol=1e-6)
    assert integers(dense([[1]] * 3, [0.5], moved), CODES, rounding().grid).bias.tolist() == [-1]


def test_an_int8_bias_goes_where_it_changes_no_code():
    # In units of 0.5 / 127, thresholds are at multiples of 127 and the bias at 126.6: 127 is
    # nearest, on a tie, and 128 would change the code of one sum in two.
    node = dense([[1], [1], [1]], [0.5], [126.6 * 0.5 / 127])
    unit = 0.5 / 127
    cleared = stored_bias(node, CODES, rounding()) / unit
    nearest = stored_bias(node, CODES, rounding(), clear=False) / unit
    np.testing.assert_allclose([cleared, nearest], [[126], [127]], rtol=1e-6)


def test_int4_thresholds_lie_lower():
    # Codes are stretched to 7, the ratio to the output step is 1/14, 4/7 * 2^-3: rounded to eighths
    # first, what is above 6.125 / 14 = 3.5 / 8 becomes a half and rounds up.
    node = dense([[1], [1]], [0.5], [0.25], kernel="int4")
    numbers = integers(node, CODES, rounding().grid)
    np.testing.assert_allclose(numbers.lead, [0.875], rtol=1e-6)  # 7 - 6.125
    assert numbers.bias.tolist() == [3]  # 0.25 * 14 - 0.875 = 2.625
    np.testing.assert_allclose(stored_bias(node, CODES, rounding()), [3.875 / 14], rtol=1e-6)


def test_sums_that_no_weights_reach_are_no_ties():
    # One weight of 3 reaches 0, 3, 6 and 9. The thresholds are at 1, 3 and 5, or only at 1.
    assert stored_bias(binary([[3]], [0.5], [0.0]), CODES, rounding()) != 0
    assert stored_bias(binary([[3]], [0.5], [0.0]), CODES, rounding(highest=1)).tolist() == [0.0]
    assert stored_bias(binary([[1]], [0.5], [0.0]), CODES, rounding(highest=1)) != 0
    # Above the highest sum, 3 * 0.5, there is only the bias itself.
    assert stored_bias(binary([[1]], [0.5], [9.0]), CODES, rounding()).tolist() == [9.0]


def test_a_sign_has_one_threshold():
    node = binary([[1], [-1]], [1.0], [2.0])
    assert 2 - 1e-5 < stored_bias(node, None, Sign(name="sign")) < 2
    node = binary([[1], [-1]], [1.0], [0.5])
    assert stored_bias(node, None, Sign(name="sign")).tolist() == [0.5]


def test_signed_grids_have_thresholds_below_zero():
    # -1.5 and -0.5 are met by sums of -3 and -1, at inputs that weights of -1 make negative.
    node = binary([[-1], [-1]], [0.5], [0.0])
    assert stored_bias(node, CODES, rounding(lowest=-2, highest=0)) != 0
    assert stored_bias(node, CODES, rounding(lowest=0, highest=3)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("points", "circle", "clearance", "first", "move"),
    [
        ([0.5], 1, 0.24, None, 0.0),
        ([0.1], 1, 0.08, None, 0.0),
        ([0.05], 1, 0.08, None, -0.04),  # 9/8 of the clearance
        ([7.05], 1, 0.08, None, -0.04),  # the same, a circle further
        ([-0.1, 0.3], 1, 0.5, None, 0.1),  # the middle
        ([-0.1, 0.2], 10, 0.4, 0.3, -0.7),  # whole numbers away from 0.3
        ([-0.1, 0.2, -0.8], 10, 0.4, 0.3, 1.3),
        ([-0.1, 0.2, 0.5], 3, 1.4, 0.3, 1.3),  # 0.8 to the next point: half of it
        ([0.1, 0.3], 1, 0.4, 0.3, 0.3),  # the only place: a tie
    ],
)
def test_clear_move(points, circle, clearance, first, move):
    moved = _clear_move(np.array(points), circle, clearance, first)
    assert moved == pytest.approx(move, abs=1e-9)


@given(data=st.data(), seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_reachable_sums_keep_clear_of_thresholds(data, seed):
    rng = np.random.default_rng(seed)
    bits, features = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    signed = data.draw(st.booleans())
    target = rounding(127, 0.05, -128) if signed else rounding(2**bits - 1, 0.7)
    grid = target.grid
    thresholds = (np.arange(grid.lowest, grid.highest) + 0.5) * float(grid.step)
    weights = 2 * rng.integers(0, 2**bits, (features, 1)) - (2**bits - 1)
    step, bias = rng.uniform(0.01, 1), rng.normal()
    make = data.draw(st.sampled_from([binary, dense]))
    codes, unit = weights, float(np.float32(step))
    if make is dense:
        numbers = integers(make(weights, [step], [bias]), CODES, grid)
        codes, unit = numbers.codes.astype(int), float(numbers.scale[0])
    if data.draw(st.booleans()):  # on a tie
        bias = thresholds[rng.integers(len(thresholds))] - unit * int(codes[0, 0])
    after = stored_bias(make(weights, [step], [bias]), CODES, target)[0]
    again = stored_bias(make(weights, [step], [after]), CODES, target)[0]
    assert again == pytest.approx(after, rel=1e-12)

    spacing = int(np.gcd.reduce(codes, axis=None))
    least, most = 3 * int(np.minimum(codes, 0).sum()), 3 * int(np.maximum(codes, 0).sum())
    points = (thresholds - bias) / unit
    points = points[(points > least - spacing) & (points < most + spacing)]
    if not len(points):
        assert after == pytest.approx(bias, abs=unit / 2 if make is dense else 0)
        return
    assert abs(after - bias) <= unit * spacing / 2 * (1 + 1e-6)
    sums = abs(points).max() + abs(bias) / unit + 3 * np.linalg.norm(codes)
    clearance = 2.0**-24 * (math.sqrt(features) + 16) * sums
    around = np.sort(points % spacing)
    around = np.append(around, around[0] + spacing)
    best = np.diff(around).max() / 2
    if make is dense:  # biases are whole numbers
        away = (points + bias / unit - np.arange(spacing)[:, np.newaxis]) % spacing
        best = np.minimum(away, spacing - away).min(axis=1).max()
    reachable = np.arange(least, most + 1, spacing)[:, np.newaxis]
    nearest = np.abs((thresholds - after) / unit - reachable).min()
    if make is dense:
        halves = (9 / 8 * clearance / 2**i for i in range(4))
        assert nearest >= next((each for each in halves if each <= best), 0) - 1e-9
        return
    before, moved = ((thresholds - each) / unit - reachable for each in (bias, after))
    gap = np.diff(around)[np.searchsorted(around, 1e-9) - 1]
    assert nearest >= min(clearance, gap / 2, around[0] + spacing - around[-2]) - 1e-9
    assert nearest >= np.abs(before).min() - 1e-9
    assert np.all((np.sign(before) == np.sign(moved)) | (np.abs(before) < 1e-9))  # the same codes


def on_ties(quantizer) -> tf.keras.Model:
    """Return a network whose second convolution has the sum 1 on a threshold in every channel."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((8, 8, 3))
    x = CGPACT(2, 1.9)(convolution(inputs, 32, 3, weight_bits=8, name="first"))
    x = quantizer(convolution(x, 16, 3, weight_bits=1, name="second"))
    x = layers.GlobalAveragePooling2D()(x)
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(x)))
    network = lower(model)
    node, source = network["second"], network[network["second"].inputs[0]]
    step = float(network.consumers()["second"][0].grid.step)
    tie = 0.5 * step - node.step * float(source.grid.step)
    model.get_layer("second_bn").beta.assign_add(tie - node.bias)
    return model


@pytest.mark.parametrize(
    "quantizer", [CGPACT(2, 2.0), CGPACT(8, 3.0, signed=True)], ids=["2 bits", "8 bits signed"]
)
def test_keras_and_a_binarized_file_agree_once_no_sum_is_on_a_tie(tmp_path, quantizer):
    model = on_ties(quantizer)
    images = images_for(model, 32)
    differences = {}
    for snap in (False, True):
        report = to_lce(model, tmp_path / f"{snap}.tflite", snap=snap)
        compared = tf.keras.models.load_model(report.snapped) if snap else model
        result = parity(compared, report.path, images)
        assert result.first_diverging is None
        differences[snap] = result.logit_difference["keras_file"]
        # The file is that of the model before snapping, too.
        assert parity(model, report.path, images).logit_difference["simulation_file"] < 1e-4
    assert differences[True] < 1e-5 < 1e-4 < differences[False]
    moved = {shift.layer: shift.largest for shift in report.shifts}
    network = lower(model)
    unit = network["second"].step * float(network[network["second"].inputs[0]].grid.step)
    assert 0 < moved["second"] <= unit.max() / 2


def test_a_plan_moves_what_one_activation_rounds_and_only_if_asked():
    network = lower(on_ties(CGPACT(2, 2.0)))
    bias = network["second"].bias
    assert np.all(plan(network, plane_limit=9)["second"].bias != bias)
    np.testing.assert_array_equal(plan(network, plane_limit=9, clear=False)["second"].bias, bias)
    # A sum that is added in float before it is rounded meets no threshold itself.
    added = lower(small_network(weight_bits=1, residual_bits=None))
    np.testing.assert_array_equal(plan(added, plane_limit=9)["second"].bias, added["second"].bias)
