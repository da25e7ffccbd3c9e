import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.export.files.functions import has_integer_form, run_on_tflite
from dlqat_tf.export.integer.nodes import Island
from dlqat_tf.float_part import FloatPart
from dlqat_tf.quantizers import ActivationGrid

SOURCE = ActivationGrid(-128, 127, np.float32(0.05))


def island(operator, function):
    part = FloatPart(lambda tensors: [function(*tensors)], [(2, 3)])
    return Island(name="f", inputs=("x",), part=part, layers=("f",), operator=operator)


@pytest.mark.parametrize(
    ("operator", "function", "target", "expected"),
    [
        ("GELU", tf.nn.gelu, ActivationGrid(-128, 127, np.float32(0.03)), True),
        ("ELU", tf.nn.elu, ActivationGrid(-128, 127, np.float32(0.03)), True),
        ("LOGISTIC", tf.sigmoid, ActivationGrid(0, 255, np.float32(1 / 256)), True),
        ("TANH", tf.tanh, ActivationGrid(-128, 127, np.float32(1 / 128)), True),
        # 0.2 / 0.4 is a tie, which the operation rounds up.
        ("ELU", tf.nn.elu, ActivationGrid(-8, 7, np.float32(0.4)), False),
        # The operation has another step, computes another function, or is none.
        ("LOGISTIC", tf.sigmoid, ActivationGrid(0, 255, np.float32(1 / 255)), False),
        ("GELU", tf.nn.elu, ActivationGrid(-128, 127, np.float32(0.03)), False),
        ("", tf.nn.gelu, ActivationGrid(-128, 127, np.float32(0.03)), False),
    ],
)
def test_operations_that_give_the_codes_of_float_ones(operator, function, target, expected):
    of = island(operator, function)
    assert has_integer_form(of, SOURCE, target, FloatPart.run, run_on_tflite) is expected
