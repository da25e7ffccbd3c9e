"""Separable layers, layers on sequences and activations apart, as standard layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from dlqat_tf._compat import convnext_layers
from dlqat_tf.canonical.functions import function_of
from dlqat_tf.canonical.part import Part
from dlqat_tf.graph import tensors_of

_layers = tf.keras.layers

_SPATIAL = ("depth_multiplier", "padding")
_DEPTHWISE = ("depthwise_initializer", "depthwise_regularizer", "depthwise_constraint")
_OUTER = ("use_bias", "bias_initializer", "bias_regularizer", "bias_constraint")
_OUTER += ("activity_regularizer",)
_LayerScale, _StochasticDepth = convnext_layers()


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LayerScale(tf.keras.layers.Layer):
    r"""A trainable gain for each channel, :math:`y_c = \gamma_c x_c`, in files that can be loaded.

    Source: Touvron et al. 2021 (arXiv 2103.17239), section 2.

    Args:
        init_values: Of the gains.

    Input and output shape: (batch, ..., channels).
    """

    def __init__(self, init_values: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, input_shape):
        initializer = tf.keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight("gamma", (input_shape[-1],), initializer=initializer)
        super().build(input_shape)

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "init_values": self.init_values}


def _activated_apart(part: Part):
    """A layer with weights, and the function that is its activation, where something reads it."""
    layer, output = part.layer, part.node.outputs
    is_read = any(output is x for node in layer.outbound_nodes for x in tensors_of(node))
    if function_of(layer.activation) is None or not is_read:
        return None
    config = part.config(*layer.get_config()) | {"activation": layer.activation}
    return part.weighted(type(layer), *part.inputs, layer.get_weights(), **config)


def _separable(part: Part):
    return _depthwise_and_pointwise(part, part.inputs[0], lambda name: getattr(part.layer, name))


def _depthwise_and_pointwise(part: Part, x, pair: Callable):
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


def is_bilinear(layer) -> bool:
    """Return whether a layer is bilinear upsampling of images whose channels come last."""
    if type(layer) is not _layers.UpSampling2D or layer.data_format != "channels_last":
        return False
    return layer.interpolation == "bilinear"


def is_plain_transposed(layer) -> bool:
    """Return whether a transposed convolution is one that int8 kernels compute exactly."""
    sizes = list(zip(layer.kernel_size, layer.strides, strict=True))
    reaches = {size > stride for size, stride in sizes}
    is_known = layer.padding == "valid" or len(reaches) == 1  # of "same" not both at once
    return layer.output_padding is None and set(layer.dilation_rate) == {1} and is_known


def _transposed_1d(part: Part):
    layer, pair = part.layer, _pair(part.layer)
    if layer.output_padding is not None:
        return None
    (x,) = part.rows()
    kernel, *bias = layer.get_weights()
    config = part.config(*layer.get_config()) | {"activation": layer.activation}
    config |= {name: pair(name) for name in ("kernel_size", "strides", "dilation_rate")}
    return part.back(part.weighted(_layers.Conv2DTranspose, x, [kernel[None], *bias], **config))


def _separable_1d(part: Part):
    return part.back(_depthwise_and_pointwise(part, *part.rows(), _pair(part.layer)))


def _convolved_1d(part: Part):
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
    def rule(part: Part):
        pair = _pair(part.layer)
        (x,) = part.rows()
        sizes = dict(pool_size=pair("pool_size"), strides=pair("strides"))
        return part.back(part.add(kind, x, **sizes, **part.config("padding")))

    return rule


def _pooled_whole_1d(kind) -> Callable:
    def rule(part: Part):
        pooled = part.add(kind, *part.rows())
        if not part.layer.keepdims:
            return pooled
        return part.add(_layers.Reshape, pooled, "shape", target_shape=part.shape)

    return rule


def _moved_1d(kind, name: str) -> Callable:
    """Of padding, cropping and upsampling."""

    def rule(part: Part):
        amount = getattr(part.layer, name)
        pair = (1, amount) if name == "size" else ((0, 0), tuple(amount))
        return part.back(part.add(kind, *part.rows(), **{name: pair}))

    return rule


def by_value(part: Part):
    """A layer that computes value by value, on the images of one row."""
    layer = part.layer
    if layer.weights and len(layer.inbound_nodes) > 1:
        return None  # other calls may be on other tensors, with the same weights
    config = part.config(*layer.get_config())
    if "axis" in config:
        axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
        if axis not in (-1, 2):
            return None
        config["axis"] = -1
    rows = part.rows()
    x = rows if len(rows) > 1 else rows[0]
    return part.back(part.add(type(layer), x, "", layer.get_weights(), **config))


def _scaled(part: Part):
    """ConvNeXt's layer scale as a layer that can be loaded."""
    return part.add(
        LayerScale, *part.inputs, "", part.layer.get_weights(), **part.config("init_values")
    )


def _dropped_whole(part: Part):
    """Stochastic depth as the Dropout that drops all values of an image or none."""
    (x,) = part.inputs
    shape = (None, *(1 for _ in x.shape[1:]))
    return part.add(_layers.Dropout, x, rate=part.layer.drop_path_rate, noise_shape=shape)


def _of_one(part: Part):
    """What brings tensors together, called on a list of one: Keras loads no such call."""
    return part.add(_layers.Activation, *part.inputs, activation="linear")


def _concatenated(part: Part):
    return _of_one(part) if len(part.inputs) == 1 else None


def _in_pairs(part: Part):
    """What takes any number of tensors, two at a time."""
    if len(part.inputs) == 1:
        return _of_one(part)
    if len(part.inputs) == 2:
        return None
    x, *rest = part.inputs
    for i, each in enumerate(rest, 1):
        x = part.add(type(part.layer), [x, each], "" if i == len(rest) else f"part{i}")
    return x


def _averaged(part: Part):
    """The mean of tensors as that of windows, where they lie side by side."""
    if len(part.inputs) == 1:
        return _of_one(part)
    shapes = {tuple(x.shape[1:]) for x in part.inputs}
    if len(shapes) > 1 or None in (shape := shapes.pop()):
        return None
    x = part.add(_layers.Concatenate, part.inputs, "inputs")
    columns = math.prod(shape[:-1]), len(part.inputs)
    x = part.add(_layers.Reshape, x, "columns", target_shape=(*columns, shape[-1]))
    x = part.add(_layers.AveragePooling2D, x, "", pool_size=(1, columns[1]))
    return part.add(_layers.Reshape, x, "back_in_shape", target_shape=shape)


LAYERS: dict[type, Callable] = {
    _layers.Conv2D: _activated_apart,
    _layers.Conv2DTranspose: _activated_apart,
    _layers.DepthwiseConv2D: _activated_apart,
    _layers.Dense: _activated_apart,
    _layers.Add: _in_pairs,
    _layers.Average: _averaged,
    _layers.Concatenate: _concatenated,
    _layers.Maximum: _in_pairs,
    _layers.Minimum: _in_pairs,
    _layers.Multiply: _in_pairs,
    _layers.SeparableConv2D: _separable,
    _layers.SeparableConv1D: _separable_1d,
    _layers.Conv1D: _convolved_1d,
    _layers.Conv1DTranspose: _transposed_1d,
    _layers.DepthwiseConv1D: _convolved_1d,
    _layers.MaxPool1D: _pooled_1d(_layers.MaxPool2D),
    _layers.AveragePooling1D: _pooled_1d(_layers.AveragePooling2D),
    _layers.GlobalAveragePooling1D: _pooled_whole_1d(_layers.GlobalAveragePooling2D),
    _layers.GlobalMaxPooling1D: _pooled_whole_1d(_layers.GlobalMaxPooling2D),
    _layers.ZeroPadding1D: _moved_1d(_layers.ZeroPadding2D, "padding"),
    _layers.Cropping1D: _moved_1d(_layers.Cropping2D, "cropping"),
    _LayerScale: _scaled,
    _StochasticDepth: _dropped_whole,
    _layers.UpSampling1D: _moved_1d(_layers.UpSampling2D, "size"),
}
BY_VALUE = (
    _layers.Activation,
    _layers.Add,
    _layers.BatchNormalization,
    _layers.Concatenate,
    _layers.Dropout,
    _layers.ELU,
    _layers.LeakyReLU,
    _layers.Maximum,
    _layers.Minimum,
    _layers.Multiply,
    _layers.ReLU,
    _layers.Subtract,
)
