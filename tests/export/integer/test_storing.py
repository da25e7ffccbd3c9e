"""Gains that move with biases, so that thresholds stay between their sums."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT
from dlqat_tf.export import lower, snap
from dlqat_tf.export.integer.integers import integers
from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.nodes import Activation, Convolution, Dense
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.rounding import RUNTIMES, Accumulator
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.export.integer.storing import stored
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, images_for, quantized, randomize

layers = tf.keras.layers
PIXELS = ActivationGrid(0, 255, np.float32(1))


def held(step, highest=255, **options):
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
    target = Activation(name="act", grid=ActivationGrid(0, highest, np.float32(step)), bits=8)
    return stored(node, PIXELS, target)


def test_an_output_step_becomes_an_odd_number_of_steps_of_sums():
    # Almost half of 255 thresholds are too near to sums for float32, wherever the bias is.
    for step, odd in ((1500.9, 1501), (1501.1, 1501), (1498.9, 1499)):
        np.testing.assert_allclose(step / held(step).step, odd, rtol=1e-6)
    # So a threshold is half a sum away from sums of whole numbers and a whole bias.
    assert (held(1500.9).bias / held(1500.9).step) % 1 == pytest.approx([0.0])


def test_an_output_step_becomes_an_odd_number_of_halves_where_that_is_nearer():
    for step, odd in ((1000.45, 1000.5), (1001.55, 1001.5)):
        np.testing.assert_allclose(step / held(step).step, odd, rtol=1e-6)


def test_gains_stay_where_none_may_move_or_no_move_is_worth_it():
    assert held(1500.9, gain_source="").step == 1
    # At 1500.4 the end of 255 codes would pass 255 * 0.4 sums, and all thresholds half as many.
    step = 1500.4 / held(1500.4).step
    assert 0 < abs(step - 1500.4) < 0.1
    # At 8000.9 even half a sum is too near for float32.
    assert abs(8000.9 / held(8000.9).step - 8000.9) < 0.05


def test_gains_stay_where_biases_alone_cost_nothing():
    assert held(1000001, highest=1).step == 1  # one threshold, halfway between two sums
    assert held(1000000, highest=1).step != 1  # on a sum with any whole bias


def test_a_gain_moves_where_every_bias_passes_a_sum():
    """As in test_thresholds.py: thresholds of 0.8 and 2.4 beside a bias of 0.5."""
    node = Dense(
        name="dense",
        weights=np.array([[127], [1], [1], [1]], np.int16),
        step=np.ones(1, np.float32),
        bias=np.array([0.5]),
        bits=8,
        kernel="int8",
        gain_source="norm",
    )
    source = ActivationGrid(0, 1, np.float32(1))
    target = Activation(name="act", grid=ActivationGrid(0, 2, np.float32(1.6)), bits=2)
    after = stored(node, source, target)
    assert after.bias == [0]
    assert after.step == pytest.approx([2.4 / 2], rel=1e-4)
    sums = np.array([0, 1, 2, 3, 127, 128, 129, 130])
    codes = [np.clip(np.rint((sums * each.step + each.bias) / 1.6), 0, 2) for each in (node, after)]
    assert codes[0].tolist() == codes[1].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    alone = stored(replace(node, gain_source=""), source, target)
    codes = np.clip(np.rint((sums + alone.bias) / 1.6), 0, 2)
    kept = {"low": [0, 1, 1, 2, 2, 2, 2, 2], "high": [1, 1, 2, 2, 2, 2, 2, 2]}
    assert codes.tolist() in kept.values()
    # Of two thresholds the likelier one keeps its codes.
    for end, mean in dict(low=0.8, high=2.4).items():
        moments = Moments(np.array([mean]), np.array([0.5]))
        known = stored(replace(node, gain_source="", moments=moments), source, target)
        codes = np.clip(np.rint((sums + known.bias) / 1.6), 0, 2)
        assert codes.tolist() == kept[end]


@pytest.mark.parametrize(
    ("gain", "bias", "lowest"),
    [(500, 1.6, 0), (500, 1.6, -8), (-600, -100.4, 0), (300, 1.2, -8), (20000, 1.6, 0)],
)
def test_a_gain_that_saturates_leaves_the_bias_a_place(gain, bias, lowest):
    """A 127th of 500 is 3.9 output codes, so that 1.6 would be code 0 or 4."""
    node = Convolution(
        name="norm",
        weights=np.full((1, 1, 1, 1), np.sign(gain), np.int16),
        step=np.float32([abs(gain)]),
        bias=np.array([bias]),
        bits=8,
        is_depthwise=True,
        kernel="int8",
        gain_source="norm",
    )
    source = ActivationGrid(lowest, 7, np.float32(1))
    target = Activation(name="act", grid=ActivationGrid(-128, 127, np.float32(1)), bits=8)
    after = stored(node, source, target)
    inputs = np.arange(lowest, 8)
    wanted, held = (
        np.clip(np.rint(inputs * np.sign(gain) * each.step + each.bias), -128, 127)
        for each in (node, after)
    )
    assert held.tolist() == wanted.tolist()
    assert after.bias == pytest.approx(bias, abs=0.1)
    assert after.step < abs(gain)
    fixed = stored(replace(node, gain_source=""), source, target)
    assert fixed.step == node.step
    assert abs(fixed.bias[0] - bias) > 0.3


def test_what_is_read_before_a_norm_stays_in_the_file():
    """Channels that hardly fire have norms of large gains, whose biases would be codes away."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = CGPACT(4, 1.0, name="act")(convolution(inputs, 8, 3, weight_bits=8, name="first"))
    norm = layers.BatchNormalization(epsilon=1e-7, name="norm")
    outputs = CGPACT(8, 2.0, signed=True, name="out")(norm(x))
    model = randomize(tf.keras.Model(inputs, layers.Flatten()(outputs)))
    norm.moving_variance.assign(np.float32([1e-6, 1] * 4))
    norm.moving_mean.assign(np.zeros(8))
    norm.beta.assign(np.linspace(0.02, 0.16, 8))
    images = images_for(model, 16) / 255.0
    model.get_layer("first").bias.assign(np.float32([-9, 0] * 4))  # the first of two never fires
    snapped, _ = snap(model)
    first, second = (each(images).numpy()[..., ::2] for each in (model, snapped))
    np.testing.assert_array_equal(np.rint(first * 127 / 2), np.rint(second * 127 / 2))


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


@pytest.mark.parametrize(("library", "kernel"), [("builtin", "int8"), ("xnnpack", "int4")])
def test_gains_move_on_kernels_that_round_twice_too(library, kernel):
    """Counted over all sums of channels, as the kernels round them."""
    rng = np.random.default_rng(0)
    highest = 127 if kernel == "int8" else 7
    weights = rng.integers(-highest, highest + 1, (9, 64))
    weights[0] = highest  # no room to stretch them
    node = Dense(
        name="dense",
        weights=weights.astype(np.int16),
        step=np.ones(64, np.float32),
        bias=rng.normal(0, 3 * highest, 64),
        bits=8,
        kernel=kernel,
        library=library,
        gain_source="norm",
    )
    source = ActivationGrid(0, 3, np.float32(1))
    grid = ActivationGrid(0, 3, np.float32(3.07 * highest))
    sums = np.arange(-27 * highest, 27 * highest + 1)[:, np.newaxis]
    expected = np.clip(np.rint((sums + node.bias) / float(grid.step)), 0, 3)

    def wrong(node):
        held = stored(node, source, Activation(name="act", grid=grid, bits=2))
        numbers = integers(held, source, grid)
        value = Accumulator(
            sums * held.stretch + numbers.bias, numbers.scale, source, int4=kernel == "int4"
        )
        codes = RUNTIMES["builtin" if library == "builtin" else "tflite"].product(value, grid)
        codes = np.clip(codes, 0, 3)
        # In exact arithmetic what the file holds gives the same, the lead included.
        np.testing.assert_allclose(
            held.bias / numbers.scale.astype(float), numbers.bias + numbers.lead, atol=1e-7
        )
        exact = np.clip(np.rint((sums * held.step + held.bias) / float(grid.step)), 0, 3)
        np.testing.assert_array_equal(codes, exact)
        return np.abs(codes - expected).sum()

    fixed = wrong(replace(node, gain_source=""))
    assert fixed > 40  # of 64 channels
    assert wrong(node) < 0.4 * fixed


def test_codes_are_kept_where_steps_moved():
    """Counted over all sums, to the steps of the trained network and to those of its file."""
    rng = np.random.default_rng(0)
    weights = rng.choice(np.int16([-1, 1]), (36, 256))
    bias = rng.normal(0, 9, 256)
    before = ActivationGrid(0, 3, np.float32(1)), ActivationGrid(-127, 127, np.float32(1.0567))
    moved = ActivationGrid(0, 3, np.float32(1 + 8e-5)), replace(before[1], step=np.float32(1.0566))
    node = Dense(
        name="dense",
        weights=weights,
        step=np.ones(256, np.float32),
        bias=bias,
        bits=1,
        kernel="int8",
        gain_source="norm",
    )
    target = Activation(name="act", grid=moved[1], bits=8)
    sums = np.arange(-108, 109)[:, np.newaxis]
    trained = tuple(float(a.step) / float(b.step) for a, b in zip(before, moved, strict=True))

    def codes(node, grids):
        unit = node.step.astype(float) * float(grids[0].step)
        return np.clip(np.rint((sums * unit + node.bias) / float(grids[1].step)), -127, 127)

    def changed(**options):
        held = stored(node, moved[0], target, **options)
        return np.sum(codes(node, before) != codes(held, moved))

    kept = changed(trained=trained)
    for unknown in ((1.0, trained[1]), (trained[0], 1.0), (1.0, 1.0)):
        assert changed(trained=unknown) > 1.5 * kept


def test_a_float_bias_of_a_binary_kernel_makes_up_for_a_moved_step():
    """Sums of 0 to 8 in codes of 0 and 1: the threshold of a half moved from 2.99 to 3.01."""
    node = Dense(
        name="dense",
        weights=np.ones((8, 1), np.int16),
        step=np.ones(1, np.float32),
        bias=np.zeros(1),
        bits=1,
        kernel="planes",
    )
    source = ActivationGrid(0, 1, np.float32(1))
    grid = ActivationGrid(0, 1, np.float32(6.02))
    target = Activation(name="act", grid=grid, bits=1)
    assert stored(node, source, target).bias == [0]
    held = stored(node, source, target, trained=(1.0, 5.98 / 6.02))
    codes = [np.rint((np.arange(9) + each.bias) / grid.step).clip(0, 1) for each in (node, held)]
    assert codes[0].tolist() == [0] * 4 + [1] * 5
    assert codes[1].tolist() == [0] * 3 + [1] * 6
