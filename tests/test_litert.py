import importlib.metadata
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import _litert


@pytest.fixture(scope="module")
def doubling():
    """A file that computes 2x."""
    function = tf.function(lambda x: 2.0 * x, input_signature=[tf.TensorSpec((3,))])
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()]
    ).convert()


@pytest.fixture(params=["tensorflow", "ai_edge_litert"])
def library(request, monkeypatch):
    """Where interpreters come from."""
    if request.param == "ai_edge_litert":
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    else:
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    return request.param


def test_interpreter_opens_a_path_and_bytes_without_a_warning(doubling, tmp_path, library):
    path = tmp_path / "doubling.tflite"
    path.write_bytes(doubling)
    for source in (doubling, path, str(path)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            interpreter = _litert.tflite_interpreter(source)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.float32([1, 2, 3]))
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_array_equal(output, [2, 4, 6])
        assert type(interpreter).__module__.startswith(library)
    version = importlib.metadata.version(library.replace("_", "-"))
    assert _litert.tflite_version().split() == [
        {"tensorflow": "TFLite", "ai_edge_litert": "LiteRT"}[library],
        version,
    ]


def test_an_installation_of_litert_that_lacks_something_is_no_reason_for_another(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'ml_dtypes'", name="ml_dtypes")

    monkeypatch.setattr(_litert.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="ml_dtypes"):
        _litert.tflite_version()


def test_interpreter_threads(doubling, monkeypatch):
    received = []
    original = tf.lite.Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setattr(
        tf.lite,
        "Interpreter",
        lambda **kwargs: received.append(kwargs["num_threads"]) or original(**kwargs),
    )
    _litert.tflite_interpreter(doubling)
    _litert.tflite_interpreter(doubling, num_threads=2)
    assert received == [1, 2]


def test_interpreter_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*missing\.tflite"):
        _litert.tflite_interpreter(tmp_path / "missing.tflite")
