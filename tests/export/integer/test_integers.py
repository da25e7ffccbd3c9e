import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf import CGPACT
from dlqat_tf.export import lower, parity, to_lce
from dlqat_tf.export.integer.integers import integers
from dlqat_tf.export.integer.nodes import Activation, Convolution, Dense, Sign
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.storing import stored
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
    values = dict(weights=weights, step=np.float32(step), bias=np.array(bias, float), bits=1)
    return Convolution(name="binary", kernel="planes", **values)


def rounding(highest=3, step=1.0, lowest=0):
    return Activation(name="act", grid=ActivationGrid(lowest, highest, np.float32(step)), bits=2)


def bias_of(node, source, target, **options):
    return stored(node, source, target, **options).bias


def test_a_bias_on_a_tie_moves_and_another_stays():
    # Sums times 0.5 meet the thresholds 0.5, 1.5 and 2.5 at 1, 3 and 5; with 0.25 added they are
    # half a sum away from each.
    node = binary([[1, 1], [1, 1], [1, 1]], [0.5, 0.5], [0.0, 0.25])
    clearance = 2.0**-24 * (math.sqrt(3) + 16) * (5 + 0 + 3 * math.sqrt(3))
    moved, kept = bias_of(node, CODES, rounding())
    assert moved == pytest.approx(-0.5 * clearance * 9 / 8)
    assert kept == 0.25
    assert bias_of(node, CODES, rounding(), clear=False).tolist() == [0.0, 0.25]


def test_an_int8_bias_moves_by_its_own_unit():
    # Codes are stretched to 127, so that the bias is in units of 0.5 / 127.
    node = dense([[1], [1], [1]], [0.5], [0.0])
    moved = bias_of(node, CODES, rounding())
    np.testing.assert_allclose(moved, [-0.5 / 127], rtol=1e-6)
    assert integers(dense([[1]] * 3, [0.5], moved), CODES, rounding().grid).bias.tolist() == [-1]


def test_an_int8_bias_goes_where_it_changes_no_code():
    # In units of 0.5 / 127, thresholds are at multiples of 127 and the bias at 126.6: 127 is
    # nearest, on a tie, and 128 would change the code of one sum in two.
    node = dense([[1], [1], [1]], [0.5], [126.6 * 0.5 / 127])
    unit = 0.5 / 127
    cleared = bias_of(node, CODES, rounding()) / unit
    nearest = bias_of(node, CODES, rounding(), clear=False) / unit
    np.testing.assert_allclose([cleared, nearest], [[126], [127]], rtol=1e-6)


def test_an_int8_bias_is_a_fraction_whose_denominator_stretches_the_codes():
    # Two thirds of the sums' unit, 0.5, and a bit: 84 / 126 is nearer than 85 / 127 and others.
    node = stored(dense([[1], [-1]], [0.5], [0.5 * (2 / 3 + 1e-6)]), CODES, rounding())
    numbers = integers(node, CODES, rounding().grid)
    assert node.stretch.tolist() == [126]
    assert numbers.codes.tolist() == [[126], [-126]]
    assert numbers.bias.tolist() == [84]
    np.testing.assert_allclose(numbers.scale, [0.5 / 126], rtol=1e-6)
    np.testing.assert_allclose(node.bias, [0.5 * 84 / 126], rtol=1e-6)
    # Codes of +-3 can be multiplied by 42 at most: 2 / 3 is 28 / 42.
    node = stored(dense([[3], [-1]], [0.5], [0.5 * (2 / 3 + 1e-6)]), CODES, rounding())
    assert node.stretch.tolist() == [42]
    # Calls with other biases share their codes, so the stretch stays the largest: 84.67 / 127.
    node = dense([[1], [-1]], [0.5], [0.5 * (2 / 3 + 1e-6)])
    node = stored(node, CODES, rounding(), largest=True)
    assert node.stretch.tolist() == [127]
    assert integers(node, CODES, rounding().grid).bias.tolist() == [85]


def test_an_int8_bias_crosses_the_fewest_thresholds():
    # Codes of 100 cannot be stretched, so the bias is a whole number. Modulo 1 the thresholds 0.45,
    # 1.35 and 2.25 are 0.45, 0.35 and 0.25: of 0.46, nearest is 0, but across all three.
    node = dense([[100], [1]], [1.0], [0.46])
    source = ActivationGrid(0, 1, np.float32(1))
    assert bias_of(node, source, rounding(3, 0.9)).tolist() == [1.0]
    assert bias_of(node, source, rounding(3, 0.9), clear=False).tolist() == [0.0]


def test_a_stretch_leaves_room_for_the_bias():
    # 127 * 1e8 is beyond an int32, and 11 * 1e8 beyond 2^30.
    node = dense([[1]] * 8, [1.0], [1e8])
    source, target = ActivationGrid(0, 255, np.float32(1)), ActivationGrid(0, 255, np.float32(1e6))
    numbers = integers(node, source, target)
    assert numbers.codes.tolist() == [[10]] * 8
    np.testing.assert_allclose(numbers.bias, 10**9, rtol=1e-7)
    # And for the sums: 2^30 / (255 * 2^17) is 32.1.
    node = dense([[1]] * 2**17, [1.0], [0.0])
    assert integers(node, source, target).codes.max() == 32


def test_a_channel_that_saturates_whatever_comes_in_keeps_its_bias():
    # Five million output steps below the grid, and 5e9 units of 1e-3: more than an int32 holds.
    node = stored(dense([[1], [1]], [1e-3], [-5e6]), CODES, rounding())
    assert node.bias.tolist() == [-5e6]
    assert integers(node, CODES, rounding().grid).bias.tolist() == [-(2**30)]


def test_a_stretch_keeps_the_unit_within_what_kernels_hold():
    # The unit is 200 output steps at a stretch of 127; 1 / 67 is exact but would make it 379.
    step = 127 * 200.0
    node = stored(dense([[1], [1]], [step], [step / 67]), CODES, rounding(), clear=False)
    assert step / node.stretch.item() < 256
    assert integers(node, CODES, rounding().grid).scale.item() < 256


def test_fractions_are_no_finer_than_float32_biases():
    # 0.34 is 34 / 100. Beside sums of 3 * sqrt(4608) and more a float32 bias tells fractions up to
    # 2^21 / 203.6 = 101^2 apart; beside 255 * sqrt(4096), up to 11^2, fewer than n / 127.
    pixels = ActivationGrid(0, 255, np.float32(1))
    for features, source, bias, stretch in (
        (4608, CODES, 0.34, 100),
        (4608, CODES, 34 / 103, 100),  # 33 / 100, not 34 / 103
        (4096, pixels, 0.34, 127),
    ):
        node = dense([[1]] * features, [1.0], [bias])
        assert stored(node, source, rounding(), clear=False).stretch.tolist() == [stretch]


def test_the_fraction_of_a_snapped_bias_is_the_nearest_to_it():
    """The snapped model has float32 biases; the file is known by them however clear they are."""
    rng = np.random.default_rng(0)
    pixels = rounding(255).grid
    for features, levels, source in (
        (9, 1, CODES),
        (576, 3, CODES),
        (144, 15, pixels),
        (1152, 1, pixels),
        (4608, 1, CODES),
    ):
        weights = 2 * rng.integers(0, levels + 1, (features, 200)) - levels
        steps = rng.uniform(0.01, 0.1, 200)
        bias = rng.normal(0, 2 * np.sqrt(features) * source.highest, 200) * steps
        target = rounding(127, 0.2, -128)
        first = stored(dense(weights, steps, bias), source, target)
        again = stored(dense(weights, steps, np.float32(first.bias)), source, target, clear=False)
        numbers = [integers(each, source, target.grid) for each in (first, again)]
        np.testing.assert_array_equal(first.stretch, again.stretch)
        np.testing.assert_array_equal(*(each.bias for each in numbers))


def test_a_whole_bias_is_held_by_the_largest_stretch():
    # Codes of 15 leave 8, which holds the whole biases around -231, and 6, 4, 3, 2 and 1.
    rng = np.random.default_rng(0)
    source, target = rounding(255).grid, rounding(127, 0.7, -128)
    biases = -231 + rng.uniform(-0.4, 0.4, 200)
    weights = 2 * rng.integers(0, 16, (100, 200)) - 15
    first = stored(dense(weights, [1e-3] * 200, biases * 1e-3), source, target)
    fractions = first.bias / np.float64(np.float32(1e-3))
    for fraction, stretch in zip(fractions, first.stretch, strict=True):
        fits = [m for m in range(1, 9) if abs(fraction * m - round(fraction * m)) < 1e-4]
        assert stretch == max(fits)


def test_int4_thresholds_lie_lower():
    # Codes are stretched to 7, the ratio to the output step is 1/14, 4/7 * 2^-3: rounded to eighths
    # first, what is above 6.125 / 14 = 3.5 / 8 becomes a half and rounds up.
    node = dense([[1], [1]], [0.5], [0.25], kernel="int4")
    numbers = integers(node, CODES, rounding().grid)
    np.testing.assert_allclose(numbers.lead, [0.875], rtol=1e-6)  # 7 - 6.125
    assert numbers.bias.tolist() == [3]  # 0.25 * 14 - 0.875 = 2.625
    np.testing.assert_allclose(bias_of(node, CODES, rounding()), [3.875 / 14], rtol=1e-6)


def test_int4_thresholds_are_where_they_are_without_a_second_rounding():
    # Ratio 2 / 7 * 7 = 2 of the unstretched step to the output step: rounded once, to whole steps.
    node = dense([[7], [1]], [2.0], [0.5], kernel="int4")
    assert integers(node, CODES, rounding().grid).lead.tolist() == [0.0]
    node = dense([[7], [1]], [0.3], [0.5], kernel="int4")  # 0.6 * 2^-1: halves first
    np.testing.assert_allclose(integers(node, CODES, rounding().grid).lead, [0.25 / 0.3], rtol=1e-6)


def test_sums_that_no_weights_reach_are_no_ties():
    # One weight of 3 reaches 0, 3, 6 and 9. The thresholds are at 1, 3 and 5, or only at 1.
    assert bias_of(binary([[3]], [0.5], [0.0]), CODES, rounding()) != 0
    assert bias_of(binary([[3]], [0.5], [0.0]), CODES, rounding(highest=1)).tolist() == [0.0]
    assert bias_of(binary([[1]], [0.5], [0.0]), CODES, rounding(highest=1)) != 0
    # Above the highest sum, 3 * 0.5, there is only the bias itself.
    assert bias_of(binary([[1]], [0.5], [9.0]), CODES, rounding()).tolist() == [9.0]


def test_a_sign_has_one_threshold():
    node = binary([[1], [-1]], [1.0], [2.0])
    assert 2 - 1e-5 < bias_of(node, None, Sign(name="sign")) < 2
    node = binary([[1], [-1]], [1.0], [0.5])
    assert bias_of(node, None, Sign(name="sign")).tolist() == [0.5]


def test_signed_grids_have_thresholds_below_zero():
    # -1.5 and -0.5 are met by sums of -3 and -1, at inputs that weights of -1 make negative.
    node = binary([[-1], [-1]], [0.5], [0.0])
    assert bias_of(node, CODES, rounding(lowest=-2, highest=0)) != 0
    assert bias_of(node, CODES, rounding(lowest=0, highest=3)).tolist() == [0.0]


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
    step, bias = float(np.float32(rng.uniform(0.01, 1))), rng.normal()
    make = data.draw(st.sampled_from([binary, dense]))
    if data.draw(st.booleans()):  # on a tie
        bias = thresholds[rng.integers(len(thresholds))] - step * int(weights[0, 0])
    node = make(weights, [step], [bias])
    after = stored(node, CODES, target)
    again = stored(make(weights, [step], after.bias), CODES, target)
    assert again.bias[0] == pytest.approx(after.bias[0], rel=1e-12)

    spacing = int(np.gcd.reduce(weights, axis=None))
    least, most = 3 * int(np.minimum(weights, 0).sum()), 3 * int(np.maximum(weights, 0).sum())
    points = (thresholds - bias) / step
    points = points[(points > least - spacing) & (points < most + spacing)]
    move = (after.bias[0] - bias) / step

    def crossed(move):
        """Return how many points, repeated every circle, lie between 0 and a move."""
        turns = [np.ceil((each - points) / spacing) for each in (0.0, move)]
        return np.abs(turns[1] - turns[0]).sum()

    if make is dense:
        numbers = integers(after, CODES, grid)
        assert numbers.codes.tolist() == (weights * after.stretch).tolist()
        fractions = [
            n / m
            for m in range(1, 127 // np.abs(weights).max() + 1)
            for n in np.rint(m * bias / step) + np.array([-1, 0, 1])
        ]
        # Scales are float32, so a fraction of a unit is one up to their rounding.
        held = numbers.bias[0] / after.stretch[0]
        assert min(abs(held - each) for each in fractions) < 1e-9
        least_crossed = min(crossed(each - bias / step) for each in fractions)
        assert crossed(held - bias / step) <= least_crossed
        return
    if not len(points):
        assert after.bias[0] == bias
        return
    sums = abs(points).max() + abs(bias) / step + 3 * np.linalg.norm(weights)
    clearance = 2.0**-24 * (math.sqrt(features) + 16) * sums
    around = np.sort(points % spacing)
    around = np.append(around, around[0] + spacing)
    reachable = np.arange(least, most + 1, spacing)[:, np.newaxis]
    nearest = np.abs((thresholds - after.bias[0]) / step - reachable).min()
    before, moved = ((thresholds - each) / step - reachable for each in (bias, after.bias[0]))
    gap = np.diff(around)[np.searchsorted(around, 1e-9) - 1]
    assert abs(move) <= spacing / 2 * (1 + 1e-6)
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


@pytest.mark.parametrize(("library", "kernel"), [("builtin", "int8"), ("xnnpack", "int4")])
def test_biases_for_kernels_that_round_twice_allow_for_the_first_rounding(library, kernel):
    """To eighths of an output step first, so every threshold lies a sixteenth of a step lower."""
    weights = [[7]] if kernel == "int4" else [[127]]  # a stretch of 1
    node = replace(dense(weights, [0.1], [0.33], kernel), library=library)
    numbers = integers(node, CODES, rounding(step=1.0).grid)
    # 0.1 is 0.8 * 2^-3. Half an eighth is 0.625 sums; the bias is 3.3.
    assert numbers.lead == pytest.approx([0.625])
    assert numbers.bias.tolist() == [round(3.3 - 0.625)]
    assert integers(dense([[127]], [0.1], [0.33]), CODES, rounding().grid).lead.tolist() == [0]


def test_biases_that_a_shift_to_the_left_would_overflow():
    """Ratios above 1 are shifts, in 32 bits: a saturating bias is as large as they allow."""
    biases = [
        integers(
            replace(dense([[127]], [100.0], [-1e12]), library=library), CODES, rounding().grid
        ).bias.tolist()
        for library in ("xnnpack", "builtin")
    ]
    assert biases == [[-(2**30)], [-(2**23)]]  # 100 lies below 2^7
