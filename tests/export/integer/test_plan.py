from dataclasses import replace

import numpy as np
import pytest

from dlqat_tf.export import ExportError
from dlqat_tf.export.integer.grids import grids
from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Add,
    AveragePool,
    Concatenate,
    Convolution,
    Dense,
    GlobalAveragePool,
    Input,
    Maximum,
    ReLU,
    Reshape,
)
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.storing import stored
from dlqat_tf.quantizers import ActivationGrid

IMAGES = Input(name="images", shape=(4, 4, 2))


def convolution(name, source, codes=3, bias=0.0, bits=2, **options):
    """A 1x1 convolution of two channels whose codes are all but the first ``codes``."""
    weights = np.full((1, 1, 2, 2), codes, np.int16)
    weights[0, 0, 0] = 1
    return Convolution(
        name=name,
        inputs=(source,),
        weights=weights,
        step=np.full(2, 0.25, np.float32),
        bias=np.full(2, bias),
        bits=bits,
        **options,
    )


def activation(name, source, step=0.5, lowest=0, highest=3):
    grid = ActivationGrid(lowest, highest, np.float32(step))
    return Activation(name=name, inputs=(source,), grid=grid, bits=2)


def test_a_measured_range_reaches_both_ends():
    network = IntegerNetwork(
        (
            IMAGES,
            convolution("a", "images"),
            convolution("b", "images"),
            convolution("c", "images"),
            ReLU(name="relu", inputs=("c",)),
            Add(name="sum", inputs=("a", "b", "relu")),
            activation("act", "sum"),
        )
    )
    ranges = {"a": (-4.0, 1.0), "b": (-1.0, 2.54), "relu": (0.0, 2.55)}
    planned = plan(network, calibrate=lambda _, names: {name: ranges[name] for name in names})
    found = {node.name: node.grid for node in planned if isinstance(node, Activation)}
    # 128 steps down to -4, 127 up to 2.54, and 255 up to 2.55.
    assert found["a_calibrated"] == ActivationGrid(-128, 127, np.float32(4 / 128))
    assert found["b_calibrated"] == ActivationGrid(-128, 127, np.float32(2.54 / 127))
    assert found["relu"] == ActivationGrid(0, 255, np.float32(2.55 / 255))
    assert planned["sum"].inputs == ("a_calibrated", "b_calibrated", "relu")
    with pytest.raises(ExportError, match="output range of 'a', 'b', 'c'"):
        plan(network)


@pytest.mark.parametrize(
    ("second", "common"),
    [
        ((0, 15, 0.4), (0, 30, 0.2)),  # codes times 5 and 2
        ((-8, 7, 0.5), (-8, 7, 0.5)),
        ((-2, 15, 0.4), (-4, 30, 0.2)),
        # Steps without a common one: all 256 codes.
        ((0, 15, 0.41427), (0, 255, 6.21405 / 255)),  # up to 6.2, of 3 and 6.2
        ((-8, 7, 0.51427), (-128, 127, 4.11416 / 128)),  # down to -4.1, and up to 3.6
        ((-2, 15, 0.41427), (-128, 127, 6.21405 / 127)),
    ],
)
def test_what_is_side_by_side_is_on_one_grid(second, common):
    lowest, highest, step = second
    network = IntegerNetwork(
        (
            IMAGES,
            convolution("a", "images"),
            activation("first", "a", step=1.0),
            convolution("b", "images"),
            activation("second", "b", step, lowest, highest),
            Concatenate(name="both", inputs=("first", "second")),
            Add(name="twice", inputs=("both", "both")),
            activation("act", "twice"),
        )
    )
    planned = plan(network)
    for name in planned["both"].inputs:
        grid = planned[name].grid
        assert (grid.lowest, grid.highest) == common[:2]
        assert grid.step == pytest.approx(common[2], rel=1e-6)


def test_a_pool_to_vectors_is_a_convolution_too():
    network = IntegerNetwork(
        (
            IMAGES,
            GlobalAveragePool(name="pool", inputs=("images",)),
            activation("act", "pool"),
            Reshape(name="image", inputs=("act",), shape=(1, 1, 2)),
            convolution("conv", "image"),
            activation("end", "conv"),
        )
    )
    planned = plan(network)
    assert planned["pool"].weights.shape == (4, 4, 2, 1)
    assert planned.shapes["act_image"] == (1, 1, 2)
    assert planned.shapes["act"] == (2,)
    assert planned["conv"].kernel == "int8"


def test_inputs_of_a_maximum_are_brought_to_one_grid():
    nodes = (IMAGES, convolution("a", "images"), activation("fine", "a", 0.25))
    nodes += (convolution("b", "images"), activation("wide", "b", 0.5))
    nodes += (Maximum(name="max", inputs=("fine", "wide")), convolution("c", "max"))
    planned = plan(IntegerNetwork((*nodes, activation("end", "c"))))
    common = ActivationGrid(0, 6, np.float32(0.25))
    assert [planned[name].grid for name in planned["max"].inputs] == [common, common]


def test_steps_of_quantizers_that_may_move_meet():
    a, b = (
        replace(activation(name, of, step), source=name)
        for name, of, step in (("first", "a", 1.0), ("second", "b", 0.41427))
    )
    nodes = (IMAGES, convolution("a", "images"), a, convolution("b", "images"), b)
    nodes += (Concatenate(name="both", inputs=("first", "second")), convolution("c", "both"))
    network = IntegerNetwork((*nodes, activation("end", "c")))
    moved, trained = (plan(network, clear=clear) for clear in (True, False))
    assert [planned.shapes["both"] for planned in (moved, trained)] == [(4, 4, 4)] * 2
    assert trained["second"].grid == b.grid
    steps = [moved[name].grid.step for name in ("first", "second")]
    unit = moved[moved["both"].inputs[0]].grid.step
    np.testing.assert_array_equal(steps / unit, np.rint(steps / unit))


def test_a_pool_between_codes_is_a_convolution_by_its_share():
    network = IntegerNetwork(
        (
            IMAGES,
            AveragePool(
                name="pool", inputs=("images",), size=(2, 3), strides=(1, 1), padding="valid"
            ),
            activation("act", "pool", 1 / 255, 0, 255),
            GlobalAveragePool(name="all", inputs=("act",), keepdims=True),
            activation("end", "all", 1 / 255, 0, 255),
        )
    )
    planned = plan(network)
    for name, size in (("pool", (2, 3)), ("all", (3, 2))):
        node = planned[name]
        assert (node.depthwise, node.kernel) == (True, "int8")
        assert node.weights.tolist() == np.ones((*size, 2, 1)).tolist()
        np.testing.assert_allclose(node.step, [1 / 6, 1 / 6], rtol=1e-6)


def test_int4_is_for_hidden_codes_up_to_seven():
    network = IntegerNetwork(
        (
            IMAGES,
            convolution("a", "images", codes=127, bits=8),
            activation("a_act", "a"),
            convolution("b", "a_act", codes=7, bits=3),
            activation("b_act", "b"),
            convolution("c", "b_act", codes=9, bits=4),
            activation("c_act", "c"),
        )
    )
    found = {n.name: n.kernel for n in plan(network, int4=True) if isinstance(n, Convolution)}
    assert found == {"a": "int8", "b": "int4", "c": "int8"}
    with pytest.raises(ExportError, match="no convolution of this model has them"):
        plan(IntegerNetwork(network.nodes[:3]), int4=True)


@pytest.mark.parametrize(("other", "stretch"), [(1 / 41, 41), (1 / 37, 42)])
def test_calls_that_share_their_codes_stretch_them_alike(other, stretch):
    # In units of the sums, 0.25 * 0.5. Codes up to 3 can be multiplied by 42 at most; alone, the
    # first call takes 41, and with another bias in the second call both keep 42.
    unit = 0.25 * 0.5
    network = IntegerNetwork(
        (
            IMAGES,
            convolution("a", "images", codes=9, bits=8),
            activation("a_act", "a"),
            convolution("b", "a_act", bias=unit / 41),
            activation("b_act", "b"),
            convolution("c", "b_act", bias=unit * other),
            activation("c_act", "c"),
        )
    )
    planned = plan(network, clear=False)
    assert [planned[name].stretch.tolist() for name in "bc"] == [[stretch] * 2] * 2


def test_a_maximum_of_a_maximum_stays_in_codes():
    nodes = [IMAGES]
    for name, step in (("a", 0.25), ("b", 0.5), ("c", 1.0)):
        nodes += [convolution(f"{name}_conv", "images"), activation(name, f"{name}_conv", step)]
    nodes += [
        Maximum(name="two", inputs=("a", "b")),
        Maximum(name="three", inputs=("two", "c")),
        convolution("last", "three"),
        activation("end", "last"),
    ]
    planned = plan(IntegerNetwork(tuple(nodes)))
    found = grids(planned)  # rounded once, on the way to the first
    assert planned["three"].inputs[0] == "two"
    expected = ActivationGrid(0, 12, np.float32(0.25))
    assert [found[name] for name in planned["three"].inputs] == [expected, expected]
    assert planned["last"].kernel == "int8"


def test_a_dense_layer_on_planes_keeps_what_is_known_of_it():
    moments = Moments(np.zeros(2), np.ones(2))
    dense = Dense(
        name="dense",
        inputs=("flat",),
        weights=np.ones((8, 2), np.int16),
        step=np.ones(2, np.float32),
        bias=np.zeros(2),
        bits=1,
        bias_sources=("norm",),
        gain_source="norm",
        moments=moments,
    )
    image = replace(IMAGES, shape=(2, 2, 2))
    before = convolution("conv", "images", bits=8), activation("act", "conv")
    flat = Reshape(name="flat", inputs=("act",), shape=(8,))
    network = IntegerNetwork((image, *before, flat, dense, activation("out", "dense")))
    node = plan(network, plane_limit=2)["dense"]
    assert isinstance(node, Convolution)
    assert node.kernel == "planes"
    assert node.moments is moments
    assert (node.bias_sources, node.gain_source) == (("norm",), "norm")


def test_biases_are_chosen_for_the_steps_as_trained(monkeypatch):
    """Those of what adds read have moved, by less than a millionth, the others have not."""
    given = {}

    def noted(node, *arguments, **options):
        given[node.name] = options.get("trained", (1.0, 1.0))
        return stored(node, *arguments, **options)

    monkeypatch.setattr("dlqat_tf.export.integer.plan.stored", noted)
    residuals = [
        replace(activation(f"{name}_residual", name, step, -128, 127), source=name)
        for name, step in (("a", 0.0123457), ("b", 0.0317))
    ]
    added = Add(name="sum", inputs=("a_residual", "b_residual"))
    network = IntegerNetwork(
        (
            IMAGES,
            *(convolution(name, "images", bits=8, bias_sources=(name,)) for name in "ab"),
            *residuals,
            added,
            activation("act", "sum"),
            convolution("c", "a_residual", bias_sources=("norm",)),
            activation("out", "c"),
            # Two calls of one layer, and what has no bias that could move.
            *(convolution(name, "a_residual", bias_sources=("shared",)) for name in "de"),
            *(activation(f"{name}_out", name) for name in "de"),
            convolution("f", "a_residual"),
            activation("f_out", "f"),
        )
    )
    planned = plan(network)
    ratios = {
        name: float(network[name].grid.step) / float(planned[name].grid.step)
        for name in ("a_residual", "b_residual")
    }
    assert 0 < max(abs(ratio - 1) for ratio in ratios.values()) < 1e-6
    assert given == {
        "a": (1.0, ratios["a_residual"]),
        "b": (1.0, ratios["b_residual"]),
        "c": (ratios["a_residual"], 1.0),
        **dict.fromkeys("def", (1.0, 1.0)),
    }
    # Of larger moves values are kept.
    monkeypatch.setattr("dlqat_tf.export.integer.plan._SMALL", 0)
    plan(network)
    assert set(given.values()) == {(1.0, 1.0)}
