"""What would run as a model is made from its settings, in files that may come from anybody."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.util import dispatch, tf_export

_MODULES = ("builtins", "keras", "tf_keras", "larq", "tensorflow_model_optimization", "dlqat_tf")
_OPERATION_LAYERS = ("TFOpLambda", "SlicingOpLambda")  # of a function of TensorFlow's by its name
# Of what Keras records as such a layer, that which computes: not files, RPC or Python.
_COMPUTING = re.compile(
    r"(compat\.v1\.)?"
    r"((__operators__|audio|bitwise|debugging|dtypes|image|linalg|manip|math|nn|quantization|ragged"
    r"|random|sets|signal|sparse|spectral|strings|keras\.(activations|backend|losses|metrics))"
    r"\.(\w+\.)?)?"
    r"(?!(py_|numpy_function|[pP]rint|write_|read_|matching_|rpc_|delete_|xla_|d_tensor_|copy_to_"
    r"|configure_|shutdown_))\w+"
)


def code_in(config) -> Iterator[str]:
    """Yield what of a model's settings is code, would import some, or acts as it is called.

    Layers of an operation are called as a functional model is made, also with constants: the
    name of one that removes a folder and that folder's are enough.
    """
    if isinstance(config, dict):
        name = config.get("class_name")
        if name in ("Lambda", "__lambda__"):
            yield "a model with a Lambda layer, which is code"
        module = config.get("module")
        registered = tf.keras.utils.get_registered_object(config.get("registered_name"))
        if name and module and registered is None and str(module).split(".")[0] not in _MODULES:
            yield f"a model with {name} of the module {module}, which nothing imported registers"
        if name == "function" and hasattr(builtins, str(config.get("config"))):
            yield f"a model with Python's function {config['config']}"
        if isinstance(config.get("config"), dict):
            yield from _acting(name, config["config"])
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list)):
            yield from code_in(value)


def _acting(layer, config: dict) -> Iterator[str]:
    """Yield what a layer of TensorFlow's operations does beside computing."""
    if layer in _OPERATION_LAYERS and not _computes(str(config.get("function"))):
        yield f"a model with the operation tf.{config.get('function')}, which may do anything"
    if layer == "ClassMethod" and config.get("cls_symbol") not in ("RaggedTensor", "SparseTensor"):
        yield f"a model with a method of tf.{config.get('cls_symbol')}, which may do anything"
    if layer == "InstanceMethod" and not hasattr(tf.RaggedTensor, str(config.get("attr_name"))):
        yield f"a model with the method {config.get('attr_name')}, which no tensor has"
    if layer == "TensorFlowOpLayer":
        yield "a model with a TensorFlowOpLayer, whose operation may do anything"


def _computes(name: str) -> bool:
    """Return whether a function of TensorFlow's takes tensors, as Keras records, and computes."""
    function = tf_export.get_symbol_from_name(name)
    recorded = hasattr(function, dispatch.FALLBACK_DISPATCH_ATTR)
    recorded |= hasattr(function, dispatch.TYPE_BASED_DISPATCH_ATTR)
    return recorded and _COMPUTING.fullmatch(name) is not None
