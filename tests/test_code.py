"""Settings of models that somebody sent: nothing in them acts before it is trusted."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import dispatch, tf_export

from dlqat_tf._code import _computes, code_in
from dlqat_tf.loading import ModelFileError, load_model
from tests.test_loading import changed

layers = tf.keras.layers


def with_layer(class_name, config, inputs, tmp_path):
    """Return a file of a network that calls one more layer, with constants, as it is loaded."""
    inputs_of = tf.keras.Input((3,))
    model = tf.keras.Model(inputs_of, tf.math.add(inputs_of, 1.0))
    model.save(tmp_path / "model.keras")

    def change(settings):
        layer = json.loads(json.dumps(settings["config"]["layers"][1]))
        layer |= dict(class_name=class_name, registered_name=class_name, name="sent")
        layer |= dict(config={"name": "sent", **config}, inbound_nodes=[inputs])
        settings["config"]["layers"].append(layer)

    changed(tmp_path / "model.keras", change, tmp_path / "sent.keras")
    return tmp_path / "sent.keras"


@pytest.mark.parametrize(
    ("class_name", "config", "says"),
    [
        ("TFOpLambda", {"function": "io.gfile.rmtree"}, "operation tf.io.gfile.rmtree"),
        ("SlicingOpLambda", {"function": "io.gfile.rmtree"}, "operation tf.io.gfile.rmtree"),
        ("TFOpLambda", {"function": "io.write_file"}, "operation tf.io.write_file"),
        ("TFOpLambda", {"function": "compat.v1.write_file"}, "tf.compat.v1.write_file"),
        ("TFOpLambda", {"function": "load_op_library"}, "operation tf.load_op_library"),
        ("TFOpLambda", {"function": "no such operation"}, "operation tf.no such operation"),
        ("ClassMethod", {"cls_symbol": "io.gfile.GFile", "method_name": "x"}, "tf.io.gfile.GFile"),
        ("InstanceMethod", {"attr_name": "tofile"}, "the method tofile"),
        ("TensorFlowOpLayer", {"node_def": "", "constants": {}}, "a TensorFlowOpLayer"),
    ],
)
def test_operations_that_act_are_not_called(tmp_path, class_name, config, says):
    victim = tmp_path / "victim"
    victim.mkdir()
    constant = ["_CONSTANT_VALUE", -1, str(victim), {}]
    path = with_layer(class_name, config, constant, tmp_path)
    with pytest.raises(ModelFileError, match=rf"{path.name} is a model with .*{says}.*trust=True"):
        load_model(path)
    assert victim.is_dir()


def test_trusted_operations_are_called(tmp_path):
    (tmp_path / "victim").mkdir()
    constant = ["_CONSTANT_VALUE", -1, str(tmp_path / "victim"), {}]
    path = with_layer("TFOpLambda", {"function": "io.gfile.rmtree"}, constant, tmp_path)
    with pytest.raises(ModelFileError):  # what it returns is no tensor
        load_model(path, trust=True)
    assert not (tmp_path / "victim").exists()  # the case is one


def test_pythons_own_functions_are_none_of_keras():
    inputs = tf.keras.Input((3,))
    settings = tf.keras.Model(inputs, layers.Dense(2, activation="relu")(inputs)).get_config()
    assert list(code_in(settings)) == []
    settings["layers"][1]["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": "breakpoint",
        "registered_name": "function",
    }
    assert list(code_in(settings)) == ["a model with Python's function breakpoint"]


def test_operations_of_functional_models_need_no_trust(tmp_path):
    inputs = tf.keras.Input((4, 4, 3))
    x = tf.nn.relu(inputs - 0.5) * 2.0 + tf.image.rgb_to_grayscale(inputs)
    x = tf.concat([x[:, :, :, 1:], tf.keras.backend.square(inputs)], -1)
    x = tf.linalg.matmul(tf.reshape(x, (-1, 4, 20)), tf.ones((20, 2)))
    x = tf.keras.activations.swish(tf.math.cumsum(tf.reduce_max(x, -1)[:, 0:4]))
    model = tf.keras.Model(inputs, tf.math.abs(tf.cast(x, "float32")))
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(load_model(tmp_path / "model.keras")(images), model(images))


def test_what_keras_records_computes_but_for_files_python_and_networks_of_machines():
    """Of all functions that Keras can record, by the last part of their names."""
    recorded = {
        name
        for name, function in tf_export._NAME_TO_SYMBOL_MAPPING.items()
        if hasattr(function, dispatch.FALLBACK_DISPATCH_ATTR)
        or hasattr(function, dispatch.TYPE_BASED_DISPATCH_ATTR)
    }
    refused = {name.split(".")[-1] for name in recorded if not _computes(name)}
    assert {"write_file", "matching_files", "py_function", "numpy_function", "print"} < refused
    assert {"rpc_client", "xla_custom_call_v2", "decode_jpeg"} < refused
    assert not {"relu", "getitem", "reshape", "einsum", "resize", "softmax", "add"} & refused
    assert len(recorded) > 1000
