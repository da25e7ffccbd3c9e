"""Steps of what is added: moved to ratios that integer adds hold."""

from dataclasses import replace

import numpy as np
import pytest

from dlqat_tf.export.files.assembly import ExportReport
from dlqat_tf.export.files.census_report import Census
from dlqat_tf.export.integer.adds import with_exact_adds
from dlqat_tf.export.integer.integers import add_multipliers
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Add, Input, MaxPool, Output, Subtract
from dlqat_tf.export.integer.rounding import RUNTIMES, Merged
from dlqat_tf.export.integer.snap import SnapReport, StepShift, snap
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import small_network

VALUES = Input(name="values", shape=(4, 4, 2), preprocessing=None)


def activation(name, step, inputs=("values",), source=None):
    grid = ActivationGrid(-128, 127, np.float32(step))
    source = name if source is None else source
    return Activation(name=name, inputs=inputs, grid=grid, bits=8, source=source)


def added(*nodes):
    """Return the steps of the activations of a network, its adds made exact."""
    last = Output(name="output", inputs=(nodes[-1].name,))
    network = with_exact_adds(IntegerNetwork((VALUES, *nodes, last)))
    return {node.name: node.grid.step for node in network if isinstance(node, Activation)}


def pair(first, second, kind=Add):
    """Two quantizers, what merges them, and what rounds it to steps of 1."""
    return (first, second, kind(name="sum", inputs=("a", "b")), activation("c", 1, ("sum",)))


def test_steps_move_to_the_multipliers_of_the_kernel():
    steps = added(*pair(activation("a", 0.3), activation("b", 0.7)))
    # The larger ratio has 21 bits: 0.7 is 0.7 * 2^21 = 1,468,006.4 of 2^-21, 0.3 is 629,145.6.
    expected = np.array([629146, 1468006]) / 2**21
    np.testing.assert_allclose([steps["a"], steps["b"]], expected, rtol=2**-23)
    assert steps["c"] == 1


@pytest.mark.parametrize("kind", [Add, Subtract])
def test_keras_then_rounds_as_the_kernel_does(kind):
    first, second = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    differing = {}
    for name, steps in (
        ("trained", {"a": np.float32(0.3123), "b": np.float32(0.7321), "c": np.float32(1)}),
        ("moved", added(*pair(activation("a", 0.3123), activation("b", 0.7321), kind=kind))),
    ):
        grids = [ActivationGrid(-128, 127, steps[each]) for each in "abc"]
        merged = Merged(kind(name="sum", inputs=("a", "b")), (first, second), tuple(grids[:2]))
        kernel = RUNTIMES["tflite"].merged(merged, grids[2])
        values = first.astype(np.float32) * steps["a"], second.astype(np.float32) * steps["b"]
        keras = np.rint(values[0] + values[1] if kind is Add else values[0] - values[1])
        differing[name] = np.sum(kernel != keras)
    assert differing["moved"] == 0 < differing["trained"]


def test_the_last_add_decides_where_adds_follow_each_other():
    nodes = (
        *pair(activation("a", 0.3), activation("b", 0.7)),
        activation("d", 0.37),
        Add(name="sum2", inputs=("c", "d")),
        activation("e", 1.71, ("sum2",)),
    )
    steps = added(*nodes)
    for inputs, target in ((("a", "b"), "c"), (("c", "d"), "e")):
        grids = [ActivationGrid(-128, 127, steps[name]) for name in (*inputs, target)]
        *multipliers, shift = add_multipliers("sum", grids[:2], grids[2])
        exact = np.array(multipliers) * 2.0**-shift * steps[target]
        np.testing.assert_allclose([steps[name] for name in inputs], exact, rtol=2**-23)
    assert 0 < abs(steps["c"] - 1) < 1e-6
    assert steps["e"] == np.float32(1.71)


def test_what_may_not_move_stays():
    fixed = added(*pair(activation("a", 0.3, source=""), activation("b", 0.7)))
    assert fixed["a"] == np.float32(0.3)
    assert fixed["b"] != np.float32(0.7)
    # What a pool reads may be concatenated behind it, on a common grid.
    first, *rest = pair(activation("a", 0.3), activation("b", 0.7))
    pool = MaxPool(name="pool", inputs=("a",), size=(2, 2), strides=(2, 2), padding="valid")
    assert added(first, pool, *rest)["a"] == np.float32(0.3)
    # A quantizer that both inputs share moves to one of the two ratios, which are equal.
    both = added(*pair(activation("a", 0.3, source="q"), activation("b", 0.3, source="q")))
    assert both["a"] == both["b"] != np.float32(0.3)
    # Without a rounding after it an add runs in float.
    nodes = (activation("a", 0.3), activation("b", 0.7), Add(name="sum", inputs=("a", "b")))
    assert added(*nodes) == {"a": np.float32(0.3), "b": np.float32(0.7)}


def test_a_second_time_nothing_moves():
    first = added(*pair(activation("a", 0.3123), activation("b", 0.7321)))
    assert added(*pair(activation("a", first["a"]), activation("b", first["b"]))) == first


def test_reports_leave_out_what_adds_ask_for():
    model = small_network()
    snapped, report = snap(model)
    assert report.steps
    assert all(each.is_small for each in report.steps)
    assert [table.title for table in report.tables()] == [
        "Biases and gains moved to those of the file"
    ]
    for each in report.steps:
        before, after = (part.get_layer(each.layer).grid().step for part in (model, snapped))
        assert after / before - 1 == pytest.approx(each.relative, abs=1e-7)
    large = replace(report, steps=[*report.steps, StepShift("act", 0.01)])
    assert large.tables()[-1].row_count == 1


def test_reports_name_no_shift_that_is_printed_as_zero():
    shifts = [StepShift("a", 4e-5), StepShift("b", -4e-5)]
    nothing = Census("file.tflite", 0, 0, 0, 0, {}, {}, [], [], [])
    for steps, lines in (
        (shifts, []),
        (
            [*shifts, StepShift("c", -6e-5)],
            [
                "steps of 1 quantizers, whose values are concatenated or added, moved by at most "
                "0.01%"
            ],
        ),
    ):
        tables = ExportReport("file.tflite", None, nothing, [], {}, [], steps=steps).tables()
        assert [each for each in tables if str(each).startswith("steps of")] == lines
        assert len(SnapReport([], steps=steps).tables()) == 1 + len(lines)
