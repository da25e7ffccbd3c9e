"""The standard layers that one call becomes, while they are made."""

from __future__ import annotations

import inspect

import tensorflow as tf

from dlqat_tf.canonical.functions import function_of
from dlqat_tf.graph import tensors_of

_layers = tf.keras.layers

BACK = "back"  # the part of a sequence made of an image of one row
TO = "to"  # in parts of Reshapes that are called for several shapes


class Part:
    """The model that a call becomes, while it is made.

    Attributes:
        layer: Of the call.
        node: The Keras node of the call.
        inputs: What stands for the tensors that it is called on.
    """

    def __init__(self, node, made: dict):
        self.layer, self.node, self._made = node.layer, node, made
        self.inputs = [
            tf.keras.Input(tensor.shape[1:], name=f"{node.layer.name}_input{i}", dtype=tensor.dtype)
            for i, tensor in enumerate(tensors_of(node))
        ]

    @property
    def arguments(self) -> dict:
        """Arguments of an operator, by name."""
        bound = inspect.signature(self.layer.function).bind(
            *self.node.call_args, **self.node.call_kwargs
        )
        return dict(bound.arguments)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the only output, without the batch."""
        return tuple(self.node.outputs.shape[1:])

    def add(self, kind, tensors, suffix: str = "", weights=(), **config):
        """Call a layer of a kind, which has the name of the source, and a suffix."""
        if "target_shape" in config:  # where one free size is what is left
            sizes = (-1 if size is None else size for size in config["target_shape"])
            config["target_shape"] = tuple(sizes)
            suffix = self._to_shape(suffix, config["target_shape"])
        key = self.layer, suffix
        if key not in self._made:
            name = f"{self.layer.name}_{suffix}" if suffix else self.layer.name
            is_operator = hasattr(self.layer, "symbol")
            dtype = tensors.dtype if is_operator and hasattr(tensors, "dtype") else None
            dtype = dtype or (None if is_operator else self.layer.dtype_policy)
            self._made[key] = kind(**{"dtype": dtype, **config}, name=name)
        made = self._made[key]
        output = made(tensors)
        if made.weights:
            made.set_weights(weights)
        made.trainable = self.layer.trainable
        return output

    def _to_shape(self, suffix: str, shape: tuple[int, ...]) -> str:
        """Return the suffix of a Reshape, another one for each shape that later calls have."""
        made = self._made.get((self.layer, suffix))
        if made is None or made.target_shape == shape:
            return suffix
        return "_".join([suffix, TO, *map(str, shape)])

    def config(self, *names: str) -> dict:
        """Return some of the source's configuration, without what is not the layer's own."""
        config = self.layer.get_config()
        around = ("name", "trainable", "dtype", "batch_input_shape")
        return {name: config[name] for name in names if name not in around}

    def weighted(self, kind, tensors, weights, activation=None, **config):
        """Call a layer with weights, and then its activation where that is no ReLU."""
        if function_of(activation) is None:
            return self.add(kind, tensors, "", weights, activation=activation, **config)
        output = self.add(kind, tensors, "", weights, **config)
        return self.add(_layers.Activation, output, activation.__name__, activation=activation)

    def rows(self) -> list:
        """Return the sequences that come in as images of one row."""
        return [
            self.add(_layers.Reshape, x, f"row{i or ''}", target_shape=(1, *x.shape[1:]))
            for i, x in enumerate(self.inputs)
        ]

    def back(self, row):
        """Return the sequence that an image of one row is."""
        return self.add(_layers.Reshape, row, BACK, target_shape=row.shape[2:])
