import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.export.files.functions import has_integer_form, run_on_tflite
from dlqat_tf.export.integer.nodes import Island
from dlqat_tf.float_part import FloatPart
from dlqat_tf.quantizers import ActivationGrid
from tests.export.networks import convolution, images_for, randomize

SOURCE = ActivationGrid(-128, 127, np.float32(0.05))


def island(operator, function):
    part = FloatPart(lambda tensors: [function(*tensors)], [(2, 3)])
    return Island(name="f", inputs=("x",), part=part, layers=("f",), operator=operator)


@pytest.mark.parametrize(
    ("operator", "function", "target", "expected"),
    [
        ("GELU", tf.nn.gelu, ActivationGrid(-128, 127, np.float32(0.03)), True),
        # What is below the lowest code is clipped, in float and in the file.
        ("GELU", tf.nn.gelu, ActivationGrid(0, 7, np.float32(0.03)), True),
        ("GELU", tf.nn.gelu, ActivationGrid(-3, 12, np.float32(0.03)), True),
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


@pytest.mark.parametrize("export", [to_tflite, to_lce])
@pytest.mark.parametrize(("bits", "alpha"), [(2, 0.6), (4, 2.7)])
def test_functions_around_a_zero_point(tmp_path, export, bits, alpha):
    """Zeros of padding are neither the lowest code nor in the middle."""
    inputs = tf.keras.Input((6, 6, 3))
    x = convolution(inputs, 32, 3, weight_bits=8)
    x = dlqat_tf.CGPACT(8, 3.9, signed=True)(x)
    x = dlqat_tf.CGPACT(bits, alpha, zero_point=1, name="after")(
        tf.keras.layers.Activation("swish")(x)
    )
    x = convolution(x, 32, 3, weight_bits=1)
    x = tf.keras.layers.GlobalAveragePooling2D()(dlqat_tf.CGPACT(2, 2.0)(x))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x)))
    images = images_for(model, 32)
    codes = tf.keras.Model(inputs, model.get_layer("after").output)(images)
    step = model.get_layer("after").grid().step
    assert set(np.unique(np.rint(codes / step))) >= {-1, 0, 1, 2}
    report = export(model, tmp_path / "model.tflite")
    found = parity(tf.keras.models.load_model(report.snapped), report.path, images)
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == found.agreement["keras_file"] == 100
