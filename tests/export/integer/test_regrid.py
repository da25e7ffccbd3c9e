"""Codes go to another grid, whatever the shape of what they are codes of."""

import numpy as np
import pytest

from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Input
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.regrid import with_common_grids
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.quantizers import ActivationGrid


def activation(name, source, step, highest):
    grid = ActivationGrid(0, highest, np.float32(step))
    return Activation(name=name, inputs=(source,), grid=grid, bits=4)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3), (1, 1, 2, 3)])
def test_codes_of_any_shape_are_rounded_again(shape):
    network = IntegerNetwork(
        (
            Input(name="values", shape=shape, preprocessing=None),
            activation("fine", "values", 0.5, 15),
            activation("coarse", "fine", 1.5, 3),
        )
    )
    regridded = with_common_grids(network, move=False)
    assert regridded.shapes["coarse"] == shape
    values = np.float32([0, 0.6, 1.1, 2.4, 4, 9]).reshape(1, *shape)
    # 0, 0.5, 1, 2.5, 4 and 7.5 on the fine grid.
    expected = np.reshape([0, 0, 1, 2, 3, 3], (1, *shape))
    found = Simulation(plan(regridded)).run([values], ["coarse"])["coarse"]
    np.testing.assert_array_equal(found, expected)
