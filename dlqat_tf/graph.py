"""Walks through the layers of functional and Sequential Keras models."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from dlqat_tf._compat import is_keras_3, with_lambdas


def check_graph(model: tf.keras.Model, error: type[ValueError] = ValueError) -> None:
    """Raise an error unless the model knows how its layers are connected, and has their weights."""
    if is_keras_3(model):
        raise error(
            f"Expected a model of Keras 2. Received: {type(model).__name__} of Keras 3 (import "
            "keras). Build it with tf.keras, which is Keras 2 once dlqat_tf is imported, and copy "
            "its weights: new.set_weights(old.get_weights())."
        )
    if isinstance(model, tf.keras.Model) and hasattr(model, "_nodes_by_depth"):
        _check_weights(model, error)
        return
    if isinstance(model, tf.keras.Sequential):
        advice = "Say the shape of one image: model.build((None, height, width, channels))."
    elif isinstance(model, tf.keras.Model):
        advice = (
            "Subclassed models have no list of layers: rebuild the network as "
            "tf.keras.Model(inputs, model.call(inputs)), inputs being tf.keras.Input(shape). Where "
            "its call uses Keras layers and TensorFlow operators, that has the same layers and "
            "weights."
        )
    elif isinstance(model, tf.keras.layers.Layer):
        advice = "Put the layer into a model: tf.keras.Model(inputs, layer(inputs))."
    elif isinstance(model, tuple) and model and isinstance(model[0], tf.keras.Model):
        advice = "dlqat_tf.quantize returns (model, report): pass the model."
    else:
        advice = "Load a file with tf.keras.models.load_model(path)."
    raise error(
        "Expected a functional or Sequential Keras model with a known input shape. Received: "
        f"{type(model).__name__}. {advice}"
    )


def _check_weights(model: tf.keras.Model, error: type[ValueError]) -> None:
    """Raise an error where operators compute with variables that are no weights of the model."""
    of_keras_3: set[str] = set()
    others: set[str] = set()
    for call in _calls(model):
        for value in tf.nest.flatten([call.call_args, call.call_kwargs]):
            if is_keras_3(value):
                of_keras_3.add(getattr(value, "path", "").rpartition("/")[0] or call.layer.name)
            elif isinstance(value, tf.Variable):
                others.add(call.layer.name)
    if of_keras_3:
        raise error(
            f"Expected layers of Keras 2. Received: {_some(of_keras_3)} of Keras 3 (import keras), "
            "called on tensors of Keras 2, so that their weights are none of the model's, which "
            "nothing trains or saves. Build them with tf.keras.layers, which is Keras 2 once "
            "dlqat_tf is imported; whole networks are in tf.keras.applications."
        )
    if others:
        raise error(
            f"Expected weights of layers. Received: a tf.Variable in {_some(others)}, which is no "
            "weight of the model, so that nothing trains or saves it. Give it to a layer of your "
            "own, by add_weight, or compute with its value: variable.numpy()."
        )


def _calls(model: tf.keras.Model) -> Iterator:
    """Return the Keras nodes of all calls in a model, those in nested models too."""
    for call in (call for calls in model._nodes_by_depth.values() for call in calls):
        yield call
        if hasattr(call.layer, "_nodes_by_depth"):
            yield from _calls(call.layer)


def _some(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def leaves(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """Return the layers of a model, those of nested models in their place."""
    return (layer for _, layer in named_leaves(model))


def named_leaves(
    model: tf.keras.Model, prefix: str = ""
) -> Iterator[tuple[str, tf.keras.layers.Layer]]:
    """Return the layers likewise, each with its name, after those of the nested models around it.

    Names are those of :func:`dlqat_tf.summary`: ``body/conv`` is the layer ``conv`` in ``body``.

    Raises:
        ValueError: It is no Keras model.
    """
    if not isinstance(model, tf.keras.Model):
        raise ValueError(
            f"Expected a Keras model. Received: {type(model).__name__}. Load a file with "
            "tf.keras.models.load_model(path)."
        )
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            yield from named_leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def follow(model: tf.keras.Model, sources: list, visit: Callable) -> list:
    """Return what becomes of the inputs on their way through a model's layers.

    Args:
        model: Functional or Sequential model.
        sources: What stands for each input.
        visit: Given the Keras node of a layer's call and what stands for each of its inputs,
            returns a list of what stands for each output. Called in topological order, without
            what leads to no output, as :meth:`add_loss` and :meth:`add_metric` do.

    Returns:
        What stands for each output.
    """
    known = {id(tensor): source for tensor, source in zip(model.inputs, sources, strict=True)}
    computing = _leading_to_outputs(model)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        # The calls of one layer in their order, so that a saved model gives the same names.
        for call in sorted(
            model._nodes_by_depth[depth], key=lambda call: call.layer._inbound_nodes.index(call)
        ):
            if call in computing and not call.is_input:
                inputs = [known[id(tensor)] for tensor in tensors_of(call)]
                outputs = zip(tf.nest.flatten(call.outputs), visit(call, inputs), strict=True)
                known |= {id(tensor): output for tensor, output in outputs}
    return [known[id(tensor)] for tensor in model.outputs]


def _leading_to_outputs(model: tf.keras.Model) -> set:
    """Return the Keras nodes of the calls that the outputs are computed by."""
    found: set = set()
    rest = [tensor.node for tensor in model.outputs]
    inputs = {id(tensor) for tensor in model.inputs}
    while rest:
        call = rest.pop()
        if call not in found:
            found.add(call)
            rest += [each.node for each in tensors_of(call) if id(each) not in inputs]
    return found


def tensors_of(call) -> list:
    """Return the tensors that a layer is called on, for a model in the order of its inputs."""
    if hasattr(call.layer, "_nodes_by_depth") and isinstance(call.call_args[0], dict):
        return call.layer._flatten_to_reference_inputs(call.call_args[0])
    return tf.nest.flatten(call.keras_inputs)


def reads_mask(call) -> bool:
    """Return whether a layer's call reads a mask, which a layer before it made."""
    masks = (getattr(tensor, "_keras_mask", None) for tensor in tensors_of(call))
    return call.layer._expects_mask_arg and any(mask is not None for mask in masks)


def apply(call, layer, tensors: list, **keywords) -> list:
    """Call ``layer`` on other tensors, as a call of a graph was made.

    Args:
        call: The Keras node of the call.
        layer: Its layer, or one in its place.
        tensors: In the place of those of :func:`tensors_of`.
        keywords: Further arguments.

    Returns:
        The outputs.
    """
    by_id = defaultdict(list)
    for source, tensor in zip(tensors_of(call), tensors, strict=True):
        by_id[str(id(source))].append(tensor)
    arguments, own = call.map_arguments(by_id)
    if type(layer).__name__ == "SlicingOpLambda":
        rank = tensors[0].shape.rank
        arguments = [_in_full(each, rank) for each in arguments]
        own = {name: _in_full(each, rank) for name, each in own.items()}
    return tf.nest.flatten(layer(*arguments, **{**own, **keywords}))


def _in_full(argument, rank: int):
    """Return a slice with every dimension in place of ``...``, which Keras cannot save."""
    if not isinstance(argument, (list, tuple)) or not any(each is ... for each in argument):
        return argument
    place = [each is ... for each in argument].index(True)
    taken = sum(each is not None for each in argument) - 1  # None is a new dimension
    every = [dict.fromkeys(("start", "stop", "step"))] * (rank - taken)  # as Keras writes slices
    return (*argument[:place], *every, *argument[place + 1 :])


def copied(model: tf.keras.Model, change: Callable[[dict], dict]) -> tf.keras.Model:
    """Return a copy of a functional or Sequential model, its configuration changed on the way.

    Of a subclass, as those with a ``train_step``, it has the layers alone.
    """
    plain = tf.keras.Model(model.input, model.output, name=model.name)
    if type(model) not in (tf.keras.Sequential, type(plain)):
        model = plain  # whose configuration lists the layers, and whose weights are theirs
    kind = tf.keras.Sequential if isinstance(model, tf.keras.Sequential) else tf.keras.Model
    layers = [each for each in model.submodules if isinstance(each, tf.keras.layers.Layer)]
    classes = _classes_of(layers)
    config = change(model.get_config())
    lambdas = [each for each in layers if type(each) is tf.keras.layers.Lambda]
    if lambdas:
        classes["Lambda"], config = _with_functions_of(lambdas), _by_registered_name(config)
    # Functions in Lambda layers are the model's own, so nothing unsafe comes in with them.
    with tf.keras.utils.custom_object_scope(classes), with_lambdas():
        try:
            copy = kind.from_config(config)
        except TypeError as error:  # a layer that does not take what its get_config gives
            reason = str(error).strip().splitlines()[-1].removeprefix("Exception encountered: ")
            raise ValueError(
                f"A layer of {model.name!r} cannot be made again from its settings ({reason}), as "
                "Keras does to load a model: let its get_config give what its __init__ takes."
            ) from error
    copy.set_weights(model.get_weights())
    refresh(copy)
    return copy


def can_be_made_again(layer: tf.keras.layers.Layer) -> bool:
    """Return whether a layer takes what its configuration gives, as loading a model needs it to.

    Its name too, by which files and their proof know it. Keras's own get_config leaves out the name
    of a layer whose ``__init__`` takes neither ``name`` nor ``**kwargs``, of that name.
    """
    every = [layer, *(each for each in layer.submodules if isinstance(each, tf.keras.layers.Layer))]
    with tf.keras.utils.custom_object_scope(_classes_of(every)), with_lambdas():
        try:
            made = tf.keras.layers.deserialize(tf.keras.layers.serialize(layer))
        except (NotImplementedError, TypeError):
            return False
    return made.name == layer.name


def spreads_tensors(layer: tf.keras.layers.Layer) -> bool:
    """Return whether a layer is an operator like ``tf.einsum``, whose calls Keras cannot load.

    Of any number of tensors as arguments of their own, Keras saves none.
    """
    if not hasattr(layer, "symbol"):
        return False
    parameters = inspect.signature(layer.function).parameters.values()
    return any(each.kind is each.VAR_POSITIONAL for each in parameters)


def _classes_of(layers: list[tf.keras.layers.Layer]) -> dict[str, Any]:
    """Return classes by name, as Keras finds them: users need not have registered theirs.

    Nor functions in the place of quantizers, of which Larq finds the classes of their names.
    """
    classes: dict[str, Any] = {type(each).__name__: type(each) for each in layers}
    for layer in layers:
        for name in ("input_quantizer", "kernel_quantizer", "depthwise_quantizer"):
            if inspect.isroutine(quantizer := getattr(layer, name, None)):
                classes[quantizer.__name__] = quantizer
    return classes


def _with_functions_of(lambdas: list[tf.keras.layers.Lambda]) -> type:
    """Return a class that makes Lambda layers of the functions that others of their names have.

    Settings hold the code of a function, and not what it calls by the names around it.
    """
    counts = Counter(each.name for each in lambdas)
    functions = {each.name: each.function for each in lambdas if counts[each.name] == 1}

    class Lambda(tf.keras.layers.Lambda):
        @classmethod
        def from_config(cls, config, custom_objects=None):
            layer = tf.keras.layers.Lambda.from_config(config, custom_objects)
            if layer.name in functions:
                layer.function = functions[layer.name]
            return layer

    return Lambda


def _by_registered_name(config):
    """Return a configuration whose Lambda layers are not found among Keras's own classes first."""
    if isinstance(config, dict):
        config = {key: _by_registered_name(value) for key, value in config.items()}
        is_layer = config.get("class_name") == "Lambda" and "config" in config
        return config | {"registered_name": "Lambda"} if is_layer else config
    if isinstance(config, (list, tuple)):
        return type(config)(_by_registered_name(each) for each in config)
    return config


def refresh(model: tf.keras.Model) -> None:
    """Let a model whose weights were set compute with them: Normalization layers keep others."""
    norms = [x for x in model.submodules if isinstance(x, tf.keras.layers.Normalization)]
    for norm in norms:
        norm.finalize_state()
    if norms:  # what they keep is a constant of functions that were compiled before
        model.train_function = model.test_function = model.predict_function = None


def training_of(call, around: bool | None = None) -> bool | None:
    """Return the ``training`` of a layer's call: its own, or that of the model call around it.

    None stands for the mode that the whole model runs in.
    """
    spec, arguments = call.layer._call_spec, (call.call_args, call.call_kwargs)
    if spec.arg_was_passed("training", *arguments, inputs_in_args=True):
        own = spec.get_arg_value("training", *arguments, inputs_in_args=True)
        return around if own is None else bool(own)
    return around


def unique(name: str, taken) -> str:
    """Return the name, or the first of name_2, name_3, ... that is not taken."""
    numbered = (f"{name}_{count}" for count in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)
