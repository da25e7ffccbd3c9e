"""What TF-MOT's wrappers hold, for whatever reads a model's quantizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf.quantizers import Unwrapped, rounding_with, unwrapped
from dlqat_tf.tfmot.quantizer import LarqQuantizer

_api = tfmot.quantization.keras

tf.keras.utils.get_custom_objects().update(*_api.quantize_scope().custom_objects)


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
        kernel_quantizer = quantizer.larq_quantizer(variables, kernel.shape, wrapper.trainable)
        parts = replace(parts, kernel=kernel, kernel_quantizer=kernel_quantizer)
    for quantizer in wrapper._output_quantizers:
        shape = wrapper.get_output_shape_at(0)
        variables = wrapper._output_quantizer_vars
        output_quantizer = quantizer.larq_quantizer(variables, shape, wrapper.trainable)
        parts = replace(parts, output_quantizer=output_quantizer)
    return parts


@rounding_with.register(_api.QuantizeWrapper)
@contextlib.contextmanager
def _round_with(wrapper, quantizer) -> Iterator[None]:
    def called(values, training, weights):
        return quantizer.call(values, training=training)

    held = wrapper._output_quantizers
    vars(wrapper)["_output_quantizers"] = [called]  # not as an attribute, which Keras would track
    try:
        yield
    finally:
        vars(wrapper)["_output_quantizers"] = held


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
