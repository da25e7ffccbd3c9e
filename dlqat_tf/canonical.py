"""Calls of layers in terms of fewer kinds: operators, separable and one-dimensional layers.

Functional models compute with tensors too (``x + y``, ``tf.nn.relu(x)``), which Keras keeps as
layers of a kind of its own. What has a standard layer that computes the same is read as that layer;
so is a separable convolution, as its two, and a layer on sequences, as that on images of one row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import tensorflow as tf

from dlqat_tf.graph import tensors_of

_layers = tf.keras.layers

# What changes values in training only.
AUGMENTATIONS = (
    _layers.RandomBrightness,
    _layers.RandomContrast,
    _layers.RandomFlip,
    _layers.RandomHeight,
    _layers.RandomRotation,
    _layers.RandomTranslation,
    _layers.RandomWidth,
    _layers.RandomZoom,
)
IN_TRAINING = (
    *AUGMENTATIONS,
    _layers.ActivityRegularization,
    _layers.AlphaDropout,
    _layers.Dropout,
    _layers.GaussianDropout,
    _layers.GaussianNoise,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout2D,
    _layers.SpatialDropout3D,
)


class StandardLayers:
    """The standard layers that stand for others; one that is called twice becomes the same ones.

    Attributes:
        made: By source layer and part; the part that has the source's name is "".
    """

    def __init__(self):
        self.made: dict[tuple, tf.keras.layers.Layer] = {}

    def of(self, node, in_rows: bool = False) -> tf.keras.Model | None:
        """Return a model of standard layers that computes what a call computes.

        Args:
            node: The Keras node of the call.
            in_rows: Whether its inputs are sequences made of images of one row: what computes value
                by value then goes on with those images.

        Returns:
            From the call's inputs to its output. None where the layer is a standard one already,
            or no standard layers compute the same.
        """
        symbol = getattr(node.layer, "symbol", None)
        rule = _OPERATORS.get(str(symbol).rsplit(".", 1)[-1]) if symbol else None
        if symbol is None:
            rule = _LAYERS.get(type(node.layer))
            if rule is None and in_rows and type(node.layer) in _BY_VALUE:
                rule = _by_value
        if rule is None or getattr(node.layer, "data_format", "channels_last") != "channels_last":
            return None
        masks = (getattr(tensor, "_keras_mask", None) for tensor in tensors_of(node))
        if node.layer._expects_mask_arg and any(mask is not None for mask in masks):
            return None
        if not isinstance(getattr(node.outputs, "shape", None), tf.TensorShape):
            return None
        part = _Part(node, self.made)
        output = rule(part)
        if output is None or tuple(output.shape) != tuple(node.outputs.shape):
            return None
        return tf.keras.Model(part.inputs, output)

    def makes_row(self, layer) -> bool:
        """Return whether a layer was made to make an image of one row of a sequence."""
        return any(layer is each for (_, part), each in self.made.items() if part[:3] == "row")

    def makes_sequence(self, layer) -> bool:
        """Return whether a layer was made to make a sequence of an image of one row."""
        return any(layer is each for (_, part), each in self.made.items() if part == _BACK)


_BACK = "back"

_NAMES = (
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "leaky_relu",
    "mish",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "swish",
    "tanh",
)
# Functions of single values that are no ReLU, and their names.
_FUNCTIONS = {
    getattr(module, name): {"silu": "swish"}.get(name, name)
    for module in (tf.nn, tf.keras.activations)
    for name in _NAMES
    if hasattr(module, name)
}


def function_of(layer) -> str | None:
    """Return the name of the function that a layer computes of each value; None for ReLUs too.

    Args:
        layer: Or an activation.
    """
    kind = type(layer)
    if kind is _layers.Activation:
        return function_of(layer.activation)
    if kind is _layers.ReLU:
        return "leaky_relu" if layer.negative_slope or layer.threshold else None
    names = {
        _layers.ELU: "elu",
        _layers.LeakyReLU: "leaky_relu",
        _layers.PReLU: "prelu",
        _layers.ThresholdedReLU: "thresholded_relu",
    }
    name = names.get(kind) or (_FUNCTIONS.get(layer) if callable(layer) else None)
    return "scaled_elu" if kind is _layers.ELU and layer.alpha != 1 else name


class _Part:
    """The model that a call becomes, while it is made.

    Attributes:
        layer: Of the call.
        inputs: What stands for the tensors that it is called on.
    """

    def __init__(self, node, made: dict):
        self.layer, self._node, self._made = node.layer, node, made
        self.inputs = [
            tf.keras.Input(tensor.shape[1:], name=f"{node.layer.name}_{i}", dtype=tensor.dtype)
            for i, tensor in enumerate(tensors_of(node))
        ]

    @property
    def arguments(self) -> dict:
        """Arguments of an operator, by name."""
        bound = inspect.signature(self.layer.function).bind(
            *self._node.call_args, **self._node.call_kwargs
        )
        return dict(bound.arguments)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output, without the batch."""
        return tuple(self._node.outputs.shape[1:])

    def add(self, kind, tensors, suffix: str = "", weights=(), **config):
        """Call a layer of a kind, which has the name of the source, and a suffix."""
        key = self.layer, suffix
        if key not in self._made:
            name = f"{self.layer.name}_{suffix}" if suffix else self.layer.name
            is_operator = hasattr(self.layer, "symbol")
            dtype = tensors.dtype if is_operator and hasattr(tensors, "dtype") else None
            dtype = dtype or (None if is_operator else self.layer.dtype_policy)
            self._made[key] = kind(**{"dtype": dtype, **config}, name=name)
        made = self._made[key]
        output = made(tensors)
        if made.weights:
            made.set_weights(weights)
        made.trainable = self.layer.trainable
        return output

    def config(self, *names: str) -> dict:
        """Return some of the source's configuration, without what is not the layer's own."""
        config = self.layer.get_config()
        around = ("name", "trainable", "dtype", "batch_input_shape")
        return {name: config[name] for name in names if name not in around}

    def weighted(self, kind, tensors, weights, activation=None, **config):
        """Call a layer with weights, and then its activation where that is no ReLU."""
        if function_of(activation) is None:
            return self.add(kind, tensors, "", weights, activation=activation, **config)
        output = self.add(kind, tensors, "", weights, **config)
        return self.add(_layers.Activation, output, activation.__name__, activation=activation)

    def rows(self) -> list:
        """Return the sequences that come in as images of one row."""
        return [
            self.add(_layers.Reshape, x, f"row{i or ''}", target_shape=(1, *x.shape[1:]))
            for i, x in enumerate(self.inputs)
        ]

    def back(self, row):
        """Return the sequence that an image of one row is."""
        return self.add(_layers.Reshape, row, _BACK, target_shape=row.shape[2:])


# Operators.


def _merged(kind) -> Callable:
    def rule(part: _Part):
        # An operator on one tensor and a constant has one input.
        ranks = {x.shape.rank for x in part.inputs}
        return part.add(kind, part.inputs) if len(part.inputs) > 1 and len(ranks) == 1 else None

    return rule


def _activated(name: str) -> Callable:
    return lambda part: part.add(_layers.Activation, *part.inputs, activation=name)


def _relu(part: _Part, highest: float | None = None):
    return part.add(_layers.ReLU, *part.inputs, max_value=highest)


def _clipped(part: _Part):
    lowest, highest = (part.arguments[f"clip_value_{end}"] for end in ("min", "max"))
    if not isinstance(highest, (int, float)) or lowest != 0 or highest <= 0:
        return None
    return _relu(part, float(highest))


def _leaky_relu(part: _Part):
    return part.add(_layers.LeakyReLU, *part.inputs, alpha=part.arguments.get("alpha", 0.2))


def _gelu(part: _Part):
    # Keras's default is the exact one, as TensorFlow's.
    return None if part.arguments.get("approximate") else _activated("gelu")(part)


def _softmax(part: _Part):
    axis = part.arguments.get("axis")
    return part.add(_layers.Softmax, *part.inputs, axis=-1 if axis is None else axis)


def _concatenated(part: _Part):
    axis = part.arguments.get("axis")
    if len(part.inputs) < 2 or not isinstance(axis, int):
        return None
    return part.add(_layers.Concatenate, part.inputs, axis=axis)


def _pooled(kind) -> Callable:
    def rule(part: _Part):
        (x,), arguments = part.inputs, part.arguments
        axes = arguments.get("axis")
        is_image = x.shape.rank == 4 and isinstance(axes, (list, tuple))
        if not is_image or sorted(axis % 4 for axis in axes) != [1, 2]:
            return None
        return part.add(kind, x, keepdims=bool(arguments.get("keepdims")))

    return rule


def _reshaped(part: _Part):
    if len(part.inputs) != 1 or math.prod(part.shape) != math.prod(part.inputs[0].shape[1:]):
        return None  # which mixes the images of a batch
    return part.add(_layers.Reshape, *part.inputs, target_shape=part.shape)


def _transposed(part: _Part):
    order = part.arguments.get("perm")
    if not isinstance(order, (list, tuple)) or order[0] != 0:
        return None
    return part.add(_layers.Permute, *part.inputs, dims=tuple(order[1:]))


def _padded(part: _Part):
    arguments = part.arguments
    amounts, mode = arguments["paddings"], str(arguments.get("mode", "CONSTANT"))
    if not isinstance(amounts, (list, tuple)) or len(amounts) != 4 or mode.upper() != "CONSTANT":
        return None
    amounts = [tuple(map(int, each)) for each in amounts]
    if any(amounts[0] + amounts[3]) or arguments.get("constant_values", 0) != 0:
        return None
    return part.add(_layers.ZeroPadding2D, *part.inputs, padding=tuple(amounts[1:3]))


def _same(part: _Part):
    (x,) = part.inputs
    if x.dtype != part._node.outputs.dtype:
        return None
    return part.add(_layers.Activation, x, activation="linear")


_OPERATORS: dict[str, Callable] = {
    "add": _merged(_layers.Add),
    "add_n": _merged(_layers.Add),
    "subtract": _merged(_layers.Subtract),
    "multiply": _merged(_layers.Multiply),
    "maximum": _merged(_layers.Maximum),
    "minimum": _merged(_layers.Minimum),
    "relu": _relu,
    "relu6": lambda part: _relu(part, 6.0),
    "clip_by_value": _clipped,
    "leaky_relu": _leaky_relu,
    "gelu": _gelu,
    "silu": _activated("swish"),
    **{name: _activated(name) for name in ("sigmoid", "tanh", "elu", "selu", "softplus")},
    "softmax": _softmax,
    "concat": _concatenated,
    "reduce_mean": _pooled(_layers.GlobalAveragePooling2D),
    "reduce_max": _pooled(_layers.GlobalMaxPooling2D),
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": _transposed,
    "pad": _padded,
    "identity": _same,
    "cast": _same,
}


# Layers.

_SPATIAL = ("depth_multiplier", "padding")
_DEPTHWISE = ("depthwise_initializer", "depthwise_regularizer", "depthwise_constraint")
_OUTER = ("use_bias", "bias_initializer", "bias_regularizer", "bias_constraint")
_OUTER += ("activity_regularizer",)


def _activated_apart(part: _Part):
    """A layer with weights, and the function that is its activation, where something reads it."""
    layer, output = part.layer, part._node.outputs
    is_read = any(output is x for node in layer.outbound_nodes for x in tensors_of(node))
    if function_of(layer.activation) is None or not is_read:
        return None
    config = part.config(*layer.get_config()) | {"activation": layer.activation}
    return part.weighted(type(layer), *part.inputs, layer.get_weights(), **config)


def _separable(part: _Part):
    return _depthwise_and_pointwise(part, part.inputs[0], lambda name: getattr(part.layer, name))


def _depthwise_and_pointwise(part: _Part, x, pair: Callable):
    """Return what the two convolutions make of images.

    Args:
        part: Of the call of a separable layer.
        x: The images.
        pair: Returns the numbers for rows and columns of an attribute.
    """
    layer = part.layer
    depthwise, pointwise, *bias = layer.get_weights()
    if depthwise.ndim == 3:
        depthwise, pointwise = depthwise[None], pointwise[None]
    x = part.add(
        _layers.DepthwiseConv2D,
        x,
        "depthwise",
        [depthwise],
        kernel_size=pair("kernel_size"),
        strides=pair("strides"),
        dilation_rate=pair("dilation_rate"),
        use_bias=False,
        **part.config(*_SPATIAL, *_DEPTHWISE),
    )
    kernels = {
        f"kernel_{kind}": part.config(f"pointwise_{kind}")[f"pointwise_{kind}"]
        for kind in ("initializer", "regularizer", "constraint")
    }
    return part.weighted(
        _layers.Conv2D,
        x,
        [pointwise, *bias],
        layer.activation,
        filters=layer.filters,
        kernel_size=1,
        **kernels,
        **part.config(*_OUTER),
    )


def _pair(layer) -> Callable:
    """Return what gives the numbers for rows and columns of a layer on sequences."""

    def pair(name: str) -> tuple[int, int]:
        value = getattr(layer, name)
        return (1, value if isinstance(value, int) else value[0])

    return pair


def _separable_1d(part: _Part):
    return part.back(_depthwise_and_pointwise(part, *part.rows(), _pair(part.layer)))


def _convolved_1d(part: _Part):
    layer, pair, depthwise = part.layer, _pair(part.layer), hasattr(part.layer, "depth_multiplier")
    (x,) = part.rows()
    kernel, *bias = layer.get_weights()
    config = part.config(*layer.get_config()) | {"activation": layer.activation}
    config |= {name: pair(name) for name in ("kernel_size", "strides", "dilation_rate")}
    if layer.padding == "causal":
        missing = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        amounts = ((0, 0), (missing, 0))
        x = part.add(_layers.ZeroPadding2D, x, "pad", padding=amounts)
        config["padding"] = "valid"
    kind = _layers.DepthwiseConv2D if depthwise else _layers.Conv2D
    return part.back(part.weighted(kind, x, [kernel[None], *bias], **config))


def _pooled_1d(kind) -> Callable:
    def rule(part: _Part):
        pair = _pair(part.layer)
        (x,) = part.rows()
        sizes = dict(pool_size=pair("pool_size"), strides=pair("strides"))
        return part.back(part.add(kind, x, **sizes, **part.config("padding")))

    return rule


def _pooled_whole_1d(kind) -> Callable:
    def rule(part: _Part):
        pooled = part.add(kind, *part.rows())
        if not part.layer.keepdims:
            return pooled
        return part.add(_layers.Reshape, pooled, "shape", target_shape=part.shape)

    return rule


def _moved_1d(kind, name: str) -> Callable:
    """Of padding, cropping and upsampling."""

    def rule(part: _Part):
        amount = getattr(part.layer, name)
        pair = (1, amount) if name == "size" else ((0, 0), tuple(amount))
        return part.back(part.add(kind, *part.rows(), **{name: pair}))

    return rule


def _by_value(part: _Part):
    layer = part.layer
    config = part.config(*layer.get_config())
    if "axis" in config:
        axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
        if axis not in (-1, 2):
            return None
        config["axis"] = -1
    rows = part.rows()
    x = rows if len(rows) > 1 else rows[0]
    return part.back(part.add(type(layer), x, "", layer.get_weights(), **config))


_LAYERS: dict[type, Callable] = {
    _layers.Conv2D: _activated_apart,
    _layers.DepthwiseConv2D: _activated_apart,
    _layers.Dense: _activated_apart,
    _layers.SeparableConv2D: _separable,
    _layers.SeparableConv1D: _separable_1d,
    _layers.Conv1D: _convolved_1d,
    _layers.DepthwiseConv1D: _convolved_1d,
    _layers.MaxPool1D: _pooled_1d(_layers.MaxPool2D),
    _layers.AveragePooling1D: _pooled_1d(_layers.AveragePooling2D),
    _layers.GlobalAveragePooling1D: _pooled_whole_1d(_layers.GlobalAveragePooling2D),
    _layers.GlobalMaxPooling1D: _pooled_whole_1d(_layers.GlobalMaxPooling2D),
    _layers.ZeroPadding1D: _moved_1d(_layers.ZeroPadding2D, "padding"),
    _layers.Cropping1D: _moved_1d(_layers.Cropping2D, "cropping"),
    _layers.UpSampling1D: _moved_1d(_layers.UpSampling2D, "size"),
}
_BY_VALUE = (
    _layers.Activation,
    _layers.Add,
    _layers.BatchNormalization,
    _layers.Concatenate,
    _layers.Dropout,
    _layers.ELU,
    _layers.LeakyReLU,
    _layers.Multiply,
    _layers.ReLU,
)
