"""What moves of a bias and of a gain cost, by hand and against all sums of a channel."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.nodes import Activation, Sign
from dlqat_tf.export.integer.thresholds import Thresholds, _most_covered, thresholds_of
from dlqat_tf.quantizers import ActivationGrid

BITS = ActivationGrid(0, 1, np.float32(1))


def rounding(step, highest=3, lowest=0):
    return Activation(name="act", grid=ActivationGrid(lowest, highest, np.float32(step)), bits=2)


@pytest.mark.parametrize(
    ("points", "spacing", "clearance", "move"),
    [
        ([0.5], 1, 0.24, 0.0),
        ([0.1], 1, 0.08, 0.0),
        ([0.05], 1, 0.08, -0.04),  # 9/8 of the clearance
        ([-0.1, 0.3], 1, 0.9, 0.1),  # the middle of -0.1, where 0.9 is on the circle, and 0.3
        ([0.3, 7.9], 2, 0.5, 0.1),  # the middle of -0.1 and 0.3: sums are even
        ([0.0], 1, 0.08, -0.09),  # on a tie
    ],
)
def test_a_float_bias_moves_between_its_thresholds(points, spacing, clearance, move):
    found = Thresholds(np.array(points), -100, 100, spacing, clearance).move_between()
    assert found == pytest.approx(move, abs=1e-9)


@pytest.mark.parametrize(
    ("points", "spacing", "clearance", "moves", "best"),
    [
        ([-0.1, 0.2], 1, 0.01, [-0.2, 0.3, 0.1], 0.1),  # crosses none
        ([-0.1, 0.2, 0.25], 2, 0.01, [-0.7, 0.3], -0.7),  # crosses one, not two
        ([0.0], 2, 0.0, [3.5, -1.5], -1.5),  # one sum, not two
        ([1.0], 2, 0.2, [0.7, -0.2, 0.5], -0.2),  # the nearest
        ([1.0], 2, 0.8, [0.7, -0.2, 0.5], -0.2),  # 9/8 of it is not to be had, but a half is
        ([0.2], 2, 0.5, [0.05, -0.1, -0.4], -0.4),  # all of 9/16
        ([0.2], 2, 1.0, [-0.05, -0.1, -0.4], -0.4),  # a half of 9/8
        ([0.2], 2, 0.8, [0.1, -0.1], -0.1),  # 0.1 is less than a quarter of it: a tie
        ([0.1, 1.0, 1.4], 2, 0.4, [-0.05, 0.15], -0.05),  # one code more for less than a tie
    ],
)
def test_the_best_of_the_moves(points, spacing, clearance, moves, best):
    found, change = Thresholds(np.array(points), -100, 100, spacing, clearance).choice(
        np.array(moves)
    )
    assert (moves[found], change) == (best, 0)


def test_the_move_that_costs_least_where_codes_are_likely():
    """One threshold or two pass a sum, as above; which costs more says how likely these are."""
    thresholds = Thresholds(np.array([-0.1, 0.2, 0.25]), -100, 100, 2, 0.01)
    for costs, best in (((1, 1, 1), 0), ((1, 0.1, 0.1), 1), ((0.1, 0.1, 0.1), 0), ((1, 1, 0.1), 0)):
        found = replace(thresholds, costs=np.array(costs))
        assert found.choice(np.array([-0.7, 0.3])) == (best, 0)


def test_a_tie_costs_as_much_as_codes_there():
    # A move by 0.2 makes a tie of the first threshold, one of 0.7 passes a sum with the second.
    thresholds = Thresholds(np.array([0.2, 0.6]), -100, 100, 1, 0.01)
    for costs, best in (((1, 1), 1), ((1e-3, 1), 0)):
        found = replace(thresholds, costs=np.array(costs))
        assert found.choice(np.array([0.2, -0.5])) == (best, 0)


def test_codes_of_the_trained_network_are_kept_where_steps_moved_its_thresholds():
    # The step moved the threshold from -0.1 to 0.1: the sum of 0 has the code of those below.
    thresholds = Thresholds(np.array([0.1]), -9, 9, 1, 0.08, trained=np.array([-0.1]))
    assert thresholds.choice(np.array([0.0, 0.2])) == (1, 0)
    assert replace(thresholds, trained=None).choice(np.array([0.0, 0.2])) == (0, 0)
    assert thresholds.move_between() == pytest.approx(0.1 + 9 / 8 * 0.08)
    # A gain moves it back too: from 2.1 from zero to 2 less the clearance.
    gained = replace(thresholds, bias=2.0, largest_change=0.25)
    which, change = gained.choice(np.array([0.0]), with_gain=True)
    assert (which, change) == (0, pytest.approx((2 - 9 / 8 * 0.08) / 2.1 - 1))


def test_the_steps_of_thresholds_as_trained():
    found = thresholds_of(
        np.array([[2], [2]]), BITS, rounding(2.0), np.ones(1), np.ones(1), trained=(0.5, 0.75)
    )
    (thresholds,) = found
    np.testing.assert_array_equal(thresholds.points, [0, 2, 4])
    # Thresholds of 0.75, 2.25 and 3.75 for sums of steps of 0.5 and a bias of 1.
    np.testing.assert_array_equal(thresholds.trained, [-0.5, 2.5, 5.5])


def test_a_gain_keeps_each_threshold_between_its_two_sums():
    # Of a bias of 0.5 thresholds of 0.8 and 2.4 lie at 0.3 and 1.9. Without it, at 0.8 and 2.4, the
    # second has passed the sum of 2; with a whole one, at -0.2 and 1.4, the first that of 0. At
    # 2 / 2.4 of their size and without a bias they are at 0.67 and 2: as before, and near to 2.
    moves = np.array([-0.5, 0.5])
    thresholds = Thresholds(np.array([0.3, 1.9]), 0, 9, 1, 1e-3, bias=0.5, largest_change=0.25)
    assert thresholds.choice(moves) == (0, 0.0)
    which, change = thresholds.choice(moves, with_gain=True)
    assert which == 0
    assert change == pytest.approx((2 - 9 / 8 * 1e-3) / 2.4 - 1)
    # Where it may not change so much, the move costs a code as it did.
    assert replace(thresholds, largest_change=0.1).choice(moves, with_gain=True) == (0, 0.0)
    # Where float32 does not tell two sums apart, no gain helps.
    vague = replace(thresholds, clearance=2.0)
    assert vague.choice(moves, with_gain=True) == vague.choice(moves)
    # A lead of 0.4 is a part of the bias that scales with the gain: at 0.8 - 0.4 and 2.4 - 0.4 the
    # thresholds shrink to 2 / 2.4 of that less, and it is 1.6 / 2 that brings the second to 2.
    which, change = thresholds.choice(moves, with_gain=True, leads=np.array([0.4, 0.4]))
    assert (which, change) == (0, pytest.approx((1.6 - 9 / 8 * 1e-3) / 2.0 - 1))
    # And where a move costs nothing, no gain changes.
    free = np.array([-0.5, 0.5, 0.1])
    assert thresholds.choice(free, with_gain=True) == (2, 0.0)


def test_the_thresholds_of_channels():
    codes = np.array([[2, 4, 1], [2, -2, 0]])
    found = list(
        thresholds_of(
            codes, BITS, rounding(2.0), unit=np.array([1.0, 1.0, 0.1]), bias=np.array([1, 1, 0])
        )
    )
    # Sums of 0, 2 and 4, of -2 to 4, and of 0 and 1; the last do not come near to 10.
    np.testing.assert_array_equal(found[0].points, [0, 2, 4])
    assert [each and (each.least, each.most, each.spacing) for each in found] == [
        (0, 4, 2),
        (-2, 4, 2),
        None,
    ]
    # The largest distance, the bias, and a random walk of two weights at a largest input of 1.
    clearances = [
        2.0**-24 * (math.sqrt(2) + 16) * (4 + 1 + math.sqrt(8)),
        2.0**-24 * (math.sqrt(2) + 16) * (4 + 1 + math.sqrt(20)),
    ]
    np.testing.assert_allclose([each.clearance for each in found[:2]], clearances)
    assert found[0].largest_change == 0.5 / 3  # half a step at the end of three
    assert found[0].costs == 1
    (sign,) = thresholds_of(codes[:, :1], None, Sign(name="s"), np.ones(1), np.array([1.0]))
    np.testing.assert_array_equal(sign.points, [-1])


@given(
    seed=st.integers(0, 10_000),
    levels=st.integers(1, 12),
    signed=st.booleans(),
    spacing=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=80)
def test_a_choice_changes_as_few_codes_as_it_says(seed, levels, signed, spacing):
    """Counted over all sums, of which a gain changes no more than a move alone."""
    rng = np.random.default_rng(seed)
    codes = spacing * rng.integers(-9, 10, (6, 1))
    codes[0] = spacing
    step, bias = float(np.float32(rng.uniform(0.5, 8))), rng.normal(0, 4, 1)
    target = rounding(step, levels, -levels if signed else 0)
    (thresholds,) = thresholds_of(codes, BITS, target, np.ones(1), bias)
    if thresholds is None:
        return
    thresholds = replace(thresholds, clearance=1e-6)
    moves = np.array([math.floor(bias[0]), math.ceil(bias[0])]) - bias[0]
    sums = np.arange(np.minimum(codes, 0).sum(), np.maximum(codes, 0).sum() + 1, spacing)

    def changed(which, change):
        """Return how many codes differ, with the gain and the bias of a choice."""
        gains, biases = (1.0, 1 / (1 + change)), (bias[0], bias[0] + moves[which])
        first, second = (
            np.clip(np.rint(gain * (sums + each) / step), target.grid.lowest, levels)
            for gain, each in zip(gains, biases, strict=True)
        )
        return np.abs(first - second).sum()

    alone = thresholds.choice(moves)
    both = thresholds.choice(moves, with_gain=True)
    assert alone[1] == 0
    cost, _ = thresholds._cost(moves[[both[0]]], np.array([both[1]]), np.zeros(1))
    if cost.item() < 8:  # no tie
        assert changed(*both) == cost.item()
    assert cost.item() <= thresholds._cost(moves[[alone[0]]], np.zeros(1), np.zeros(1))[0].item()


def test_what_lies_in_the_intervals_that_count_most():
    intervals = np.array([[[0.1, 0.15, -0.4], [0.2, 0.3, -0.3]]])
    for weights, best in (((1, 1, 1), 0.15), ((1, 1, 3), -0.3), ((1, 0, 1), 0.1)):
        assert _most_covered(intervals, np.array(weights), farthest=1.0) == [best]
    assert _most_covered(intervals, np.array([1, 1, 3]), farthest=0.2) == [0.15]


def test_codes_cost_as_much_as_they_are_likely():
    moments = Moments(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    found = thresholds_of(
        np.array([[2, 4], [2, -2]]), BITS, rounding(2.0), np.ones(2), np.ones(2), moments
    )
    # Thresholds of 1, 3 and 5.
    expected = [[math.exp(-0.5), 1, math.exp(-0.5)], [1, math.exp(-2), math.exp(-8)]]
    for each, costs in zip(found, expected, strict=True):
        np.testing.assert_allclose(each.costs, np.maximum(costs, 1e-3))


def test_gains_keep_the_codes_that_are_likely():
    """No gain keeps all codes of 4 bits on 8-bit weights, and it is the rare ones that change."""
    rng = np.random.default_rng(0)
    codes, bias = rng.integers(-127, 128, (27, 200)), rng.normal(0, 3000, 200)
    pixels, ones = ActivationGrid(0, 255, np.float32(1)), np.ones(200)
    moments = Moments(np.zeros(200), 7000.0 * ones)
    target, costs = rounding(2000.3, 15), {"known": 0.0, "unknown": 0.0}
    for thresholds in thresholds_of(codes, pixels, target, ones, bias, moments):
        moves = np.rint(thresholds.bias) + np.array([0, -1, 1]) - thresholds.bias
        unknown = replace(thresholds, costs=1.0)
        for name, each in dict(known=thresholds, unknown=unknown).items():
            which, change = each.choice(moves, with_gain=True)
            costs[name] += thresholds._cost(moves[[which]], np.array([change]), np.zeros(1))[
                0
            ].item()
    assert costs["known"] < costs["unknown"] * 0.8


def test_8_bit_weights_keep_the_codes_of_2_bits():
    """Biases are whole numbers of sums, and a gain finds room for three thresholds."""
    rng = np.random.default_rng(0)
    codes, bias = rng.integers(-127, 128, (27, 200)), rng.normal(0, 3000, 200)
    pixels = ActivationGrid(0, 255, np.float32(1))
    costs = {False: 0.0, True: 0.0}
    for thresholds in thresholds_of(codes, pixels, rounding(7000.3), np.ones(200), bias):
        moves = np.rint(thresholds.bias) + np.array([0, -1, 1]) - thresholds.bias
        for with_gain in costs:
            which, change = thresholds.choice(moves, with_gain)
            cost, _ = thresholds._cost(moves[[which]], np.array([change]), np.zeros(1))
            costs[with_gain] += cost.item()
    assert costs[True] < costs[False] / 2
