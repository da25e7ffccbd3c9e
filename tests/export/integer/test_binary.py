import numpy as np
import pytest

from dlqat_tf.export.integer.binary import binary_parts
from dlqat_tf.export.integer.nodes import Convolution, FreeLevels
from dlqat_tf.quantizers import ActivationGrid, ActivationPlanes

SIGNS = np.int8([[[1, -1], [-1, -1]], [[1, 1], [1, -1]]])  # planes, weights, channels
SCALES = np.float32([[1, 0.5], [3, 0.25]])
UNSIGNED = ActivationPlanes(
    np.float32([0.5, 2, 3.5]), np.int8([[0, 1, 0, 1], [0, 0, 1, 1]]), np.float32([1, 3])
)
SIGNED = ActivationPlanes(
    np.float32([-1, 1]), np.int8([[-1, 1, 1], [-1, -1, 1]]), np.float32([2, 0.5])
)


def convolution(free):
    return Convolution(
        name="conv",
        inputs=("before",),
        weights=np.int16([[1, -1], [-3, 3]]).reshape(1, 1, 2, 2),
        step=np.float32([0.5, 2]),
        bias=np.array([10.0, -20.0]),
        bits=2,
        free=FreeLevels("conv", 0.0, 0.0, SIGNS, SCALES) if free else None,
    )


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(
    ("source", "bits", "values"),
    [
        (None, [[-1, 1]], [-1, 1]),
        (UNSIGNED, [[1, 0], [0, 1]], [1, 3]),
        (SIGNED, [[1, 1], [0, 1]], [2 - 0.5, 2 + 0.5]),
        (ActivationGrid(0, 3, np.float32(0.5)), [[1, 0], [0, 1]], [0.5, 1.0]),
    ],
)
def test_the_sum_of_the_parts_is_the_layer(free, source, bits, values):
    """Two inputs, whose bits of each plane and values are given."""
    node = convolution(free)
    weights = (SIGNS * SCALES[:, None]).sum(axis=0) if free else node.values[0, 0]
    total = 0.0
    for part in binary_parts(node, source):
        signs = np.array(bits[part.activation_bit])
        signs = signs if source is None else 1 - 2 * signs
        total = total + (signs @ part.signs[0, 0]) * part.multiplier + part.bias
    np.testing.assert_allclose(total, np.array(values) @ weights + node.bias, 1e-6)
