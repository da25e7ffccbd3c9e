"""Calls of layers in terms of fewer kinds: operators, separable and one-dimensional layers.

Functional models compute with tensors too (``x + y``, ``tf.nn.relu(x)``), which Keras keeps as
layers of a kind of its own. What has a standard layer that computes the same is read as that layer;
so is a separable convolution, as its two, a layer on sequences, as that on images of one row, and
a Lambda layer, as the operators that its function calls.
"""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.canonical.functions import (
    AUGMENTATIONS,
    IN_TRAINING,
    function_of,
    hard_sigmoid,
    hard_swish,
)
from dlqat_tf.canonical.lambdas import operators_of
from dlqat_tf.canonical.layers import (
    BY_VALUE,
    LAYERS,
    by_value,
    is_bilinear,
    is_plain_transposed,
)
from dlqat_tf.canonical.operators import OPERATORS
from dlqat_tf.canonical.part import BACK, TO, Part
from dlqat_tf.graph import reads_mask, tensors_of

__all__ = [
    "AUGMENTATIONS",
    "IN_TRAINING",
    "StandardLayers",
    "function_of",
    "hard_sigmoid",
    "hard_swish",
    "is_bilinear",
    "is_plain_transposed",
]


class StandardLayers:
    """The standard layers that stand for others; one that is called twice becomes the same ones.

    Attributes:
        made: By source layer and part; the part that has the source's name is "".
    """

    def __init__(self):
        self.made: dict[tuple, tf.keras.layers.Layer] = {}
        self._opened: dict[tf.keras.layers.Layer, tf.keras.Model | None] = {}

    def of(self, node, in_rows: bool = False) -> tf.keras.Model | None:
        """Return a model of standard layers that computes what a call computes.

        Args:
            node: The Keras node of the call.
            in_rows: Whether its inputs are sequences made of images of one row: what computes value
                by value then goes on with those images.

        Returns:
            From the call's inputs to its outputs; of a Lambda layer, with the operators that have
            standard layers. None where the layer is a standard one already, or no standard layers
            compute the same.
        """
        if type(node.layer) is tf.keras.layers.Lambda:
            return self._of_lambda(node)
        symbol = getattr(node.layer, "symbol", None)
        if symbol is not None:
            rules = [OPERATORS.get(str(symbol).rsplit(".", 1)[-1])]
        else:
            is_by_value = in_rows and type(node.layer) in BY_VALUE
            rules = [LAYERS.get(type(node.layer)), by_value if is_by_value else None]
        rules = [rule for rule in rules if rule is not None]
        if not rules or getattr(node.layer, "data_format", "channels_last") != "channels_last":
            return None
        if reads_mask(node):
            return None
        expected = tf.nest.flatten(node.outputs)
        if not all(isinstance(getattr(x, "shape", None), tf.TensorShape) for x in expected):
            return None
        part = Part(node, self.made)
        made = (rule(part) for rule in rules)
        outputs = next((each for each in made if each is not None), None)
        if outputs is None:
            return None
        outputs = outputs if isinstance(outputs, list) else [outputs]
        if [tuple(x.shape) for x in outputs] != [tuple(x.shape) for x in expected]:
            return None
        return tf.keras.Model(part.inputs, outputs)

    def _of_lambda(self, node) -> tf.keras.Model | None:
        """Return the operators of a Lambda layer.

        None for all of its calls where an operator has no standard layers, a call reads a mask, or
        they are on tensors of several shapes: what stays and what is made have one name.
        """
        layer = node.layer
        if layer not in self._opened:
            calls = layer._inbound_nodes
            shapes = {tuple(tuple(x.shape) for x in tensors_of(call)) for call in calls}
            is_one = len(shapes) == 1 and not any(map(reads_mask, calls))
            model = self._in_operators(Part(node, self.made)) if is_one else None
            if model is not None:
                self.made[layer, ""] = next(x for x in model.layers if x.name == layer.name)
            self._opened[layer] = model
        return self._opened[layer]

    def _in_operators(self, part: Part) -> tf.keras.Model | None:
        outputs = operators_of(part.node, part.inputs)
        if outputs is None or any(output is x for output in outputs for x in part.inputs):
            return None
        model = tf.keras.Model(part.inputs, outputs)
        calls = (call for calls in model._nodes_by_depth.values() for call in calls)
        return model if all(call.is_input or self.of(call) for call in calls) else None

    def makes_row(self, layer) -> bool:
        """Return whether a layer was made to make an image of one row of a sequence."""
        return any(layer is each for (_, part), each in self.made.items() if part[:3] == "row")

    def makes_sequence(self, layer) -> bool:
        """Return whether a layer was made to make a sequence of an image of one row."""
        return any(
            layer is each
            for (_, part), each in self.made.items()
            if part == BACK or part.startswith(f"{BACK}_{TO}_")
        )
