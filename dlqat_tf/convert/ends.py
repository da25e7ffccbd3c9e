"""Which outputs become heads, and the labels for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dlqat_tf.convert.kinds import activation_name, is_linear, is_softmax
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.models.resnet import HEADS

_layers = tf.keras.layers


class End(NamedTuple):
    """A layer that becomes a head: its name in ``HEADS``, and the number of the output."""

    kind: str
    output: int


def kinds_of(head, names: list[str]) -> list[str | None]:
    """Return the head of each output, None for those that stay as they are.

    Args:
        head: As in :func:`dlqat_tf.quantize`.
        names: Of the outputs.

    Raises:
        ConversionError: It is not as there.
    """
    by_name = head if isinstance(head, dict) else dict.fromkeys(names, head)
    known = (None, *HEADS)
    unknown = [kind for kind in by_name.values() if kind not in known]
    if unknown:
        raise ConversionError(
            f"Expected head to be one of {', '.join(HEADS)}, or None. Received: head={head!r}."
        )
    if set(by_name) - set(names):
        raise ConversionError(
            f"Expected heads by output name, of {', '.join(names)}. Received: "
            f"{', '.join(map(repr, by_name))}."
        )
    if len(names) > 1 and isinstance(head, str):
        example = ", ".join([f"{names[0]!r}: {head!r}", *(f"{name!r}: None" for name in names[1:])])
        raise ConversionError(
            f"Expected a model with one output, the class scores, for head={head!r}. Received: "
            f"{len(names)}, {', '.join(names)}. Say which of them are class scores, head="
            f"{{{example}}}, or pass head=None to keep them all as they are."
        )
    return [by_name.get(name) for name in names]


def find_end(network, output: int, kind: str) -> tuple[object, set]:
    """Return the call that becomes the head of an output, and those that are dropped after it.

    Raises:
        ConversionError: It is no dense layer of class scores.
    """
    call, dropped = network.outputs[output][0], set()
    while call.role == "softmax" or (
        call.role == "moving" and type(call.layer) is _layers.Activation
    ):
        dropped.add(call)
        call = call.inputs[0][0]
    if network.overrides.of(call.name) == "float":
        return None, set()
    layer = call.layer
    if (
        type(layer) is not _layers.Dense
        or len(network.of[layer]) > 1
        or len(call.node.outputs.shape) != 2
        or not (is_linear(layer.activation) or is_softmax(layer.activation))
    ):
        activation = getattr(layer, "activation", None)
        ending = "" if is_linear(activation) else f", {activation_name(activation)}"
        raise ConversionError(
            "Expected a model that ends in a Dense layer of class scores, with or without a "
            f"softmax, for head={kind!r} to replace. Received: a model that ends in "
            f"{call.name!r} ({type(layer).__name__}{ending}). Pass head=None to keep its "
            "output."
        )
    if layer.units == 1:
        raise ConversionError(
            f"Expected at least two class scores for head={kind!r}. Received: "
            f"{call.name!r} (Dense) of one unit. Pass head=None to keep its one score, or end "
            "the float model in a Dense of two classes."
        )
    readers = [reader.name for reader in call.readers if reader not in dropped]
    if readers:
        raise ConversionError(
            f"Expected class scores that nothing else reads, for head={kind!r} to replace. "
            f"Received: {call.name!r}, which {', '.join(map(repr, readers))} reads. Pass head=None "
            "to keep its output."
        )
    return call, dropped


def labels_by_output(labels, names: list[str], count: int) -> list:
    """Return the labels of each output, None for those without.

    Args:
        labels: As in :func:`dlqat_tf.quantize`.
        names: Of the outputs.
        count: How many images there are.

    Raises:
        ConversionError: They are not as there.
    """
    if labels is None:
        return [None] * len(names)
    if isinstance(labels, dict):
        if not set(labels) <= set(names):
            raise ConversionError(
                f"Expected labels by output name, of {', '.join(names)}. Received: labels for "
                f"{', '.join(map(str, labels))}."
            )
        return [labels.get(name) for name in names]
    if len(names) == 1:
        return [classes_of(labels, count)]
    if not isinstance(labels, (list, tuple)) or len(labels) != len(names):
        raise ConversionError(
            f"Expected labels of each output, {', '.join(names)}, as a list (None for those "
            f"without) or a dict by name. Received: {type(labels).__name__}."
        )
    return list(labels)


def classes_of(labels, count: int) -> np.ndarray:
    """Return labels as an array of one integer per image.

    Raises:
        ConversionError: They are none.
    """
    labels = np.asarray(labels)
    is_integer = np.issubdtype(labels.dtype, np.integer)
    if labels.shape not in ((count,), (count, 1)) or not is_integer:
        raise ConversionError(
            f"Expected one integer class per image, shape ({count},). Received: "
            f"{labels.dtype} of shape {labels.shape}."
        )
    return labels.ravel()
