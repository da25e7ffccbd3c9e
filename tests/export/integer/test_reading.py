import math

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, INQWeights, LQNetActivations, LQNetWeights, SATWeights, SYQWeights
from dlqat_tf.export.integer.nodes import Activation, Levels, ReLU
from dlqat_tf.export.integer.reading import activation_of, levels_of


def test_a_scale_for_each_kernel_position_is_snapped():
    quantizer = SYQWeights(1)
    quantizer.build((1, 2, 1, 2))
    quantizer.scale.assign(np.float32([2, 0.51]).reshape(1, 2, 1, 1))
    quantizer.started.assign(1)
    kernel = np.float32([1, -1, -1, 1]).reshape(1, 2, 1, 2)
    levels = levels_of(quantizer, kernel, "conv", None)
    # 0.51 of 2 is 32.385 of 127
    np.testing.assert_array_equal(levels.weights.ravel(), [127, -127, -32, 32])
    np.testing.assert_allclose(levels.step, [2 / 127] * 2, 1e-6)
    assert levels.bits == 1
    assert levels.free.layer == "conv"
    assert levels.free.shift == pytest.approx(0.51 - 32 * 2 / 127, 1e-3)
    assert levels.free.relative == pytest.approx(levels.free.shift / 2, 1e-3)
    assert levels.free.signs is None  # no plane has one scale for a channel


def test_codes_that_no_int8_holds_are_snapped():
    """Eight powers of two: codes from 1 to 128."""
    quantizer = INQWeights(5)
    quantizer.build((2, 1))
    kernel = np.float32([[1.0], [0.25]])
    quantizer.advance(1.0, tf.Variable(kernel))
    assert quantizer.grid(kernel).codes.ravel().tolist() == [128, 32]
    levels = levels_of(quantizer, kernel, "conv", None)
    np.testing.assert_array_equal(levels.weights.ravel(), [127, 32])
    assert levels.free.shift == pytest.approx(32 / 127 - 0.25, 1e-3)


def test_channels_whose_codes_an_int8_holds_keep_them():
    """The second one has no weight of the highest power."""
    quantizer = INQWeights(5)
    quantizer.build((2, 2))
    kernel = np.float32([[1.0, 0.5], [0.25, 1 / 128]])
    quantizer.advance(1.0, tf.Variable(kernel))
    levels = levels_of(quantizer, kernel, "conv", None)
    np.testing.assert_array_equal(levels.weights, [[127, 64], [32, 1]])
    np.testing.assert_array_equal(levels.step, np.float32([1 / 127, 1 / 128]))
    assert levels.free.shift == pytest.approx(32 / 127 - 0.25, 1e-3)


def test_codes_beyond_an_int8_are_cut_off_where_that_loses_less():
    """By 1/128 of one weight; a step of 1/127 would move each of four by 0.5/127 or nearly so."""
    quantizer = INQWeights(5)
    quantizer.build((5, 1))
    kernel = np.float32([[1.0], [0.5], [0.5], [-0.5], [0.5]])
    quantizer.advance(1.0, tf.Variable(kernel))
    levels = levels_of(quantizer, kernel, "conv", None)
    np.testing.assert_array_equal(levels.weights.ravel(), [127, 64, 64, -64, 64])
    assert levels.step == np.float32(1 / 128)
    assert levels.free.shift == levels.free.relative == 1 / 128


def test_a_free_basis_is_snapped_and_kept_as_planes():
    quantizer = LQNetWeights(2)
    quantizer.build((2, 2))
    quantizer.basis.assign([[1.0, 2.0], [3.0, 3.0]])
    kernel = np.float32([[9, -9], [1, 2]])  # levels 4 and -5, 2 and 1
    free = levels_of(quantizer, kernel, "dense", None).free
    np.testing.assert_array_equal(free.signs, [[[1, -1], [-1, -1]], [[1, -1], [1, 1]]])
    np.testing.assert_array_equal(free.scales, [[1, 2], [3, 3]])
    # A batch norm's gain: a negative one turns the signs, and scales stay above zero.
    scaled = free.times(np.array([2.0, -1.0]))
    np.testing.assert_array_equal(scaled.scales, [[2, 2], [6, 3]])
    np.testing.assert_array_equal(scaled.signs, [[[1, 1], [-1, 1]], [[1, 1], [1, -1]]])
    assert levels_of(SATWeights(2), kernel, "dense", None).free is None


def test_activations():
    around = dict(name="act", inputs=("before",))
    quantizer = CGPACT(2, 3.0)
    quantizer(np.float32([0.0]))
    assert isinstance(activation_of(quantizer, around), Activation)
    assert activation_of(CGPACT(32), around) == ReLU(**around, highest=math.inf, unrounded=True)
    assert activation_of(CGPACT(32, signed=True), around) is None
    quantizer = LQNetActivations(2)
    quantizer(np.float32([0.0]))
    node = activation_of(quantizer, around)
    assert isinstance(node, Levels)
    assert node.bits == 2
    np.testing.assert_allclose(node.planes.values, 0.6745 * 2 / 3 * np.arange(4), 1e-6)
