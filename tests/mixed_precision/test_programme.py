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
