import math

import numpy as np

from dlqat_tf.export.integer.moments import Moments


def test_the_density_of_each_channel():
    moments = Moments(np.array([1.0, 3.0]), np.array([2.0, 0.5]))
    density = moments.density(np.array([1.0, 3.0, 1e30]))
    # A distance of one deviation, of four, and far away: a thousandth of the peak.
    expected = [[1, math.exp(-0.5), 1e-3], [1e-3, 1, 1e-3]]
    np.testing.assert_allclose(density, expected)


def test_a_channel_that_was_always_the_same():
    density = Moments(np.zeros(1), np.zeros(1)).density(np.array([0.0, 0.5]))
    np.testing.assert_array_equal(density, [[1, 1e-3]])
