"""The methods of this package for TF-MOT: quantizer, configuration of a layer, scheme.

The second face of :mod:`dlqat_tf.quantizers`: one TF-MOT quantizer makes any Larq one and calls
it, so both compute the same by construction, and export reads the same grids.

>>> import tensorflow_model_optimization as tfmot
>>> annotated = tfmot.quantization.keras.quantize_annotate_model(model)
>>> quantized = tfmot.quantization.keras.quantize_apply(annotated, dlqat_tf.tfmot.Scheme(1, 2))

No ``quantize_scope`` is needed, neither here nor to load a saved model: TF-MOT's classes and these
are registered with Keras.
"""

from __future__ import annotations

import glob
import warnings
from dataclasses import replace

import larq as lq
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import methods
from dlqat_tf.canonical import function_of, is_bilinear
from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.kinds import POOLS, role_of
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import WIDTHS, Overrides
from dlqat_tf.convert.problems import Problem, unstored
from dlqat_tf.convert.standard import in_standard_layers
from dlqat_tf.graph import apply, follow, refresh
from dlqat_tf.heads import Head
from dlqat_tf.preprocessing import ChannelAffine
from dlqat_tf.quantizers import CGPACT, SATWeights, Unwrapped, unwrapped
from dlqat_tf.quantizers.weight_decay import exempt_from_weight_decay

_api = tfmot.quantization.keras
_layers = tf.keras.layers
_OWN = "quantize_config"  # of an annotated layer, in TF-MOT's map

tf.keras.utils.get_custom_objects().update(*_api.quantize_scope().custom_objects)

_KERNELS = {
    _layers.Conv2D: "kernel",
    _layers.Conv2DTranspose: "kernel",
    _layers.DepthwiseConv2D: "depthwise_kernel",
    _layers.Dense: "kernel",
}
# Their outputs are off the grid, and need a quantizer where a sum or a convolution reads them.
_LINEAR = (_layers.BatchNormalization, _layers.Add, _layers.Multiply, _layers.Subtract)
# They bring their own quantizers, or stand at the ends of a model.
_UNTOUCHED = (
    Head,
    lq.quantizers.Quantizer,
    lq.layers.QuantConv2D,
    lq.layers.QuantConv2DTranspose,
    lq.layers.QuantDepthwiseConv2D,
    lq.layers.QuantDense,
    _layers.InputLayer,
    _layers.Rescaling,
    _layers.Softmax,
)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LarqQuantizer(_api.quantizers.Quantizer):
    """Any quantizer of this package behind TF-MOT's interface.

    Its variables are the wrapper's: ``build`` makes them there, and each call gives them back to a
    quantizer of the same settings. So one of these may serve many layers, as TF-MOT's do.

    Args:
        quantizer: A Larq quantizer of this package, or its configuration.
    """

    def __init__(self, quantizer: lq.quantizers.Quantizer | dict):
        if not isinstance(quantizer, dict):
            quantizer = tf.keras.layers.serialize(quantizer)
        self._config = quantizer

    def larq_quantizer(self, weights: dict, shape) -> lq.quantizers.Quantizer:
        """Return the Larq quantizer that uses the variables that ``build`` returned.

        Args:
            weights: These variables, by name.
            shape: Of what it rounds.
        """
        return self._built(shape, lambda name, **_: weights[name])

    def _built(self, shape, add_weight) -> lq.quantizers.Quantizer:
        """Return the quantizer, which asks ``add_weight`` for its variables."""
        quantizer = tf.keras.layers.deserialize(self._config)
        quantizer.add_weight = add_weight
        quantizer.build(shape)
        return quantizer

    def build(self, tensor_shape, name, layer):
        if isinstance(layer, _api.QuantizeWrapper) and not layer._weight_vars:
            # A layer that was built before it was wrapped has its variables listed by the wrapper
            # too, one built after, as in a loaded or cloned model, has not: the two would differ in
            # number and order, and no stored weights would fit.
            own = {id(variable) for variable in layer.layer.trainable_weights}
            listed = layer._trainable_weights
            listed[:] = [variable for variable in listed if id(variable) not in own]
        weights = {}

        prefix = name

        def add_weight(name, **settings):
            made = layer.add_weight(f"{prefix}_{name}", **settings)
            weights[name] = exempt_from_weight_decay(made)
            return made

        self._built(tensor_shape, add_weight)
        return weights

    def __call__(self, inputs, training, weights, **kwargs):
        return self.larq_quantizer(weights, inputs.shape).call(inputs, training=training)

    def get_config(self):
        return {"quantizer": self._config}


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class QuantizeConfig(_api.QuantizeConfig):
    """How one layer is quantized, for ``quantize_annotate_layer``.

    Conv2D, DepthwiseConv2D, Conv2DTranspose and Dense get the weights of a method, SAT unless said
    otherwise; where their activation is a ReLU, the method's activation quantizer, CG-PACT of SAT,
    rounds and rectifies the output. So it does at ReLU and Activation("relu") layers; a ReLU6 loses
    its upper bound, since the trained range clips instead.

    Args:
        weight_bits: 1 to 8, or 32; of the method's.
        activation_bits: 1 to 8, or 32.
        scale_adjust: Rescale SAT weights to variance 1 / n_out; for the final dense layer.
        keep_scale: Keep the scale of SAT weights; for trained layers that no batch norm follows.
            Neither is for methods whose weights have the scale of the kernel.
        residual_bits: 2 to 8 rounds an output that is not rectified to a signed grid, as both
            inputs of a residual add must be in int8 kernels. This is also what it means at
            BatchNormalization, Add, Multiply, Subtract and average pooling layers, and at layers of
            one function, such as LeakyReLU. None: such outputs stay float.
        alpha_init: Initial range of the output's quantizer.
        method: Name in :mod:`dlqat_tf.methods`. A method's constraint of the kernel is the layer's
            own ``kernel_constraint``, which :class:`Scheme` sets.
        at_end: Whether the weights are those that the method has at a network's ends.

    Raises:
        ValueError: An argument is out of range. Later, when the configuration is applied: the layer
            has nothing that it says how to quantize.
    """

    def __init__(
        self,
        weight_bits: int = 1,
        activation_bits: int = 2,
        *,
        scale_adjust: bool = False,
        keep_scale: bool = False,
        residual_bits: int | None = None,
        alpha_init: float = 8.0,
        method: str = "sat",
        at_end: bool = False,
    ):
        chosen = methods.get(method)
        if not at_end:
            chosen.check(weight_bits)
        weights = (chosen.end_weights if at_end else chosen.weights)(weight_bits)
        if (scale_adjust or keep_scale) and methods.clamps(weights):
            weights = SATWeights(weight_bits, scale_adjust, keep_scale)
        rectified = chosen.activations(
            activation_bits, alpha_init=alpha_init, regularizer=None, name="output"
        )
        CGPACT(alpha_init=alpha_init)  # refuses what is out of range, also for methods without
        self._weights = LarqQuantizer(weights)
        self._rectified = LarqQuantizer(rectified)
        self._signed = None
        if residual_bits is not None:
            signed = CGPACT(residual_bits, alpha_init, signed=True, name="output")
            self._signed = LarqQuantizer(signed)
        self._config = {
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "scale_adjust": scale_adjust,
            "keep_scale": keep_scale,
            "residual_bits": residual_bits,
            "alpha_init": alpha_init,
            "method": method,
            "at_end": at_end,
        }

    def get_weights_and_quantizers(self, layer):
        _check_quantizable(layer, signed=self._signed is not None)
        name = _KERNELS.get(type(layer))
        return [(getattr(layer, name), self._weights)] if name else []

    def set_quantize_weights(self, layer, quantize_weights):
        for weights in quantize_weights:
            setattr(layer, _KERNELS[type(layer)], weights)

    def get_output_quantizers(self, layer):
        if _is_rectified(layer):
            return [self._rectified]
        return [self._signed] if self._signed else []

    def get_activations_and_quantizers(self, layer):
        return []  # the output is rounded instead: a ReLU before CG-PACT changes nothing

    def set_quantize_activations(self, layer, quantize_activations):
        if type(layer) is _layers.ReLU:
            layer.max_value = None

    def get_config(self):
        return dict(self._config)


class Scheme(_api.QuantizeScheme):
    """Which layer of a model gets which widths, for ``quantize_apply``.

    Applies to every annotated layer without a configuration of its own:

    - convolutions and dense layers: ``weight_bits``, those that read an input and the last one 8
      bits, the last one scale-adjusted where it is dense. A head of this package is a last layer
      that brings its own quantizer. Where no batch norm follows, the weights keep their scale,
      since nothing else would restore it.
    - ReLUs, as layers or as activations of others: ``activation_bits``, 8 where the last layer
      reads them.
    - what a sum, a pool, a batch norm of its own or a weighted layer reads and no ReLU rectified
      (the branches of a residual add, linear bottlenecks, hidden average pools): a signed quantizer
      of ``residual_bits``, 8 where the last layer reads it. These are the places where
      :func:`dlqat_tf.quantize` puts quantizers.
    - separable and one-dimensional layers, and functions that are the activation of another layer,
      are taken apart into layers that have a form.
    - what has no form stays float, and a warning names it; so do layers that are not annotated.
    - all others stay as they are. Batch norm stays in training; export folds it.

    Images that are pixels / 255 are not rounded. Behind inputs that are others, or no images, there
    is a :class:`dlqat_tf.InputQuantizer`, as :func:`dlqat_tf.quantize` puts it without images.

    Args:
        weight_bits: 1 to 8, or 32.
        activation_bits: 1 to 8, or 32.
        residual_bits: 2 to 8, or None to add in float, which needs calibration images at export.
        alpha_init: Initial range of every activation quantizer.
        preprocessing: How images are prepared outside of the model, as for
            :func:`dlqat_tf.quantize`.
        method: Name in :mod:`dlqat_tf.methods` of what rounds kernels and ReLUs. What a method
            needs in training, ``dlqat_tf.methods.get(name).callbacks(epochs)`` gives, and before it
            ``.prepare(model, images)`` where that is not None.

    Raises:
        ValueError: An argument is out of range. From ``quantize_apply``: an annotated layer can
            neither be quantized nor stored in float; the message names it.
    """

    def __init__(
        self,
        weight_bits: int = 1,
        activation_bits: int = 2,
        residual_bits: int | None = 8,
        alpha_init: float = 8.0,
        preprocessing=None,
        method: str = "sat",
    ):
        self._assignment = _Assignment(
            preprocessing,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            residual_bits=residual_bits,
            alpha_init=alpha_init,
            method=method,
        )

    def get_layout_transformer(self):
        return self._assignment

    def get_quantize_registry(self):
        return self._assignment


# The names that they had while SAT was the only method.
SATScheme, SATQuantizeConfig = Scheme, QuantizeConfig


class _Assignment(_api.QuantizeLayoutTransform, _api.QuantizeRegistry):
    """Sees the whole model as the layout transform, and answers by layer as the registry."""

    def __init__(self, preprocessing, **settings):
        self._preprocessing = preprocessing
        QuantizeConfig(**settings)  # refuses what is out of range
        self._settings = settings
        self._configs: dict[str, QuantizeConfig] = {}

    def apply(self, model, layer_quantize_map):
        refresh(model)
        free = {name for name, entry in layer_quantize_map.items() if not entry.get(_OWN)}
        own = {layer.name for layer in model.layers} - free
        model, sources = in_standard_layers(
            model, Overrides({glob.escape(name): "float" for name in own})
        )
        layer_quantize_map = layer_quantize_map | {
            name: layer_quantize_map[source] for name, source in sources.items() if source in free
        }
        widths = {name: self._settings[name] for name in WIDTHS}
        network = Network(
            model, Overrides({}), None, widths, preprocessing=self._preprocessing, partial=True
        )
        configs = {
            layer.name: self._config(calls[0], network)
            for layer, calls in network.of.items()
            if network.image_of(calls[0]) is None
        }
        self._configs = {name: config for name, config in configs.items() if config}
        kept, in_float = {}, {}
        for layer, (call, *_) in network.of.items():
            if layer.name not in layer_quantize_map:
                continue
            entry = layer_quantize_map[layer.name]
            if entry.get(_OWN) or layer.name in self._configs:
                kept[layer.name] = entry
            elif call in network.in_float:
                in_float[call] = network.in_float[call]
            elif call.affine is None and call not in network.places:
                _check_untouched(layer)
        _say_float(in_float)
        apart = [
            call
            for call in network.places
            if _is_rounded_apart(call, network) and _is_annotated(call, layer_quantize_map, network)
        ]
        return _completed(model, network, apart, self._constraints(network)), kept

    def _constraints(self, network: Network) -> dict:
        """Return the method's constraint of each hidden kernel that it has one for."""
        make = methods.get(self._settings["method"]).kernel_constraint
        return {
            layer: make()
            for layer in network.of
            if make is not None
            and type(layer) in (_layers.Conv2D, _layers.Dense)
            and layer.name in self._configs
            and not self._configs[layer.name].get_config()["at_end"]
            and self._configs[layer.name].get_config()["weight_bits"] != 32
        }

    def supports(self, layer) -> bool:
        return layer.name in self._configs

    def get_quantize_config(self, layer):
        return self._configs[layer.name]

    def _config(self, call: Call, network: Network) -> QuantizeConfig | None:
        """Return the configuration of a layer, or None where nothing of it is quantized."""
        layer, place = call.layer, network.places.get(call)
        if _is_rounded_apart(call, network):
            return None
        weighted = type(layer) in _KERNELS
        changes: dict = {"residual_bits": None}
        if weighted:
            changes["weight_bits"] = network.weight_bits(call)
            final = layer in network.ends and type(layer) is _layers.Dense
            changes["at_end"] = network.first(call) or layer in network.ends
            changes["scale_adjust"] = final
            changes["keep_scale"] = not final and not network.norms[layer]
        if place is not None:
            # Of other functions the outputs are signed codes, of which there are none of one bit.
            is_rectified = _is_rectified(layer)
            width = "activation_bits" if is_rectified else "residual_bits"
            changes[width] = place.bits if is_rectified else max(place.bits, 2)
        if not weighted and place is None:
            return None
        return QuantizeConfig(**{**self._settings, **changes})


def _completed(model, network: Network, apart: list[Call], constraints: dict) -> tf.keras.Model:
    """Return a model of the same layers with what they lack.

    Args:
        model: The model.
        network: The same as a list of calls, which says what their quantizers are.
        apart: The calls behind which a quantizer is a layer of its own.
        constraints: Of kernels, by layer.
    """
    quantizers = {call: network.places[call].make() for call in apart}
    if not quantizers and not constraints:
        return model
    of = {call.node: call for call in network.calls}
    constrained = {
        layer: type(layer).from_config({**layer.get_config(), "kernel_constraint": constraint})
        for layer, constraint in constraints.items()
    }

    def rounded(call, tensors: list) -> list:
        return [quantizers[call](each) for each in tensors] if call in quantizers else tensors

    def visit(node, tensors: list) -> list:
        affine, layer = of[node].affine, node.layer
        if affine is not None and not isinstance(layer, _layers.Rescaling):
            # What it has adapted to would be lost in the copy that is made of the model.
            made = ChannelAffine(affine.gain, affine.offset, affine.order, name=layer.name)
            return rounded(of[node], [made(*tensors)])
        outputs = apply(node, constrained.get(layer, layer), tensors)
        if layer in constrained:
            constrained[layer].set_weights(layer.get_weights())
        return rounded(of[node], outputs)

    sources = [
        rounded(call, [tensor])[0]
        for call, tensor in zip(network.inputs, model.inputs, strict=True)
    ]
    outputs = tf.nest.pack_sequence_as(model.output, follow(model, sources, visit))
    return tf.keras.Model(model.input, outputs, name=model.name)


def _is_rounded_apart(call: Call, network: Network) -> bool:
    """Return whether the quantizer behind a call is a layer of its own, and none of a wrapper.

    So it is behind inputs and what stays float, and where all values that there may be are known.
    """
    place = network.places.get(call)
    if place is None:
        return call.role == "kept"
    return place.is_input or place.range is not None or call.role == "kept"


def _is_annotated(call: Call, annotated, network: Network) -> bool:
    """Return whether a call is an input, or an annotated layer's, or one reads it."""
    layers = [call.layer, *(reader.layer for reader in call.readers)]
    return network.image_of(call) is not None or any(each.name in annotated for each in layers)


def _is_rectified(layer) -> bool:
    if type(layer) is _layers.ReLU:
        return True
    return (
        type(layer) in (*_KERNELS, _layers.Activation)
        and layer.activation is tf.keras.activations.relu
    )


def _refusal(layer, reason: str) -> ValueError:
    return ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) cannot be quantized: {reason}. Expected "
        "Conv2D, DepthwiseConv2D, Conv2DTranspose or Dense with a ReLU or no activation, ReLU, "
        "Activation('relu'), or with residual_bits BatchNormalization, Add, Multiply, Subtract, "
        "AveragePooling2D, GlobalAveragePooling2D or a layer of one function, such as LeakyReLU or "
        "Activation('swish')."
    )


def _check_quantizable(layer, signed: bool) -> None:
    """Raise unless a configuration says how to quantize something of this layer."""
    kind = type(layer)
    if signed and kind not in _KERNELS and function_of(layer) is not None:
        return
    if kind is _layers.ReLU:
        if layer.negative_slope or layer.threshold:
            raise _refusal(layer, "it is no ReLU")
    elif kind in _KERNELS or kind is _layers.Activation:
        fine = _is_rectified(layer) or (kind in _KERNELS and _is_final(layer.activation))
        if not fine:
            name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
            raise _refusal(layer, f"its activation is {name!r}")
    elif not (signed and (kind in (*_LINEAR, *POOLS) or is_bilinear(layer))):
        raise _refusal(layer, "no method has a form of it")


def _say_float(in_float: dict[Call, Problem]) -> None:
    """Warn of annotated layers that stay float.

    Raises:
        ValueError: TFLite has no form of one.
    """
    if not in_float:
        return
    by_name = {call.name: call for call in in_float}
    for name, reason in unstored(list(in_float)).items():
        raise _refusal(by_name[name].layer, f"no method has a form of it, nor has TFLite: {reason}")
    reasons = "; ".join(f"{call.name!r}: {problem.text}" for call, problem in in_float.items())
    warnings.warn(
        f"{len(in_float)} annotated layers stay float, for want of a quantized form, in training "
        f"and in files, where operations on float32 are slower than those on int8. {reasons}.",
        stacklevel=2,
    )


def _check_untouched(layer) -> None:
    """Raise unless an annotated layer without a configuration may stay as it is."""
    fine = isinstance(layer, _UNTOUCHED) or role_of(layer) in ("moving", "norm", "merge", "pool")
    if not fine and not (type(layer) is _layers.Activation and _is_final(layer.activation)):
        _check_quantizable(layer, signed=False)


def _is_final(activation) -> bool:
    """Return whether an activation rounds for itself, or leaves the output to what follows."""
    finals = (None, tf.keras.activations.linear, tf.keras.activations.softmax)
    return activation in finals or isinstance(activation, lq.quantizers.Quantizer)


@unwrapped.register(_api.QuantizeWrapper)
def _unwrap(wrapper) -> Unwrapped:
    quantizers = [quantizer for _, quantizer, _ in wrapper._weight_vars]
    quantizers += [*wrapper._quantize_activations, *wrapper._output_quantizers]
    foreign = [each for each in quantizers if not isinstance(each, LarqQuantizer)]
    if foreign or len(wrapper._weight_vars) > 1:
        raise _foreign((foreign or quantizers)[0])
    parts = unwrapped(wrapper.layer)
    for kernel, quantizer, variables in wrapper._weight_vars:
        # The layer's own attribute is the quantized tensor of the last call.
        kernel_quantizer = quantizer.larq_quantizer(variables, kernel.shape)
        parts = replace(parts, kernel=kernel, kernel_quantizer=kernel_quantizer)
    for quantizer in wrapper._output_quantizers:
        shape = wrapper.get_output_shape_at(0)
        output_quantizer = quantizer.larq_quantizer(wrapper._output_quantizer_vars, shape)
        parts = replace(parts, output_quantizer=output_quantizer)
    return parts


@unwrapped.register(tf.keras.utils.get_custom_objects()["QuantizeLayer"])
def _unwrap_input(layer) -> Unwrapped:
    raise _foreign(layer.quantizer)


@unwrapped.register(tf.keras.utils.get_custom_objects()["QuantizeAnnotate"])
def _unwrap_annotation(wrapper) -> Unwrapped:
    raise ValueError(
        "it is annotated for quantization but not quantized. Call tfmot.quantization.keras."
        "quantize_apply(model, scheme=dlqat_tf.tfmot.Scheme(...)) and train that model."
    )


def _foreign(quantizer) -> ValueError:
    return ValueError(
        f"it is quantized by {type(quantizer).__name__}. Expected one of dlqat_tf's quantizers for "
        "the kernel and one for the output: call quantize_apply with "
        "scheme=dlqat_tf.tfmot.Scheme(...)."
    )
