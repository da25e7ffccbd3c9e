"""Lambda layers as the operators that their functions call."""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf._compat import copies_called
from dlqat_tf.graph import apply, copied, follow, spreads_tensors, tensors_of, unique

_Lambda = tf.keras.layers.Lambda


def without_lambdas(model: tf.keras.Model) -> tf.keras.Model:
    """Return a model, or a copy with the operators that Lambda layers call in their place.

    Operators have settings, which are saved and read and computed like those of other layers; what
    a Lambda layer holds is code. One stays where its function computes with something else than
    TensorFlow's operators, and at the end of the model, whose outputs it names.

    Args:
        model: Functional or Sequential model.
    """
    if not any(type(each) is _Lambda for each in model.submodules):
        return model
    copy = copied(model, lambda config: config)  # the source's own layers are called no more
    return copied(_opened(copy, {}), lambda config: config)


def _opened(model: tf.keras.Model, made: dict) -> tf.keras.Model:
    """Return a model of the same layers, its Lambda layers and those of nested models opened."""
    operators: list[tf.keras.layers.Layer] = []
    kept: set[tf.keras.layers.Layer] = set()

    def visit(call, tensors: list) -> list:
        layer = call.layer
        if hasattr(layer, "_nodes_by_depth"):
            if layer not in made:
                made[layer] = _opened(layer, made)
            return apply(call, made[layer], tensors)
        if type(layer) is _Lambda and not _ends(call, model):
            outputs = operators_of(call, tensors)
            if outputs is not None:
                operators.extend(_between(outputs, tensors))
                return outputs
        kept.add(layer)
        return apply(call, layer, tensors)

    if not any(type(each) is _Lambda for each in model.submodules):
        return model
    outputs = follow(model, model.inputs, visit)
    names = {x.name for x in model.layers if type(x) is not _Lambda or x in kept}
    for operator in operators:  # layers may be called twice, and have names of others' operators
        operator._name = unique(operator.name, names)
        names.add(operator.name)
    return tf.keras.Model(model.inputs, outputs, name=model.name)


def _ends(call, model: tf.keras.Model) -> bool:
    made = tf.nest.flatten(call.outputs)
    return any(output is each for output in model.outputs for each in made)


def operators_of(call, tensors: list) -> list | None:
    """Return what a Lambda layer's function makes of Keras tensors; None where Keras saves none.

    The operator that makes the first output is named like the layer; the others have names that
    Keras gives to no layer. Of other layers that the function calls there are copies.
    """
    layer = call.layer
    if layer.weights or layer._fn_expects_mask_arg or layer._fn_expects_training_arg:
        return None
    if layer.compute_dtype != "float32":  # to which the layer casts
        return None

    def function(*arguments, **keywords):
        return layer.function(*arguments, **{**(layer.arguments or {}), **keywords})

    try:
        with copies_called():
            outputs = apply(call, function, tensors)
    except Exception:  # whatever code raises that wants values, not tensors
        return None
    expected = [tuple(each.shape) for each in tf.nest.flatten(call.outputs)]
    if not all(map(tf.keras.backend.is_keras_tensor, outputs)):
        return None
    if [tuple(each.shape) for each in outputs] != expected:
        return None
    operators = _between(outputs, tensors)
    if any(map(spreads_tensors, operators)):
        return None
    for i, operator in enumerate(operators):
        operator._name = f"{layer.name}_op{i}" if i else layer.name
    return outputs


def _between(outputs: list, inputs: list) -> list[tf.keras.layers.Layer]:
    """Return the layers that make outputs of inputs, from the first output back."""
    known, rest, found = {id(each) for each in inputs}, list(outputs), []
    while rest:
        tensor = rest.pop(0)
        if id(tensor) not in known:
            known.add(id(tensor))
            rest += tensors_of(tensor.node)
            found += [tensor.node.layer] if tensor.node.layer not in found else []
    return found
