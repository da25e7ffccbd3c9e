"""Calls of layers in terms of fewer kinds: operators, separable and one-dimensional layers.

Functional models compute with tensors too (``x + y``, ``tf.nn.relu(x)``), which Keras keeps as
layers of a kind of its own. What has a standard layer that computes the same is read as that layer;
so is a separable convolution, as its two, and a layer on sequences, as that on images of one row.
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
from dlqat_tf.canonical.layers import (
    BY_VALUE,
    LAYERS,
    by_value,
    is_bilinear,
    is_plain_transposed,
)
from dlqat_tf.canonical.operators import OPERATORS
from dlqat_tf.canonical.part import BACK, Part
from dlqat_tf.graph import reads_mask

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

    def of(self, node, in_rows: bool = False) -> tf.keras.Model | None:
        """Return a model of standard layers that computes what a call computes.

        Args:
            node: The Keras node of the call.
            in_rows: Whether its inputs are sequences made of images of one row: what computes value
                by value then goes on with those images.

        Returns:
            From the call's inputs to its outputs. None where the layer is a standard one already,
            or no standard layers compute the same.
        """
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

    def makes_row(self, layer) -> bool:
        """Return whether a layer was made to make an image of one row of a sequence."""
        return any(layer is each for (_, part), each in self.made.items() if part[:3] == "row")

    def makes_sequence(self, layer) -> bool:
        """Return whether a layer was made to make a sequence of an image of one row."""
        return any(layer is each for (_, part), each in self.made.items() if part == BACK)
