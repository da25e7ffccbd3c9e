"""Which Keras the package gets, whoever imports first: each case needs a Python of its own."""

import collections
import concurrent.futures
import os
import subprocess
import sys
import types

import pytest
import tensorflow as tf

from dlqat_tf import _compat, load_weights
from dlqat_tf.loading import ModelFileError, load_model

WORKS = """
import sys
import threading
import time
import dlqat_tf
import larq as lq
import tensorflow as tf

inputs = tf.keras.Input((4,))
x = dlqat_tf.CGPACT(2)(inputs)
x = lq.layers.QuantDense(3, kernel_quantizer=dlqat_tf.SATWeights(2))(x)
tf.keras.Model(inputs, x).save(sys.argv[1])
tf.keras.models.load_model(sys.argv[1])
print("works with", tf.keras.Model.__module__.split(".")[0])
"""


def run(code, path, legacy=None):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    if legacy is not None:
        environment["TF_USE_LEGACY_KERAS"] = legacy
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("first", "legacy"),
    [
        ("", None),
        ("import tensorflow", None),
        ("import tensorflow; tensorflow.keras.layers.Dense(1)", "1"),
        ("import keras; keras.Sequential([keras.layers.Dense(1)])", None),
    ],
)
def test_works(tmp_path, first, legacy):
    result = run(first + WORKS, tmp_path / "model.keras", legacy)
    assert result.stdout.strip() == "works with tf_keras", result.stderr


@pytest.mark.parametrize(
    ("first", "legacy", "expected"),
    [
        (
            "import tensorflow; tensorflow.keras.layers.Dense(1)",
            None,
            "ImportError: dlqat_tf needs Keras 2, but tf.keras is already Keras 3 in this process: "
            'import dlqat_tf before anything that uses Keras, or set TF_USE_LEGACY_KERAS="1" in '
            "the environment before Python starts.",
        ),
        (
            "",
            "0",
            "ImportError: dlqat_tf needs Keras 2, but the environment variable "
            "TF_USE_LEGACY_KERAS is '0': unset it or set it to \"1\".",
        ),
    ],
)
def test_says_why_not_in_one_sentence(tmp_path, first, legacy, expected):
    result = run(first + WORKS, tmp_path / "model.keras", legacy)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.strip().splitlines()[-1] == expected


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_values_that_tensorflow_accepts(monkeypatch, value):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    _compat.require_legacy_keras()
    assert os.environ["TF_USE_LEGACY_KERAS"] == value


@pytest.mark.parametrize("value", ["0", "", "TRUE", "yes"])
def test_values_that_tensorflow_takes_for_no(monkeypatch, value):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    with pytest.raises(ImportError, match=f"TF_USE_LEGACY_KERAS is '{value}': unset it or set it"):
        _compat.require_legacy_keras()


def test_missing_tf_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ImportError, match="run `pip install tf_keras`"):
        _compat.require_legacy_keras()


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_python_version(monkeypatch, version):
    version_info = collections.namedtuple("version_info", "major minor")(*version)
    monkeypatch.setattr(_compat, "sys", types.SimpleNamespace(version_info=version_info))
    with pytest.raises(ImportError, match=rf"this is Python 3\.{version[1]}\."):
        _compat.require_legacy_keras()


def test_copies_are_called_in_one_thread_only():
    layers, inputs = tf.keras.layers, tf.keras.Input((2,))
    relu, code, dense = layers.ReLU(), layers.Lambda(tf.nn.relu), layers.Dense(2)
    dense.build((None, 2))
    with _compat.copies_called():
        assert relu(inputs).node.layer is not relu
        for layer in (code, dense):
            with pytest.raises(TypeError, match=f"without weights.*{layer.name!r}"):
                layer(inputs)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert pool.submit(relu, inputs).result().node.layer is relu
    assert relu(inputs).node.layer is relu


def test_files_of_keras_3_are_told_apart(tmp_path):
    import keras

    layer = keras.layers.Dense(2)
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), layer]).save(path)
    assert _compat.is_keras_3(layer)
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(2)])
    assert not _compat.is_keras_3(model)
    message = r"of Keras 2\. Received: .*model\.keras, saved by Keras 3\."
    with pytest.raises(ValueError, match=message):
        _compat.check_keras_2_file(path)
    with pytest.raises(ValueError, match=message):
        load_weights(model, path)
    with pytest.raises(ModelFileError, match=message):
        load_model(path)
    model.save(path)
    _compat.check_keras_2_file(path)
    path.write_bytes(b"no archive")
    _compat.check_keras_2_file(path)  # others say so


def test_synchronized_norms_of_values_that_differ_little():
    """The mean of squares is a million, beside which float32 has steps of a sixteenth."""
    norm = tf.keras.layers.BatchNormalization(synchronized=True, momentum=0.0)
    norm(tf.constant([[1000.0], [1000.25]]), training=True)
    assert norm.moving_mean == 1000.125
    assert norm.moving_variance == 0.015625


def test_synchronized_norms_leave_out_what_is_masked():
    norm = tf.keras.layers.BatchNormalization(synchronized=True, momentum=0.0)
    values = tf.constant([[[1.0], [2.0], [9.0]], [[3.0], [4.0], [9.0]]])
    norm(values, training=True, mask=tf.constant([[True, True, False]] * 2))
    assert (norm.moving_mean, norm.moving_variance) == (2.5, 1.25)
