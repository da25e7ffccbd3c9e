"""The source as a list of calls, nested models flattened."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field, replace

import tensorflow as tf

from dlqat_tf._compat import in_inference
from dlqat_tf.canonical import StandardLayers
from dlqat_tf.convert import inputs as taking
from dlqat_tf.convert.gates import with_gates
from dlqat_tf.convert.kinds import role_of
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.graph import apply, follow, training_of, unique
from dlqat_tf.preprocessing import Affine

Value = tuple["Call", int]  # an output of a call


@dataclass(eq=False, repr=False)
class Call:
    """One call of a source layer.

    Attributes:
        training: What it, or the call of a model around it, was told; None: what the whole model is
            told.
        trainable: Whether neither the layer nor a model around it is frozen.
        affine: The arithmetic that it prepares an input by, of the role "rescaling"; or None.
    """

    layer: tf.keras.layers.Layer
    name: str
    role: str
    node: object = None
    inputs: list[Value] = field(default_factory=list)
    training: bool | None = None
    trainable: bool = True
    readers: list[Call] = field(default_factory=list)
    affine: Affine | None = None

    @property
    def mode(self) -> dict[str, bool]:
        """Arguments that run a layer in this call's mode."""
        return {} if self.training is None else {"training": self.training}

    def apply(self, layer, tensors: list):
        """Call ``layer`` as the source was called, on other tensors."""
        told = layer._expects_training_arg and training_of(self.node) is None
        in_model = tf.keras.backend.is_keras_tensor(tensors[0])
        with contextlib.nullcontext() if in_model else in_inference():
            return apply(self.node, layer, tensors, **(self.mode if told else {}))


@dataclass(frozen=True)
class _Around:
    """What the calls of a model pass on to the layers in it."""

    name: str = ""
    training: bool | None = None
    trainable: bool = True


class Calls:
    """The calls of a model's layers.

    Attributes:
        every: In the order of computation.
        inputs: Those that stand for the model's inputs.
        outputs: What the model returns.
        of: By layer.
        names: Of each layer.

    Args:
        model: The source.
        overrides: What it keeps float is not taken apart.
        partial: Whether to leave layers as they are, not in terms of standard ones.
    """

    def __init__(self, model, overrides: Overrides, partial: bool):
        self.every: list[Call] = []
        self.names: dict[tf.keras.layers.Layer, str] = {}
        self._overrides = overrides
        self._standard = None if partial else StandardLayers()
        sources = []
        for tensor in model.inputs:
            layer = tensor.node.layer
            self.every.append(Call(layer, self._name(layer, _Around()), "input"))
            sources.append((self.every[-1], 0))
        self.inputs = [call for call, _ in sources]
        self.outputs = self._flatten(model, sources, _Around(trainable=model.trainable))
        if self._standard is not None:
            self._leave_out_detours()
            self.every = with_gates(self.every, self.outputs)
            self.names |= {call.layer: call.name for call in self.every}
        self.of: dict[tf.keras.layers.Layer, list[Call]] = defaultdict(list)
        for call in self.every:
            self.of[call.layer].append(call)
            for source, _ in call.inputs:
                source.readers.append(call)

    @property
    def sources(self) -> dict[tf.keras.layers.Layer, tf.keras.layers.Layer]:
        """By standard layer that stands for another one, or for a part of it, that layer."""
        made = {} if self._standard is None else self._standard.made
        direct = {layer: source for (source, _), layer in made.items()}
        found = {}
        for layer, source in direct.items():
            while source in direct:  # a part that was taken apart in turn
                source = direct[source]
            found[layer] = source
        return found

    def _name(self, layer, around: _Around) -> str:
        if layer not in self.names:
            taken, parent = self.names.values(), around.name
            name = f"{parent}_{layer.name}" if parent and layer.name in taken else layer.name
            self.names[layer] = unique(name, taken)
        return self.names[layer]

    def _flatten(self, model, sources: list[Value], around: _Around) -> list[Value]:
        return follow(model, sources, lambda node, inputs: self._read(node, inputs, around))

    def _read(self, node, inputs: list[Value], around: _Around) -> list[Value]:
        layer, name = node.layer, self._name(node.layer, around)
        training = training_of(node, around.training)
        trainable = layer.trainable and around.trainable
        if hasattr(layer, "_nodes_by_depth") and self._overrides.of(name) != "float":
            return self._flatten(layer, inputs, _Around(name, training, trainable))
        call = Call(layer, name, role_of(layer), node, inputs, training, trainable)
        call.affine = taking.arithmetic_of(call)
        part = self._in_standard_layers(call)
        if part is not None:
            return self._flatten(part, inputs, replace(around, training=training))
        if call.affine is not None:
            call.role = "rescaling"
        if self._standard is not None and self._is_named_as_made(layer):
            call.name = self.names[layer] = unique(name, self.names.values())
        self.every.append(call)
        return [(call, i) for i in range(len(tf.nest.flatten(node.outputs)))]

    def _in_standard_layers(self, call: Call):
        """Return the standard layers that compute what a call does, as a model, or None."""
        is_kept = call.affine is not None or self._overrides.of(call.name) == "float"
        if self._standard is None or is_kept:
            return None
        in_rows = all(self._standard.makes_sequence(source.layer) for source, _ in call.inputs)
        part = self._standard.of(call.node, in_rows)
        if part is not None:
            is_called = any(each.layer is call.layer for each in self.every)
            name = unique(call.name, self.names.values()) if is_called else call.name
            self.names.setdefault(self._standard.made[call.layer, ""], name)
        return part

    def _is_named_as_made(self, layer) -> bool:
        """Return whether a layer has the name of what was made of it for other calls.

        As of an activation that sequences made of images of one row share with vectors.
        """
        made = self._standard.made.get((layer, ""))
        return self.names.get(made) == self.names[layer]

    def _leave_out_detours(self) -> None:
        """Leave out sequences made of images of one row, where only such images are made of them.

        What computes on sequences then reads the image that it would make again.
        """
        standard = self._standard
        for call in self.every:
            for i, (source, _) in enumerate(call.inputs):
                if standard.makes_row(source.layer):
                    (before, _) = source.inputs[0]
                    if standard.makes_sequence(before.layer):
                        call.inputs[i] = before.inputs[0]
        made = (standard.makes_sequence, standard.makes_row)
        for detour in made[::-1]:
            used = {source for call in self.every for source, _ in call.inputs}
            used |= {source for source, _ in self.outputs}
            self.every = [each for each in self.every if each in used or not detour(each.layer)]


def take(values: dict[Value, object], call: Call) -> list:
    """Return the inputs of a call, and forget those that no later one reads."""
    inputs = [values[value] for value in call.inputs]
    for source, i in call.inputs:
        if source.readers[-1] is call:
            values.pop((source, i), None)
    return inputs
