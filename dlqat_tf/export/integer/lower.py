"""Keras model -> IntegerNetwork. Batch norm is folded here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import (
    IN_TRAINING,
    StandardLayers,
    function_of,
    is_bilinear,
    is_plain_transposed,
)
from dlqat_tf.canonical.lambdas import without_lambdas
from dlqat_tf.canonical.part import BACK
from dlqat_tf.endings import ending_of
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.folding import Scaled, direct, folded, on_images, simplified
from dlqat_tf.export.integer.inputs import (
    Prepared,
    input_node,
    lookup,
    prepared,
    prepares,
    resolved,
)
from dlqat_tf.export.integer.islands import check_float_call, gathered
from dlqat_tf.export.integer.kernels import SEPARABLE, SEQUENCES, kernels_of, spatial_of
from dlqat_tf.export.integer.layers import RELUS, nodes_of
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    OUTPUT,
    Activation,
    Affine,
    Convolution,
    Dense,
    FromIsland,
    Input,
    Island,
    Node,
    Output,
    Pad,
    ReLU,
    Reshape,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.export.integer.precision import in_float32
from dlqat_tf.export.integer.reading import (
    NoIntegerForm,
    activation_of,
    head_of,
    norm_of,
    scaling_of,
    unsupported,
)
from dlqat_tf.export.integer.shapes import output_shape
from dlqat_tf.export.integer.slopes import slopes_of
from dlqat_tf.float_part import FloatPart, NoFloatForm, computation_of
from dlqat_tf.graph import check_graph, follow, training_of, unique
from dlqat_tf.heads import Head
from dlqat_tf.preprocessing import arithmetic
from dlqat_tf.quantizers import (
    ActivationQuantizer,
    InputQuantizer,
    Unwrapped,
    unwrapped,
)
from dlqat_tf.quantizers.of_larq import is_of_larq

_layers = tf.keras.layers
# TFLite's operations that are a table of int8 codes.
_OPERATORS = {
    "elu": "ELU",
    "gelu": "GELU",
    "hard_swish": "HARD_SWISH",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
}


def lower(model: tf.keras.Model) -> IntegerNetwork:
    """Return what a Keras model computes, in integer codes.

    Args:
        model: Functional or Sequential model (nested ones are flattened) from one or more inputs,
            images (batch, height, width, channels) or other values of up to four dimensions, to one
            output. Layers that are called more than once are one node, with the same weights, for
            each call.

    Returns:
        The network, batch norm folded: a channel's gain goes into its step (a negative one flips
        the signs of the codes), the rest into its bias.

    Raises:
        ExportError: Names the layer that cannot be lowered, why, and what is supported.
    """
    check_graph(model, ExportError)
    model = without_lambdas(in_float32(model))
    lowering = _Lowering()
    sources = [lowering.add(input_node(tensor)) for tensor in model.inputs]
    outputs = lowering.model(model, sources, "")
    for name, tensor, source in zip(model.output_names, model.outputs, outputs, strict=True):
        ending = ending_of(tensor)
        lowering.add(Output(name=f"{name}{OUTPUT}", inputs=(source,), ending=ending))
    return IntegerNetwork(tuple(gathered(simplified(direct(folded(resolved(lowering.nodes)))))))


class _Lowering:
    """Collects the nodes while it walks the layers."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # of each node's output
        self.standard = StandardLayers()

    def add(self, node: Node) -> str:
        name = unique(node.name, self.shapes)  # a layer may be called twice
        self.nodes.append(replace(node, name=name))
        self.shapes[name] = output_shape(node, [self.shapes[each] for each in node.inputs])
        return name

    def add_chain(self, nodes: list[Node]) -> str:
        """Add nodes, each of which reads the one before it, and return the name of the last."""
        first, *others = nodes
        name = self.add(first)
        for node in others:
            name = self.add(replace(node, inputs=(name,)))
        return name

    def model(
        self, model: tf.keras.Model, sources: list[str], prefix: str, training: bool | None = None
    ) -> list[str]:
        """Add the nodes of a (nested) model and return the names of its outputs."""

        def visit(call, inputs: list[str]) -> list[str]:
            return self.call(call, inputs, prefix, training_of(call, training))

        return follow(model, sources, visit)

    def call(self, call, inputs: list[str], prefix: str, training: bool | None) -> list[str]:
        """Add the nodes of one call of a layer and return the names of its outputs."""
        layer = call.layer
        name = prefix + layer.name
        if training and isinstance(layer, (*IN_TRAINING, _layers.BatchNormalization)):
            raise unsupported(name, layer, "it is called with training=True")
        if hasattr(layer, "_nodes_by_depth"):
            return self.model(layer, inputs, name + "/", training)
        # What computes with an operator on a part that stays float, goes on with that part.
        is_operator = hasattr(layer, "symbol")
        from_island = any(isinstance(self.node(each), FromIsland) for each in inputs)
        part = None if is_operator and from_island else self.standard.of(call)
        if part is not None:
            return self.model(part, inputs, prefix, training)
        before = len(self.nodes)
        try:
            return [self.layer(call, inputs, name)]
        except NoIntegerForm:
            for node in self.nodes[before:]:
                del self.shapes[node.name]
            del self.nodes[before:]
        check_float_call(call, name, training)
        return self.float_call(name, inputs, computation_of(call), layer)

    def float_call(
        self, name: str, inputs: list[str], function: Callable, layer, activation=None
    ) -> list[str]:
        """Add a computation of a layer, or its activation, that stays float; return its outputs."""
        part = FloatPart(function, [self.shapes[each] for each in inputs], [layer])
        try:
            shapes, passed_on = part.output_shapes(), part.passed_on()
        except NoFloatForm as error:
            raise ExportError(f"Layer {name!r} cannot be exported: {error}.") from error
        if None not in passed_on:
            return [inputs[i] for i in passed_on]
        island = self.add(
            Island(
                name=f"{name}/island",
                inputs=tuple(inputs),
                part=part,
                layers=(name,),
                operator=_OPERATORS.get(function_of(activation or layer), ""),
                slopes=slopes_of(activation or layer),
                factors=layer.size if is_bilinear(layer) else None,
            )
        )
        return [
            self.add(FromIsland(name=name, inputs=(island,), index=index, shape=shape))
            for index, shape in enumerate(shapes)
        ]

    def layer(self, call, inputs: list[str], name: str) -> str:
        """Add the nodes of a layer's call with one output and return the name of that."""
        layer = call.layer
        if prepares(layer) and len(inputs) == 1:
            return self.preparation(call, name, *inputs)
        try:
            parts = unwrapped(layer)
        except ValueError as error:
            raise ExportError(f"Layer {name!r} cannot be exported: {error}") from error
        output = self.bare(parts, name, inputs)
        if parts.output_quantizer is None:
            return output
        around = dict(name=f"{name}_output", inputs=(output,))
        return self.rounded(parts.output_quantizer, around)

    def rounded(self, quantizer, shared: dict, layer: str = "") -> str:
        """Add what a quantizer makes of activations, or a layer that is one; return its name."""
        node, (name,) = activation_of(quantizer, shared), shared["inputs"]
        if node is None:
            return name
        source = self.node(name)
        is_image = isinstance(source, Input) and source.preprocessing is not None
        is_image = is_image or isinstance(source, Prepared)
        if is_image and isinstance(quantizer, InputQuantizer) and isinstance(node, Activation):
            node = lookup(quantizer, source, node)
        elif isinstance(node, Activation) and getattr(quantizer, "scaled_step", None):
            node = replace(node, source=layer)
        gain, offset = scaling_of(quantizer)
        if (gain, offset) != (1.0, 0.0):
            channels = np.ones(self.shapes[name][-1], np.float32)
            around = dict(name=f"{shared['name']}_scaled", inputs=(name,))
            scaled = self.add(Affine(**around, gain=gain * channels, offset=offset * channels))
            node = replace(node, inputs=(scaled,))
        return self.add(node)

    def node(self, name: str) -> Node:
        """Return a node that was added."""
        return next(node for node in self.nodes if node.name == name)

    def preparation(self, call, name: str, source: str) -> str:
        """Add arithmetic on each channel, such as what prepares an input."""
        around, node = dict(name=name, inputs=(source,)), self.node(source)
        affine = arithmetic(call)
        # On other values it has no kernel on integers.
        if affine is None or not isinstance(node, (Input, Prepared, Reshape, Weighted)):
            raise NoIntegerForm(name)
        if isinstance(node, Prepared) or (isinstance(node, Input) and node.preprocessing):
            return self.add(prepared(call, node, around))
        if not affine.keeps_order:
            raise NoIntegerForm(name)
        gain, offset = affine.gain, affine.offset
        return self.add(Scaled(**around, layer=name, gain=gain, offset=offset, is_fixed=True))

    def bare(self, parts: Unwrapped, name: str, inputs: list[str]) -> str:
        """Add the nodes of a layer without what a wrapper does to its output."""
        layer = parts.layer
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise NoIntegerForm(name)
        shared = dict(name=name, inputs=tuple(inputs))
        # Exact types where a subclass could compute anything.
        kind = type(layer)
        if kind in (*IN_TRAINING, _layers.InputLayer) or (
            kind is _layers.Activation and layer.activation is tf.keras.activations.linear
        ):
            return inputs[0]
        if isinstance(layer, Head):
            return self.add(head_of(layer, shared))
        if isinstance(layer, ActivationQuantizer) or is_of_larq(layer):
            return self.rounded(layer, shared, name)
        if kind is _layers.Activation and is_of_larq(layer.activation):
            return self.rounded(layer.activation, shared)
        if kind in _WEIGHTED:
            if isinstance(layer, _layers.Conv2DTranspose) and not is_plain_transposed(layer):
                raise NoIntegerForm(name)
            return self.weighted(parts, shared)
        if kind is _layers.BatchNormalization:
            return self.add(norm_of(layer, shared))
        return self.add_chain(nodes_of(layer, shared, [self.shapes[each] for each in inputs]))

    def weighted(self, parts: Unwrapped, shared: dict) -> str:
        """Add a convolution or dense layer with its quantizers and activation around it."""
        layer, name = parts.layer, shared["name"]
        is_sequence = isinstance(layer, SEQUENCES)
        if is_sequence:  # first, since binary kernels read signs as they are made
            shape = (1, *self.shapes[shared["inputs"][0]])
            row = Reshape(name=f"{name}_row", inputs=shared["inputs"], shape=shape)
            shared["inputs"] = (self.add(row),)
        quantizer = getattr(layer, "input_quantizer", None)
        if quantizer is not None:
            around = dict(name=f"{name}_input", inputs=shared["inputs"])
            shared["inputs"] = (self.rounded(quantizer, around),)
        if is_sequence and layer.padding == "causal":
            missing = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            amounts = ((0, 0), (missing, 0))
            pad = Pad(name=f"{name}_pad", inputs=shared["inputs"], amounts=amounts)
            shared["inputs"] = (self.add(pad),)
        *before, kernel = kernels_of(parts, name)
        for each in before:
            spatial = spatial_of(layer)
            node = Convolution(**shared | each.settings() | spatial, is_depthwise=True)
            shared["inputs"] = (self.add(replace(node, name=each.name)),)
        shared |= kernel.settings(layer.bias if layer.use_bias else None)
        output = self.activated(layer, name, self.product(layer, shared))
        if not is_sequence:
            return output
        back = self.shapes[output][1:]
        return self.add(Reshape(name=f"{name}_{BACK}", inputs=(output,), shape=back))

    def product(self, layer, shared: dict) -> str:
        """Add the nodes of a layer's product with its weights and return the name of the last."""
        if isinstance(layer, SEPARABLE):
            return self.add(Convolution(**shared, padding="valid"))
        if isinstance(layer, _layers.Dense):
            shape = self.shapes[shared["inputs"][0]]
            if len(shape) == 1:
                return self.add(Dense(**shared))
            convolution = Convolution(**shared | dict(weights=shared["weights"][None, None]))
            return self.add_chain(on_images(convolution, shape))
        if isinstance(layer, _layers.Conv2DTranspose):
            return self.add(
                TransposedConvolution(
                    **shared, strides=tuple(layer.strides), padding=layer.padding.lower()
                )
            )
        depthwise = isinstance(layer, _layers.DepthwiseConv2D)
        return self.add(
            Convolution(
                **shared,
                **spatial_of(layer),
                groups=1 if depthwise else layer.groups,
                is_depthwise=depthwise,
            )
        )

    def activated(self, layer, name: str, output: str) -> str:
        """Add the nodes of a layer's activation and return the name of the last."""
        activation = layer.activation
        around = dict(name=f"{name}_activation", inputs=(output,))
        if activation in (None, tf.keras.activations.linear):
            return output
        if activation in RELUS:
            return self.add(ReLU(**around, highest=RELUS[activation]))
        if isinstance(activation, ActivationQuantizer) or is_of_larq(activation):
            return self.rounded(activation, around)
        if isinstance(activation, lq.quantizers.Quantizer):
            raise unsupported(name, layer, "its activation says no integer codes")

        def function(tensors):
            return [activation(*tensors)]

        return self.float_call(around["name"], [output], function, layer, activation)[0]


_WEIGHTED = (
    _layers.Conv2D,
    _layers.Conv2DTranspose,
    _layers.DepthwiseConv2D,
    _layers.Dense,
    lq.layers.QuantConv2D,
    lq.layers.QuantConv2DTranspose,
    lq.layers.QuantDepthwiseConv2D,
    lq.layers.QuantDense,
    *(lq.layers.QuantConv1D, lq.layers.QuantSeparableConv1D, lq.layers.QuantSeparableConv2D),
)
