"""What a model reads, in the integer network: pixels, what becomes of them, and other values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import IN_TRAINING
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.nodes import Input, Lookup, Node
from dlqat_tf.preprocessing import (
    RAW,
    UNIT,
    ChannelAffine,
    Preprocessing,
    arithmetic,
    evaluated,
    is_unit,
)
from dlqat_tf.quantizers import InputQuantizer

_layers = tf.keras.layers
_OPERATORS = ("TFOpLambda", "SlicingOpLambda")


@dataclass(frozen=True, kw_only=True)
class Prepared(Node):
    """Arithmetic on the pixels of its input, before it is rounded.

    Attributes:
        values: float32 (256, channels), what it makes of each pixel.
        order: The channel of the image that each channel comes from.
    """

    values: np.ndarray
    order: tuple[int, ...]


def input_node(tensor) -> Input:
    """Return the node of an input of a model."""
    layer, shape = tensor.node.layer, tuple(tensor.shape[1:])
    if not 1 <= len(shape) <= 4:
        raise ExportError(
            f"Expected inputs of one to four dimensions without the batch. Received: input "
            f"{layer.name!r} of shape {shape}."
        )
    if None in shape:
        raise ExportError(
            f"Expected inputs of a fixed size: kernels are planned for one. Received: input "
            f"{layer.name!r} of shape {shape}. Say which: size=(height, width)."
        )
    return Input(name=layer.name, shape=shape, preprocessing=preprocessing_before(layer, shape))


def preprocessing_before(layer, shape: tuple[int, ...]) -> Preprocessing | None:
    """Return what a model expects to have been done to pixels, None where it takes other values.

    Its input quantizer says so, or else its form: images are pixels / 255.

    Args:
        layer: An input layer of the model.
        shape: Of one image, or of other values.
    """
    quantizers = input_quantizers(layer)
    if quantizers:
        return quantizers[0].preprocessing
    rescales = _rescales(layer, RAW.of_all_pixels(shape[-1]))
    if len(shape) != 3 and not rescales:
        return None
    return RAW if rescales else UNIT


def input_quantizers(layer) -> list[InputQuantizer]:
    """Return the quantizers of an input layer, behind whatever prepares it."""
    rest, seen, found = [layer], set(), []
    while rest:
        for node in rest.pop().outbound_nodes:
            reader = node.layer
            if isinstance(reader, InputQuantizer):
                found.append(reader)
                continue
            passes = prepares(reader) or isinstance(reader, _layers.BatchNormalization)
            if reader not in seen and (passes or not reader.weights):
                seen.add(reader)
                rest.append(reader)
    return found


def _rescales(layer, pixels: np.ndarray) -> bool:
    """Return whether arithmetic on a layer's output, all 256 pixels, makes pixels / 255 of them."""
    for node in layer.outbound_nodes:
        if isinstance(node.layer, IN_TRAINING):
            values = pixels
        elif prepares(node.layer) and arithmetic(node) is not None:
            values = evaluated(node, pixels)
        else:
            continue
        if is_unit(values) or _rescales(node.layer, values):
            return True
    return False


def prepares(layer) -> bool:
    """Return whether a layer may be arithmetic that prepares an input."""
    known = (_layers.Rescaling, _layers.Normalization, ChannelAffine)
    return type(layer) in known or type(layer).__name__ in _OPERATORS


def prepared(node, source: Input | Prepared, around: dict) -> Prepared:
    """Return what the call of a layer makes of pixels."""
    layer, affine = node.layer, arithmetic(node)
    before = _of(source)
    if affine is None:
        raise ExportError(
            f"Layer {around['name']!r} ({type(layer).__name__}) cannot be exported: it prepares "
            "images by something else than a gain, an offset and an order of the channels. "
            "Prepare them so outside of the model."
        )
    values = evaluated(node, before.values)
    order = tuple(before.order[i] for i in affine.order)
    return Prepared(name=around["name"], inputs=before.inputs, values=values, order=order)


def _of(source: Input | Prepared) -> Prepared:
    if isinstance(source, Prepared):
        return source
    channels = source.shape[-1]
    order = tuple(range(channels))
    if source.preprocessing.reverse_channels:
        order = order[::-1]
    values = source.preprocessing.of_all_pixels(channels)
    return Prepared(name=source.name, inputs=(source.name,), values=values, order=order)


def lookup(quantizer, source: Input | Prepared, activation) -> Lookup:
    """Return the codes that a quantizer makes of all pixels.

    Args:
        quantizer: The Keras layer.
        source: What it reads.
        activation: The node that it would be behind other layers.
    """
    before = _of(source)
    grid = activation.grid
    values = np.asarray(quantizer.call(tf.constant(before.values)), np.float64)
    codes = np.rint(values / float(grid.step)).astype(np.int16)
    return Lookup(
        name=activation.name,
        inputs=before.inputs,
        grid=grid,
        bits=activation.bits,
        values=before.values,
        codes=codes,
        order=before.order,
    )


def resolved(nodes: list[Node]) -> list[Node]:
    """Take out what prepares pixels: it is looked up, or pixels / 255, which are codes.

    Raises:
        ExportError: Something else reads prepared pixels.
    """
    # By name, the input whose codes a node's output are; "" where it has none.
    codes: dict[str, str] = {}
    found: list[Node] = []
    for node in nodes:
        if isinstance(node, Input) and node.preprocessing not in (None, UNIT):
            codes[node.name] = ""
        if isinstance(node, Prepared):
            ordered = node.order == tuple(range(len(node.order)))
            codes[node.name] = node.inputs[0] if is_unit(node.values) and ordered else ""
            continue
        unread = next((name for name in node.inputs if codes.get(name) == ""), None)
        if unread and not isinstance(node, Lookup):
            raise _unrounded(unread)
        if not isinstance(node, Lookup):
            node = replace(node, inputs=tuple(codes.get(name, name) for name in node.inputs))
        found.append(node)
    if isinstance(nodes[-1], Prepared):
        raise _unrounded(nodes[-1].name)
    return found


def _unrounded(name: str) -> ExportError:
    return ExportError(
        f"The pixels of {name!r} are prepared otherwise than by 1 / 255, and no InputQuantizer "
        "alone reads them: files hold codes of 8 bits there. dlqat_tf.quantize puts one behind "
        "them; in a model of your own, put dlqat_tf.InputQuantizer(preprocessing=...) there and "
        "train with it."
    )
