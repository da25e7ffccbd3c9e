"""What kinds of layers there are: the part that each plays, and what has which form."""

from __future__ import annotations

import math

import larq as lq
import tensorflow as tf

from dlqat_tf.canonical import IN_TRAINING, function_of, is_bilinear
from dlqat_tf.graph import tensors_of
from dlqat_tf.heads import Head

_layers = tf.keras.layers

QUANTIZED = {
    _layers.Conv2D: lq.layers.QuantConv2D,
    _layers.Conv2DTranspose: lq.layers.QuantConv2DTranspose,
    _layers.DepthwiseConv2D: lq.layers.QuantDepthwiseConv2D,
    _layers.Dense: lq.layers.QuantDense,
}
POOLS = (_layers.AveragePooling2D, _layers.GlobalAveragePooling2D)
# What brings values together that have to lie on one grid.
MEETINGS = (_layers.Concatenate, _layers.Maximum, _layers.Minimum)
# What moves values and changes none: codes in, codes out.
MOVING = (
    *IN_TRAINING,
    *MEETINGS,
    _layers.Cropping2D,
    _layers.Flatten,
    _layers.GlobalMaxPooling2D,
    _layers.MaxPool2D,
    _layers.Permute,
    _layers.Reshape,
    _layers.ZeroPadding2D,
)


# Functions whose outputs scale other values, which few levels would do coarsely.
GATES = ("hard_sigmoid", "sigmoid")
NEVER_NEGATIVE = (*GATES, "exponential", "softplus", "thresholded_relu")
# What int8 kernels hold of a function's outputs: the highest of codes of a fixed step.
FIXED_RANGES = {"sigmoid": 255 / 256, "tanh": 127 / 128}
# By a part of the module of TF-MOT's wrappers.
_UNREADY = {
    ".sparsity.": "TF-MOT prunes: give what tfmot.sparsity.keras.strip_pruning(model) returns",
    ".clustering.": "TF-MOT clusters: give what tfmot.clustering.keras.strip_clustering(model) "
    "returns",
    ".quantize_annotate": "TF-MOT annotates: give the model before it was annotated, or call "
    "quantize_apply(model, scheme=dlqat_tf.tfmot.Scheme(...))",
}


def ceiling_of(activation) -> float | None:
    """Return the upper end of a ReLU, which may be infinite, or None if it is something else."""
    if type(activation) is _layers.Activation:
        activation = activation.activation
    if type(activation) is _layers.ReLU:
        plain = not activation.negative_slope and not activation.threshold
        maximum = activation.max_value
        return (math.inf if maximum is None else float(maximum)) if plain else None
    if activation in (tf.keras.activations.relu, tf.nn.relu):
        return math.inf
    return 6.0 if activation is tf.nn.relu6 else None


def is_linear(activation) -> bool:
    """Return whether an activation changes nothing."""
    return activation in (None, tf.keras.activations.linear)


def activation_name(activation) -> str:
    """Return how users call an activation."""
    return getattr(activation, "__name__", type(activation).__name__)


def is_softmax(activation) -> bool:
    """Return whether an activation is Keras's or TensorFlow's softmax."""
    return activation in (tf.keras.activations.softmax, tf.nn.softmax)


def is_weighted(layer) -> bool:
    """Return whether a layer multiplies by weights that may be quantized, or are."""
    return type(layer) in (*QUANTIZED, *QUANTIZED.values()) or isinstance(layer, Head)


def takes_integers(call) -> bool:
    """Return whether a call computes with integers, as what looks words up by their numbers."""
    tensors = [*tensors_of(call.node), *tf.nest.flatten(call.node.outputs)]
    kinds = (_layers.Embedding, _layers.CategoryEncoding)
    return isinstance(call.layer, kinds) or any(each.dtype.is_integer for each in tensors)


def is_quantized(layer) -> bool:
    """Return whether a layer brings quantizers: of this package, of Larq or of TF-MOT."""
    if isinstance(layer, (Head, lq.quantizers.Quantizer)):
        return True
    # TF-MOT is imported where it is used only, and Larq's layers share no public class.
    module = type(layer).__module__
    return module.startswith(("larq.layers", "tensorflow_model_optimization."))


def unready(layer) -> str | None:
    """Return what a wrapper of TF-MOT does that is not quantizing, and what to give instead."""
    module = type(layer).__module__
    if module.startswith("tensorflow_model_optimization."):
        return next((text for part, text in _UNREADY.items() if part in module), None)
    return None


def role_of(layer) -> str:
    """Return the part that a layer plays; "unknown" where it has no quantized form."""
    kind = type(layer)
    if is_weighted(layer):
        return "weighted"
    if isinstance(layer, lq.quantizers.Quantizer):
        return "quantizer"
    if kind in POOLS or is_bilinear(layer):
        return "pool"
    if kind in MOVING or (kind is _layers.Activation and is_linear(layer.activation)):
        return "moving"
    if kind is _layers.UpSampling2D and layer.interpolation == "nearest":
        return "moving"
    if ceiling_of(layer) is not None:
        return "relu"
    if function_of(layer) is not None:
        return "function"
    if kind is _layers.Softmax or (kind is _layers.Activation and is_softmax(layer.activation)):
        return "softmax"
    names = {
        _layers.Add: "merge",
        _layers.BatchNormalization: "norm",
        _layers.Multiply: "merge",
        _layers.Rescaling: "rescaling",
        _layers.Subtract: "merge",
    }
    return names.get(kind, "unknown")
