"""Puts a softmax or sigmoid at the end of a model, or takes it off.

Losses take logits, so training leaves that last step out where it can; files have it by choice.
"""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.endings import ending_of
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.graph import copied
from dlqat_tf.heads import Head
from dlqat_tf.quantizers import unwrapped

_layers = tf.keras.layers
Outputs = str | dict[str, str] | None


def wanted(model: tf.keras.Model, outputs: Outputs) -> list[str]:
    """Return the ending that each output should have.

    Args:
        model: Functional or Sequential model.
        outputs: "logits", "probabilities", or a dictionary of these by output name; None, or no
            entry, for what the model returns.

    Raises:
        ExportError: It is not as above.
    """
    names = model.output_names
    by_name = outputs if isinstance(outputs, dict) else dict.fromkeys(names, outputs)
    known = (None, "logits", "probabilities")
    if set(by_name) - set(names) or any(each not in known for each in by_name.values()):
        raise ExportError(
            'Expected outputs to be "logits", "probabilities", or a dictionary of these by output '
            f"name, of {', '.join(names)}. Received: outputs={outputs!r}."
        )
    found = []
    for name, tensor in zip(names, model.outputs, strict=True):
        ending, choice = ending_of(tensor), by_name.get(name)
        if choice == "probabilities" and not ending:
            ending = "softmax" if tensor.shape[-1] > 1 else "sigmoid"
        found.append("" if choice == "logits" else ending)
    return found


def with_endings(model: tf.keras.Model, endings: list[str]) -> tf.keras.Model:
    """Return a model whose outputs have these endings, the model itself where they do already.

    Args:
        model: Functional or Sequential model.
        endings: "softmax", "sigmoid" or "", by output.

    Raises:
        ExportError: An ending cannot be taken off, or the output is no logits.
    """
    present = [ending_of(tensor) for tensor in model.outputs]
    pairs = list(zip(model.outputs, present, endings, strict=True))
    off = [tensor for tensor, has, should in pairs if has and not should]
    if off:
        model = _without(model, off)
    if not any(should and not has for _, has, should in pairs):
        return model
    outputs = []
    for name, tensor, (_, has, should) in zip(
        model.output_names, model.outputs, pairs, strict=True
    ):
        if should and not has:
            _check_logits(name, tensor)
            ending = _layers.Activation(should, name=f"{name}_probabilities", dtype="float32")
            tensor = ending(tensor)
        outputs.append(tensor)
    return tf.keras.Model(
        model.input, tf.nest.pack_sequence_as(model.output, outputs), name=model.name
    )


def _check_logits(name: str, tensor) -> None:
    layer = tensor.node.layer
    if isinstance(layer, Head) and layer.gives == "cosines":
        raise ExportError(
            f"The output {name!r} is the cosines of {type(layer).__name__}, and files hold the "
            "equivalent dense layer, whose arg-max is the same and whose softmax is not: export "
            'with outputs="logits", or train a "linear" or "gml" head.'
        )


def _without(model: tf.keras.Model, tensors: list) -> tf.keras.Model:
    """Return a copy of a model whose last layers are linear."""
    layers = {tensor.node.layer.name: tensor.node.layer for tensor in tensors}
    for name, layer in layers.items():
        if any(node.layer in model.layers for node in layer.outbound_nodes):
            raise ExportError(
                f"Layers of the model read what {name!r} makes of logits, so it stays: export with "
                'outputs="probabilities".'
            )
        if hasattr(layer, "_nodes_by_depth") or unwrapped(layer).layer is not layer:
            raise ExportError(
                f"The softmax or sigmoid at the end of {name!r} ({type(layer).__name__}) cannot be "
                "taken off: build that with activation=None."
            )

    def change(config: dict) -> dict:
        made = []
        for each in config["layers"]:
            settings = dict(each["config"])
            if settings["name"] in layers:
                if each["class_name"] == "Softmax":
                    each = {**each, "class_name": "Activation"}
                    settings.pop("axis")
                settings["activation"] = "linear"
            made.append({**each, "config": settings})
        without = {key: value for key, value in config.items() if key != "build_input_shape"}
        return {**without, "layers": made}

    return copied(model, change)
