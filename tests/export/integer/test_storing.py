"""Gains that put all rounding thresholds of a channel halfway between its sums."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT
from dlqat_tf.export import lower, snap
from dlqat_tf.export.integer.nodes import Activation, Dense
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.export.integer.storing import stored
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, images_for, quantized, randomize

layers = tf.keras.layers
PIXELS = ActivationGrid(0, 255, np.float32(1))


def held(step, **options):
    """What a file stores of 64 products, whose sums count ones, rounded to codes of a step."""
    node = Dense(
        name="dense",
        weights=np.full((64, 1), 127, np.int16),
        step=np.ones(1, np.float32),
        bias=np.array([0.3]),
        bits=8,
        kernel="int8",
        **{"gain_source": "norm", **options},
    )
    node.weights[0] = 126  # sums of any number of ones
    target = Activation(name="act", grid=ActivationGrid(0, 255, np.float32(step)), bits=8)
    return stored(node, PIXELS, target)


def test_an_output_step_becomes_an_odd_number_of_steps_of_sums():
    for step, odd in ((8000.4, 8001), (8001.7, 8001), (8003.0, 8003)):
        np.testing.assert_allclose(step / held(step).step, odd, rtol=1e-6)
    # So a threshold is half a sum away from sums of whole numbers and a whole bias.
    assert held(8000.4).bias / held(8000.4).step == pytest.approx([0.0])


def test_the_end_of_the_grid_moves_by_at_most_half_a_step():
    # Of 255 codes: 255 * (1 - 600.2 / 601) = 0.34, but 255 * (1 - 300.2 / 301) = 0.68.
    for step, odd in ((600.2, 601), (300.2, 300.5), (50.3, 50.25)):
        np.testing.assert_allclose(step / held(step).step, odd, rtol=1e-6)


def test_gains_stay_where_none_may_move_or_no_move_is_short_enough():
    assert held(8000.4, gain_source="").step == 1
    assert held(5.03).step == 1  # 81 sixteenths are 1.6 steps away at the end of the grid


def test_gains_stay_where_biases_alone_are_clear():
    node = held(8000.4)
    few = Activation(name="act", grid=ActivationGrid(0, 1, np.float32(1e6)), bits=1)
    assert stored(node, PIXELS, few).step == node.step


@pytest.mark.parametrize("center", [True, False])
def test_the_snapped_model_has_the_gains_of_the_file(center):
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = CGPACT(8, 2.0)(convolution(inputs, 8, 3, weight_bits=8, name="first"))
    x = layers.BatchNormalization(center=center, name="second_bn")(
        quantized(16, 8, name="second")(x)
    )
    model = randomize(tf.keras.Model(inputs, layers.Flatten()(CGPACT(8, 2.0, name="act")(x))))
    planned, lowered = plan(lower(model)), lower(model)
    snapped, report = snap(model, planned)
    has_moved = bool(np.any(planned["second"].step != lowered["second"].step))
    assert has_moved == center
    after = lower(snapped)["second"]
    np.testing.assert_allclose(after.step, planned["second"].step, rtol=1e-6)
    np.testing.assert_allclose(after.bias, planned["second"].bias, rtol=1e-4, atol=1e-6)
    assert {shift.layer: shift.gain > 0 for shift in report.shifts}["second"] == center
    if center:  # Keras rounds as the kernels do, all of the values
        images = images_for(model, 16)
        expected = Simulation(planned).run(images, ["act"])["act"]
        step = planned["act"].grid.step
        actual = tf.keras.Model(snapped.inputs, snapped.get_layer("act").output)(images / 255.0)
        np.testing.assert_array_equal(np.rint(actual / step), expected)
