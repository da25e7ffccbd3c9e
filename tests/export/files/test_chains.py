import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python.schema_py_generated import BuiltinOperator

from dlqat_tf import quantize
from dlqat_tf.export import parity, to_tflite
from dlqat_tf.export.files.chains import break_chains
from dlqat_tf.export.files.file_builder import FileBuilder

layers = tf.keras.layers
OPEN = "import sys, dlqat_tf; from dlqat_tf._litert import tflite_interpreter as t; "


def chain(*names):
    """Return the names of a file's operations in a row after its chains were broken up."""
    file = FileBuilder()
    value = file.tensor("images", (2, 3), np.float32)
    for i, name in enumerate(names):
        output, inputs = file.tensor(str(i), (2, 3), np.float32), [value]
        if name.startswith("MUL"):
            inputs.append(
                file.constant(f"by{i}", np.ones(3 if "channels" in name else 1, np.float32))
            )
        file.operator(name.split()[0], inputs, output)
        value = output
    break_chains(file)
    operators = {getattr(BuiltinOperator, name.split()[0]): name for name in (*names, "RESHAPE")}
    assert int(file.operators[-1].outputs[0]) == value
    for one, other in zip(file.operators, file.operators[1:], strict=False):
        assert int(other.inputs[0]) == int(one.outputs[0])
    return [operators[file.number_of(operator)] for operator in file.operators]


def test_of_ten_operations_stay_as_they_are():
    assert chain(*["TANH"] * 10) == ["TANH"] * 10
    assert chain(*["TANH"] * 6, "SOFTMAX", *["TANH"] * 9) == [
        *["TANH"] * 6,
        "SOFTMAX",
        *["TANH"] * 9,
    ]


def test_the_eleventh_reads_a_copy():
    assert chain(*["TANH"] * 21) == [*["TANH"] * 10, "RESHAPE"] * 2 + ["TANH"]


@pytest.mark.parametrize(("name", "copies"), [("MUL by a number", 1), ("MUL by channels", 0)])
def test_what_computes_with_a_number_is_elementwise(name, copies):
    assert chain(*["TANH"] * 5, name, *["TANH"] * 5).count("RESHAPE") == copies


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (8, 13)])
def test_files_of_many_functions_in_a_row_run(bits, count, tmp_path):
    """XNNPACK of TensorFlow 2.21 ends the process otherwise, where it frees the interpreter."""
    tf.keras.utils.set_random_seed(0)
    inputs = x = tf.keras.Input((4, 4, 3), name="images")
    x = layers.Conv2D(4, 1, activation="relu")(x)
    for _ in range(count):
        x = layers.Activation("tanh")(x)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 1)(x))))
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3)).astype(np.uint8)
    converted, _ = quantize(model, 8, bits, None, images=images / np.float32(255))
    report = to_tflite(converted, tmp_path / "model.tflite", snap=False)
    code = f"{OPEN} i = t({str(report.path)!r}); i.invoke(); del i; print('done')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "done\n"
    assert parity(converted, report.path, images).agreement["simulation_file"] == 100
