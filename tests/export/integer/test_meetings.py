"""Steps of values that come together are multiples of a common one, or move there."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlqat_tf.export.integer.meetings import _EQUAL, common_grids
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Concatenate, Input, Maximum, MaxPool, Pad
from dlqat_tf.quantizers import (
    CGPACT,
    ActivationGrid,
    ActivationQuantizer,
    DoReFaActivations,
    DSQActivations,
    HAWQActivations,
    LSQActivations,
)

VALUES = Input(name="values", shape=(4, 4, 2), preprocessing=None)


def activation(name, step, highest=3, lowest=0, source=None):
    grid = ActivationGrid(lowest, highest, np.float32(step))
    source = name if source is None else source
    return Activation(name=name, inputs=("values",), grid=grid, bits=2, source=source)


def together(*activations, kind=Concatenate, move=True, apart=()):
    """Bring all together; return the network, and the grids of meetings."""
    names = tuple(each.name for each in activations)
    nodes = (VALUES, *activations, kind(name="all", inputs=names))
    return common_grids(IntegerNetwork(nodes), apart, move)


def steps_of(network):
    return {node.name: node.grid.step for node in network if isinstance(node, Activation)}


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("kind", [Concatenate, Maximum])
def test_multiples_of_a_common_step_stay(move, kind):
    network, grids = together(activation("a", 1), activation("b", 0.75), kind=kind, move=move)
    assert steps_of(network) == {"a": 1, "b": 0.75}
    assert grids == {"all": ActivationGrid(0, 12, np.float32(0.25))}


def test_one_step_of_several_widths_is_the_common_one():
    _, grids = together(activation("a", 0.5), activation("b", 0.5, highest=15))
    assert grids == {"all": ActivationGrid(0, 15, np.float32(0.5))}


def test_one_grid_is_left_as_it_is():
    network, grids = together(activation("a", 0.7), activation("b", 0.7))
    assert grids == {"all": ActivationGrid(0, 3, np.float32(0.7))}
    assert set(steps_of(network).values()) == {np.float32(0.7)}


def test_other_steps_move_a_little():
    before = {"a": 1.0, "b": 1 / np.sqrt(2), "c": 0.1 * np.pi}
    network, grids = together(*(activation(*each) for each in before.items()))
    grid = grids["all"]
    after = steps_of(network)
    assert 0 < max(abs(after[name] / before[name] - 1) for name in before) < 0.01
    assert all(float(step / grid.step).is_integer() for step in after.values())
    assert (grid.lowest, grid.highest) == (0, round(3 * max(after.values()) / grid.step))
    assert grid.highest <= 255


def test_trained_steps_are_left_where_they_may_not_move():
    before = {"a": 1.0, "b": 1 / np.sqrt(2)}
    network, grids = together(*(activation(*each) for each in before.items()), move=False)
    assert grids == {}
    assert steps_of(network) == pytest.approx(before)


def test_eight_bits_have_no_room_for_two_ranges():
    before = {"a": 1.0, "b": 0.5}
    network, grids = together(*(activation(*each, highest=255) for each in before.items()))
    assert grids == {}
    assert steps_of(network) == before


def test_many_codes_make_room_for_few():
    """127 codes of 8 bits hold 42 of them to each of the 3 codes of 2 bits, and here are 47."""
    eight = activation("eight", 1.0, highest=127, lowest=-128)
    network, grids = together(eight, activation("two", 47.0))
    steps = steps_of(network)
    assert steps["two"] == pytest.approx(47, rel=1e-4)
    assert steps["eight"] == pytest.approx(47 / 42, rel=1e-4)
    assert grids["all"].highest == 127


def test_the_shorter_of_two_steps_gets_longer():
    """The longer one would cut off its largest values."""
    network, grids = together(activation("a", 1.1, highest=255), activation("b", 1.0, highest=255))
    assert steps_of(network) == pytest.approx({"a": 1.1, "b": 1.1}, rel=1e-4)
    assert grids["all"].highest == 255


def test_a_step_that_is_fixed_is_what_others_meet():
    network, grids = together(activation("a", 1), activation("b", 1 / np.sqrt(2), source=""))
    (a, b) = steps_of(network).values()
    assert b == np.float32(1 / np.sqrt(2))
    assert 0 < abs(a - 1) < 0.01
    unit = grids["all"].step
    np.testing.assert_allclose([a / unit, b / unit], np.rint([a / unit, b / unit]), rtol=1e-6)


def test_two_fixed_steps_without_a_common_one_are_left():
    _, grids = together(*(activation(n, s, source="") for n, s in (("a", 1), ("b", 0.70710677))))
    assert grids == {}


def test_pixels_are_codes_that_do_not_move():
    pixels = Input(name="values", shape=(4, 4, 2))
    nodes = (pixels, activation("a", 0.3), Concatenate(name="all", inputs=("values", "a")))
    network, grids = common_grids(IntegerNetwork(nodes), (), True)
    assert grids["all"].step == np.float32(1 / 255)
    assert steps_of(network)["a"] == pytest.approx(76 / 255)  # the nearest to 76.5 pixels


def test_signed_values_meet_on_codes_of_both_signs():
    network, grids = together(activation("a", 1, lowest=-1, highest=1), activation("b", np.pi))
    grid = grids["all"]
    assert grid.lowest >= -128
    assert grid.highest <= 127
    factor = float(steps_of(network)["a"] / grid.step)
    assert grid.lowest == -factor


def test_what_meets_twice_meets_on_one_grid():
    """As around the pools of Inception: the second meeting multiplies no codes of the first."""
    nodes = (
        VALUES,
        activation("a", 1.0),
        activation("b", 0.7071),
        activation("c", 0.314),
        Concatenate(name="first", inputs=("a", "b")),
        MaxPool(name="pool", inputs=("first",), size=(2, 2), strides=(2, 2), padding="valid"),
        MaxPool(name="small", inputs=("c",), size=(2, 2), strides=(2, 2), padding="valid"),
        Concatenate(name="second", inputs=("small", "pool")),
    )
    network, grids = common_grids(IntegerNetwork(nodes), (), True)
    assert grids["first"] == grids["second"]
    steps = np.array(list(steps_of(network).values())) / grids["first"].step
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_one_layer_of_two_places_moves_once():
    nodes = (
        VALUES,
        activation("a", 1.0, source="shared"),
        activation("a_2", 1.0, source="shared"),
        activation("b", 0.7071),
        activation("c", 0.314),
        Concatenate(name="first", inputs=("a", "b")),
        Concatenate(name="second", inputs=("a_2", "c")),
    )
    network, grids = common_grids(IntegerNetwork(nodes), (), True)
    steps = steps_of(network)
    assert steps["a"] == steps["a_2"]
    assert grids["first"] == grids["second"]


def test_what_is_float_has_no_common_grid():
    a, b = activation("a", 1.0), activation("b", 0.7071)
    assert together(a, b, apart=("all",))[1] == {}
    for between in (
        Pad(name="between", inputs=("b",), amounts=((0, 0), (0, 0)), value=0.5),
        Concatenate(name="between", inputs=("b", "values")),
    ):
        nodes = (VALUES, a, b, between, Concatenate(name="all", inputs=("a", "between")))
        assert common_grids(IntegerNetwork(nodes), (), True)[1] == {}


@example([(0.35, 1, False), (1 / 3, 1, False)])
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.01, 1.0), st.sampled_from([1, 3, 7, 15, 31, 63]), st.booleans()),
        min_size=2,
        max_size=6,
    )
)
def test_what_was_found_is_found_again(drawn):
    """A snapped model has the grids of its file, where steps may move and where they may not."""
    every = [
        activation(f"a{i}", step, highest, -highest * signed)
        for i, (step, highest, signed) in enumerate(drawn)
    ]
    network, grids = together(*every)
    for grid in grids.values():
        assert grid.highest - grid.lowest <= 255
        for node in network:
            if isinstance(node, Activation):
                ratio = float(node.grid.step) / float(grid.step)
                factor = round(ratio)
                assert ratio == pytest.approx(factor, rel=_EQUAL)  # both are rounded to float32
                assert factor * node.grid.highest <= grid.highest
    for move in (True, False):
        again, same = common_grids(network, (), move)
        assert same == grids
        if grids:
            assert steps_of(again) == steps_of(network)


@pytest.mark.parametrize(
    "quantizer",
    [
        CGPACT(3),
        CGPACT(4, signed=True),
        DoReFaActivations(2),
        LSQActivations(3),
        HAWQActivations(3),
        DSQActivations(3),
    ],
)
def test_quantizers_say_what_their_step_is_part_of(quantizer):
    quantizer(tf.random.stateless_uniform((2, 8), (0, 0)), training=True)
    variable, codes = quantizer.scaled_step
    variable.assign(np.float32(0.375) * codes)
    assert quantizer.grid().step == np.float32(0.375)


def test_a_step_that_the_method_fixes_has_no_variable():
    assert ActivationQuantizer(2).scaled_step is None
    assert CGPACT(32).scaled_step is None
