"""A float model in terms of the layers that have quantized forms."""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.convert.calls import Calls
from dlqat_tf.convert.overrides import Overrides


def in_standard_layers(
    model: tf.keras.Model, overrides: Overrides
) -> tuple[tf.keras.Model, dict[str, str]]:
    """Return a model that computes the same by layers that have quantized forms, where there are.

    Args:
        model: The float model; its own layers stay where they are such layers.
        overrides: What it keeps float is not taken apart.

    Returns:
        The model, itself where nothing changes; and by name of each layer that stands for another
        one, or for a part of it, the name of that.
    """
    calls = Calls(model, overrides, partial=False)
    if all(call.layer in model.layers for call in calls.every):
        return model, {}
    values = {(call, 0): tensor for call, tensor in zip(calls.inputs, model.inputs, strict=True)}
    for call in calls.every:
        if call.role != "input":
            outputs = call.apply(call.layer, [values[value] for value in call.inputs])
            values |= {(call, i): output for i, output in enumerate(outputs)}
    outputs = tf.nest.pack_sequence_as(model.output, [values[value] for value in calls.outputs])
    standard = tf.keras.Model(model.input, outputs, name=model.name)
    return standard, {made.name: source.name for made, source in calls.sources.items()}
