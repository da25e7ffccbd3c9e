"""How one layer is quantized, and which layers can be."""

from __future__ import annotations

import larq as lq
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import methods
from dlqat_tf.canonical import function_of, is_bilinear
from dlqat_tf.convert.kinds import POOLS, ceiling_of
from dlqat_tf.convert.weights import on_kernel_of
from dlqat_tf.quantizers import CGPACT, SATWeights
from dlqat_tf.tfmot.quantizer import LarqQuantizer

_api = tfmot.quantization.keras
_layers = tf.keras.layers

KERNELS = {
    _layers.Conv2D: "kernel",
    _layers.Conv2DTranspose: "kernel",
    _layers.DepthwiseConv2D: "depthwise_kernel",
    _layers.Dense: "kernel",
}
# Their outputs are off the grid, and need a quantizer where a sum or a convolution reads them.
LINEAR = (_layers.BatchNormalization, _layers.Add, _layers.Multiply, _layers.Subtract)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class QuantizeConfig(_api.QuantizeConfig):
    """How one layer is quantized, for ``quantize_annotate_layer``.

    Conv2D, DepthwiseConv2D, Conv2DTranspose and Dense get the weights of a method, SAT unless said
    otherwise; where their activation is a ReLU, the method's activation quantizer, CG-PACT of SAT,
    rounds and rectifies the output. So it does at ReLU and Activation("relu") layers; a ReLU6 loses
    its upper bound, since the trained range clips instead, but for activations of 32 bits.

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
        self._weights = weights
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
        check_quantizable(layer, signed=self._signed is not None)
        name = KERNELS.get(type(layer))
        if name is None:
            return []
        return [(getattr(layer, name), LarqQuantizer(on_kernel_of(layer, self._weights)))]

    def set_quantize_weights(self, layer, quantize_weights):
        for weights in quantize_weights:
            setattr(layer, KERNELS[type(layer)], weights)

    def get_output_quantizers(self, layer):
        if is_rectified(layer):
            return [self._rectified]
        return [self._signed] if self._signed else []

    def get_activations_and_quantizers(self, layer):
        return []  # the output is rounded instead: a ReLU before CG-PACT changes nothing

    def set_quantize_activations(self, layer, quantize_activations):
        if self._config["activation_bits"] == 32:
            return  # no range clips instead of the bound
        if type(layer) is _layers.ReLU:
            layer.max_value = None
        elif is_rectified(layer):
            layer.activation = tf.keras.activations.relu

    def get_config(self):
        return dict(self._config)


def is_rectified(layer) -> bool:
    """Return whether a layer ends in a ReLU, or is one."""
    if type(layer) in (_layers.Activation, _layers.ReLU):
        return ceiling_of(layer) is not None
    return type(layer) in KERNELS and ceiling_of(layer.activation) is not None


def refusal(layer, reason: str) -> ValueError:
    """Return the error about a layer that cannot be quantized."""
    return ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) cannot be quantized: {reason}. Expected "
        "Conv2D, DepthwiseConv2D, Conv2DTranspose or Dense with a ReLU or no activation, ReLU, "
        "Activation('relu'), or with residual_bits BatchNormalization, Add, Multiply, Subtract, "
        "AveragePooling2D, GlobalAveragePooling2D or a layer of one function, such as LeakyReLU or "
        "Activation('swish')."
    )


def check_quantizable(layer, signed: bool) -> None:
    """Raise unless a configuration says how to quantize something of this layer."""
    kind = type(layer)
    if signed and kind not in KERNELS and function_of(layer) is not None:
        return
    if kind is _layers.ReLU:
        if not is_rectified(layer):
            raise refusal(layer, "it is no ReLU")
    elif kind in KERNELS or kind is _layers.Activation:
        fine = is_rectified(layer) or (kind in KERNELS and is_final(layer.activation))
        if not fine:
            name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
            raise refusal(layer, f"its activation is {name!r}")
    elif not (signed and (kind in (*LINEAR, *POOLS) or is_bilinear(layer))):
        raise refusal(layer, "no method has a form of it")


def is_final(activation) -> bool:
    """Return whether an activation rounds for itself, or leaves the output to what follows."""
    finals = (None, tf.keras.activations.linear, tf.keras.activations.softmax)
    return activation in finals or isinstance(activation, lq.quantizers.Quantizer)
