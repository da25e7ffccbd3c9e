import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf.export import ExportError, lower, snap
from dlqat_tf.export.integer.integers import integers
from dlqat_tf.export.integer.network import Dense
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import (
    Simulation,
    _exact_product,
    _fixed_point_sum,
    _Sum,
    binary_layer,
)
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import images_for, small_network


def dense(weights, step, bias):
    weights = np.asarray(weights, np.int16)
    return Dense(
        name="dense",
        weights=weights,
        step=np.float32(step),
        bias=np.float64(bias),
        bits=8,
        kernel="int8",
    )


def test_codes_are_stretched_and_the_step_shrinks():
    node = dense([[1, 3], [-1, 1]], [0.5, 0.1], [1.0, -0.2])
    numbers = integers(node, ActivationGrid(0, 3, 1.0), ActivationGrid(0, 3, 1.0))
    assert numbers.codes.tolist() == [[127, 126], [-127, 42]]  # times 127 and 127 // 3
    np.testing.assert_allclose(numbers.scale, [0.5 / 127, 0.1 / 42], rtol=1e-6)
    assert numbers.bias.tolist() == [254, -84]  # 1.0 / (0.5 / 127) and -0.2 / (0.1 / 42)


def test_a_scale_that_no_kernel_holds_is_refused():
    node = dense([[1], [1]], [1e6], [0])
    with pytest.raises(ExportError, match="collapsed or exploded"):
        integers(node, ActivationGrid(0, 255, 1.0), ActivationGrid(0, 255, 1.0))


def test_a_gain_that_decayed_to_nothing_leaves_the_bias():
    node = dense([[1], [1]], [1e-20], [2.0])
    numbers = integers(node, ActivationGrid(0, 255, 1.0), ActivationGrid(0, 255, 1.0))
    assert numbers.codes.tolist() == [[0], [0]]
    np.testing.assert_allclose(numbers.bias * numbers.scale, [2.0])


@given(st.integers(0, 10_000), st.integers(1, 3000))
@settings(max_examples=20)
def test_products_are_exact_beyond_float32(seed, features):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (features, 3))
    x = rng.integers(0, 256, (2, features))
    node = dense(weights, [1, 1, 1], [0, 0, 0])
    product = _exact_product(node, x, weights.astype(np.int8), ActivationGrid(0, 255, 1.0))
    np.testing.assert_array_equal(product, x @ weights)


def test_sums_round_half_up():
    # Steps 1 and 1 to a step of 2: (0 + 1) / 2 = 0.5 and (1 + 2) / 2 = 1.5 round up.
    one = ActivationGrid(-128, 127, np.float32(1))
    codes = (np.array([0, 1, -1, 3]), np.array([1, 2, 0, 0]))
    rounded = _fixed_point_sum(_Sum(codes, (one, one)), ActivationGrid(0, 3, np.float32(2)))
    assert rounded.tolist() == [1, 2, 0, 2]


def test_steps_that_an_add_cannot_hold_are_refused():
    tiny = ActivationGrid(0, 3, np.float32(1e-6))
    with pytest.raises(ExportError, match="1/1024 to 256"):
        _fixed_point_sum(_Sum((np.zeros(1), np.zeros(1)), (tiny, tiny)), ActivationGrid(0, 3, 1.0))


def test_binary_parts_sum_to_the_layer():
    network = plan(lower(small_network(weight_bits=2, activation_bits=3)), plane_limit=9)
    node, grid = network["second"], network["first_act"].grid
    layer = binary_layer(node, grid)
    assert len(layer.parts) == 6
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, node.weights.shape[:3])
    total = sum(
        part.multiplier * np.tensordot(1 - 2 * (x >> part.activation_bit & 1), part.signs, 3)
        + part.bias
        for part in layer.parts
    )
    np.testing.assert_array_equal(total, np.tensordot(x, node.weights, 3))
    expected = np.tensordot(x * float(grid.step), node.values, 3) + node.bias
    np.testing.assert_allclose(total * layer.scale + layer.bias, expected, rtol=1e-5, atol=1e-6)


def test_batches_do_not_change_the_result():
    model = small_network()
    simulation = Simulation(plan(lower(model)))
    images = images_for(model, 10)
    np.testing.assert_array_equal(simulation.logits(images, 3), simulation.logits(images, 10))


def test_snapping_keeps_the_integers_and_moves_keras_to_them():
    model = small_network()
    images = images_for(model, 64)
    network = plan(lower(model))
    snapped, report = snap(model)
    again = plan(lower(snapped))
    np.testing.assert_array_equal(
        Simulation(network).logits(images), Simulation(again).logits(images)
    )
    expected = snapped(images.astype(np.float32) / np.float32(255)).numpy()
    np.testing.assert_allclose(Simulation(again).logits(images), expected, rtol=1e-4, atol=1e-4)
    assert {shift.layer for shift in report.shifts} == {"first", "second"}
    assert 0 < report.largest_steps < 0.5
    # Snapping what is snapped moves nothing but float32 rounding.
    assert snap(snapped)[1].largest_steps < 1e-5
