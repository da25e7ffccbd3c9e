"""The integer programme against all choices that there are."""

import itertools

import numpy as np
import pytest

from dlqat_tf.mixed_precision.programme import Programme, Reader

WEIGHTS, ACTIVATIONS = (1, 2, 4), (2, 8)


def problem(seed):
    """Three layers: one reads a fixed input, two read the same activations, another group is idle.

    Costs and increases are random, the costs not monotone.
    """
    generator = np.random.default_rng(seed)

    def costs():
        return {"bytes": float(generator.integers(1, 50)), "time": float(generator.integers(1, 9))}

    readers = [
        Reader("first", None, {(0, 0): costs()}),
        Reader("a", None, {(w, 0): costs() for w in WEIGHTS}),
        *(
            Reader(name, "act", {(w, a): costs() for w in WEIGHTS for a in ACTIVATIONS})
            for name in "bc"
        ),
    ]
    groups = {"act": ACTIVATIONS, "idle": ACTIVATIONS}
    rises = {name: dict(zip(WEIGHTS, generator.random(3), strict=True)) for name in "abc"}
    rises |= {name: dict(zip(ACTIVATIONS, generator.random(2), strict=True)) for name in groups}
    return readers, groups, rises


def everything(readers, groups, rises, fixed):
    """Yield bits, increase and costs of all choices."""
    names = [*"abc", *groups]
    widths = [WEIGHTS] * 3 + [ACTIVATIONS] * 2
    for values in itertools.product(*widths):
        bits = dict(zip(names, values, strict=True))
        costs = dict(fixed)
        for reader in readers:
            pair = bits.get(reader.name, 0), bits.get(reader.group, 0)
            for name, cost in reader.costs[pair].items():
                costs[name] += cost
        yield bits, sum(rises[name][bits[name]] for name in names), costs


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed):
    readers, groups, rises = problem(seed)
    fixed = {"bytes": 5.0, "time": 1.0}
    programme = Programme(readers, groups, fixed)
    every = list(everything(readers, groups, rises, fixed))
    budgets = {name: float(np.median([costs[name] for _, _, costs in every])) for name in fixed}
    within = [each for each in every if all(each[2][name] <= budgets[name] for name in budgets)]
    bits, increase, costs = min(within, key=lambda each: each[1])
    programme.check(budgets)
    choice = programme.solve(rises, budgets)
    assert choice.bits == {"first": 0, **bits}
    assert choice.increase == pytest.approx(increase)
    assert choice.costs == pytest.approx(costs)
    assert programme.smallest("bytes", {}) == min(costs["bytes"] for *_, costs in every)


def test_small_increases_are_told_apart_beside_large_ones():
    """Of 8 bits where there is room for all, though they differ by up to a thousand millions."""
    widths, generator = (1, 2, 4, 8), np.random.default_rng(54)
    readers = [
        Reader(str(size), None, {(bits, 0): {"bytes": float(size * bits)} for bits in widths})
        for size in (90, 700, 13, 52_000, 5)
    ]
    programme = Programme(readers, {}, {"bytes": 0.0})
    for _ in range(8):
        largest = 10.0 ** generator.uniform(-9, 0, len(readers))
        rises = {
            each.name: {bits: rise * 4.0**-bits for bits in widths}
            for each, rise in zip(readers, largest, strict=True)
        }
        choice = programme.solve(rises, {"bytes": 8.0 * (90 + 700 + 13 + 52_000 + 5)})
        assert set(choice.bits.values()) == {8}


@pytest.mark.parametrize("size", [1, 10**6, 10**9])
def test_a_budget_is_never_exceeded_by_one(size):
    """Ten of 20 equal layers at 4 bits and ten at 2 would take it and one more."""
    readers = [
        Reader(str(i), None, {(bits, 0): {"bytes": float(size * bits)} for bits in (1, 2, 4)})
        for i in range(20)
    ]
    rises = {each.name: {1: 1.0, 2: 1 / 4, 4: 1 / 64} for each in readers}
    programme = Programme(readers, {}, {"bytes": 7.0})
    budget = 60.0 * size + 7 - 1
    choice = programme.solve(rises, {"bytes": budget})
    assert sorted(choice.bits.values()) == 11 * [2] + 9 * [4]
    assert choice.costs["bytes"] == budget + 1 - 2 * size


def test_sums_of_latencies_that_rounding_puts_above_the_budget():
    """0.1 + 0.2 is above 0.3 in float64."""
    readers = [Reader(str(time), None, {(1, 0): {"time": time}}) for time in (0.1, 0.2)]
    programme = Programme(readers, {}, {"time": 0.0})
    programme.check({"time": 0.3})
    assert programme.solve({}, {"time": 0.3}).costs["time"] == pytest.approx(0.3)
    assert programme.solve({}, {"time": np.inf}).costs["time"] == pytest.approx(0.3)


def test_a_budget_that_is_met_exactly_is_enough():
    readers, groups, rises = problem(0)
    programme = Programme(readers, groups, {"bytes": 0.0, "time": 0.0})
    smallest = programme.smallest("bytes", {})
    programme.check({"bytes": smallest})
    assert programme.solve(rises, {"bytes": smallest}).costs["bytes"] == smallest


def test_an_impossible_budget_says_what_the_smallest_is():
    readers, groups, _ = problem(0)
    programme = Programme(readers, groups, {"bytes": 1000.0, "time": 0.0})
    smallest = programme.smallest("bytes", {})
    message = rf"at least {smallest:,.10g} for bytes, .*Received: 1,000\. Give it more"
    with pytest.raises(ValueError, match=message):
        programme.check({"bytes": 1000.0})


def test_budgets_that_are_only_impossible_together():
    costs = {(1, 0): {"x": 1.0, "y": 9.0}, (2, 0): {"x": 9.0, "y": 1.0}}
    programme = Programme([Reader("a", None, costs)], {}, {"x": 0.0, "y": 0.0})
    with pytest.raises(ValueError, match=r"at least 9 for y, .* within x of 5. Received: 5"):
        programme.check({"x": 5.0, "y": 5.0})


def test_the_curve_falls_from_the_cheapest_to_the_best():
    readers, groups, rises = problem(3)
    programme = Programme(readers, groups, {"bytes": 0.0, "time": 0.0})
    points = list(programme.curve(rises, "bytes", 10))
    assert points[0].costs["bytes"] == programme.smallest("bytes", {})
    assert points[-1].increase == programme.solve(rises, {}).increase
    assert all(a.increase > b.increase for a, b in itertools.pairwise(points))
