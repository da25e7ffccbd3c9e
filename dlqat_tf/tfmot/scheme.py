"""Which layer of a model is quantized how."""

from __future__ import annotations

import glob
import warnings

import larq as lq
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import methods
from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.kinds import role_of
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import WIDTHS, Overrides
from dlqat_tf.convert.problems import Problem, unstored
from dlqat_tf.convert.standard import in_standard_layers
from dlqat_tf.convert.weights import constraint_of
from dlqat_tf.graph import apply, follow, refresh
from dlqat_tf.heads import Head
from dlqat_tf.preprocessing import ChannelAffine
from dlqat_tf.tfmot.config import (
    KERNELS,
    QuantizeConfig,
    check_quantizable,
    is_final,
    is_rectified,
    refusal,
)

_api = tfmot.quantization.keras
_layers = tf.keras.layers
_OWN = "quantize_config"  # of an annotated layer, in TF-MOT's map
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
            Levels that no int8 holds (LQ-Net's, ABC-Net's, SYQ's, INQ's of 5 bits) cannot be moved
            in a wrapper: export such a model with ``snap=False``, or make it by
            :func:`dlqat_tf.quantize`.

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
        method, found = methods.get(self._settings["method"]), {}
        for layer in network.of:
            if type(layer) in KERNELS and layer.name in self._configs:
                config = self._configs[layer.name].get_config()
                bits = 32 if config["at_end"] else config["weight_bits"]
                found[layer] = constraint_of(layer, method, bits)
        return {layer: each for layer, each in found.items() if each is not None}

    def supports(self, layer) -> bool:
        return layer.name in self._configs

    def get_quantize_config(self, layer):
        return self._configs[layer.name]

    def _config(self, call: Call, network: Network) -> QuantizeConfig | None:
        """Return the configuration of a layer, or None where nothing of it is quantized."""
        layer, place = call.layer, network.places.get(call)
        if _is_rounded_apart(call, network):
            return None
        weighted = type(layer) in KERNELS
        changes: dict = {"residual_bits": None}
        if weighted:
            changes["weight_bits"] = network.weight_bits(call)
            final = layer in network.ends and type(layer) is _layers.Dense
            changes["at_end"] = network.first(call) or layer in network.ends
            changes["scale_adjust"] = final
            changes["keep_scale"] = not final and not network.norms[layer]
        if place is not None:
            # Of other functions the outputs are signed codes, of which there are none of one bit.
            rectified = is_rectified(layer)
            width = "activation_bits" if rectified else "residual_bits"
            changes[width] = place.bits if rectified else max(place.bits, 2)
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
    is_known = place is not None and (place.is_input or place.range is not None)
    return is_known or call.role == "kept"


def _is_annotated(call: Call, annotated, network: Network) -> bool:
    """Return whether a call is an input, or an annotated layer's, or one reads it."""
    layers = [call.layer, *(reader.layer for reader in call.readers)]
    return network.image_of(call) is not None or any(each.name in annotated for each in layers)


def _say_float(in_float: dict[Call, Problem]) -> None:
    """Warn of annotated layers that stay float.

    Raises:
        ValueError: TFLite has no form of one.
    """
    if not in_float:
        return
    by_name = {call.name: call for call in in_float}
    for name, reason in unstored(list(in_float)).items():
        raise refusal(by_name[name].layer, f"no method has a form of it, nor has TFLite: {reason}")
    reasons = "; ".join(f"{call.name!r}: {problem.text}" for call, problem in in_float.items())
    warnings.warn(
        f"{len(in_float)} annotated layers stay float, for want of a quantized form, in training "
        f"and in files, where operations on float32 are slower than those on int8. {reasons}.",
        stacklevel=2,
    )


def _check_untouched(layer) -> None:
    """Raise unless an annotated layer without a configuration may stay as it is."""
    fine = isinstance(layer, _UNTOUCHED) or role_of(layer) in ("moving", "norm", "merge", "pool")
    if not fine and not (type(layer) is _layers.Activation and is_final(layer.activation)):
        check_quantizable(layer, signed=False)
