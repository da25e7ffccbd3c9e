"""Folds batch norms into convolutions, and brings roundings to what they round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Affine,
    Concatenate,
    Convolution,
    Crop,
    Input,
    Levels,
    Maximum,
    MaxPool,
    Minimum,
    Node,
    ReLU,
    Reshape,
    Transpose,
    Upsample,
    Weighted,
)
from dlqat_tf.graph import unique

# What moves values, or chooses among them, and changes none, so that it may be rounded before.
_MOVING = (Concatenate, Crop, Maximum, MaxPool, Minimum, Reshape, Transpose, Upsample)


@dataclass(frozen=True, kw_only=True)
class Scaled(Node):
    """A batch norm (or Rescaling) before it is folded: input * gain + offset, per channel."""

    layer: str  # the Keras layer, which is the name too unless it is called more than once
    gain: np.ndarray
    offset: np.ndarray
    moments: Moments | None = None  # of what a batch norm gives, in training
    is_free: bool = False  # whether the layer has variables that move both
    is_fixed: bool = False  # whether it has none that move any

    @property
    def sources(self) -> tuple[str, ...]:
        """The layer where its offset can move, so that of a file is in the snapped model too."""
        return () if self.is_fixed else (self.layer,)


def _is_measured(node: Node, nodes: list[Node]) -> bool:
    """Return whether a node gives the float values of an input, moved or scaled."""
    if isinstance(node, (Affine, Reshape)):
        return _is_measured(next(each for each in nodes if each.name == node.inputs[0]), nodes)
    return isinstance(node, Input) and node.preprocessing is None


def on_images(node: Convolution, shape: tuple[int, ...]) -> list[Node]:
    """Return a convolution of one position, behind and before what makes images of its input.

    Args:
        node: The convolution.
        shape: Of what it reads, which need not be an image.
    """
    if len(shape) == 3:
        return [node]
    image = Reshape(
        name=f"{node.name}_image",
        inputs=node.inputs,
        shape=(int(np.prod(shape[:-1])), 1, shape[-1]),
    )
    back = (*shape[:-1], len(node.bias))
    return [
        image,
        replace(node, inputs=(image.name,)),
        Reshape(name=f"{node.name}_back", inputs=(node.name,), shape=back),
    ]


def _replaced(nodes: list[Node], old: str, new: str) -> list[Node]:
    """Return the nodes with every reading of ``old`` turned to ``new``."""
    return [
        replace(node, inputs=tuple(new if name == old else name for name in node.inputs))
        if old in node.inputs
        else node
        for node in nodes
    ]


def folded(nodes: list[Node]) -> list[Node]:
    """Fold every batch norm into the convolution before it, or make it a depthwise one."""
    while affine := next((node for node in nodes if isinstance(node, Scaled)), None):
        source, readers = _folded_into(affine, nodes)
        position = nodes.index(affine)
        if _is_measured(source, nodes):
            channels = IntegerNetwork(tuple(nodes[:position])).shapes[source.name][-1]
            gain, offset = (
                np.broadcast_to(part, channels).astype(np.float32)
                for part in (affine.gain, affine.offset)
            )
            scaled = Affine(name=affine.name, inputs=affine.inputs, gain=gain, offset=offset)
            nodes = [*nodes[:position], scaled, *nodes[position + 1 :]]
        elif isinstance(source, Weighted) and readers == 1:
            folded = _with_gain(source, affine)
            nodes = [folded if node is source else node for node in nodes]
            nodes = nodes[:position] + nodes[position + 1 :]
            nodes = _replaced(nodes, affine.name, affine.inputs[0])
        else:
            before = nodes[:position]
            shape = IntegerNetwork(tuple(before)).shapes[affine.inputs[0]]
            many = on_images(_as_depthwise(affine, shape[-1]), shape)
            nodes = before + many + _replaced(nodes[position + 1 :], affine.name, many[-1].name)
    return nodes


def _folded_into(affine: Scaled, nodes: list[Node]) -> tuple[Node, int]:
    """Return what computes the channels that a batch norm reads, and how many nodes read those."""
    source = next(node for node in nodes if node.name == affine.inputs[0])
    readers = sum(source.name in node.inputs for node in nodes)
    if isinstance(source, Reshape) and readers == 1:
        before = next(node for node in nodes if node.name == source.inputs[0])
        if isinstance(before, Weighted) and len(before.bias) == source.shape[-1]:
            return before, sum(before.name in node.inputs for node in nodes)
    return source, readers


def _with_gain(node: Weighted, affine: Scaled) -> Weighted:
    gain = np.broadcast_to(affine.gain, node.bias.shape)
    sources = (*affine.sources, *node.bias_sources) if affine.sources else ()
    bias = node.bias * gain + affine.offset
    # The kernel's last axes are the output channels: one axis, or two of a depthwise kernel.
    per_channel = gain.reshape(node.weights.shape[2:]) if node.depthwise else gain
    if node.step is None:
        weights = (node.weights * per_channel).astype(np.float32)
        return replace(node, weights=weights, bias=bias, bias_sources=sources)
    step = np.where(gain == 0, node.step, node.step * np.abs(gain)).astype(np.float32)
    weights = (node.weights * np.sign(per_channel)).astype(np.int16)
    return replace(
        node,
        weights=weights,
        step=step,
        free=node.free and node.free.times(gain),
        bias=bias,
        bias_sources=sources,
        moments=affine.moments,
        gain_source=affine.layer if affine.is_free else "",
    )


def _as_depthwise(affine: Scaled, channels: int) -> Convolution:
    gain, offset = (np.broadcast_to(part, channels) for part in (affine.gain, affine.offset))
    return Convolution(
        name=affine.name,
        inputs=affine.inputs,
        weights=np.sign(gain).astype(np.int16).reshape(1, 1, channels, 1),
        step=np.where(gain == 0, 1, np.abs(gain)).astype(np.float32),
        bias=offset.astype(np.float64),
        bits=8,  # the sign is all that its codes hold; int8 is how it is stored
        is_depthwise=True,
        bias_sources=affine.sources,
        moments=affine.moments,
        gain_source=affine.layer if affine.is_free else "",
    )


def direct(nodes: list[Node]) -> list[Node]:
    """Leave out sequences that are made of images, and made images of again, between layers."""
    while pair := _there_and_back(nodes):
        sequence, image = pair
        nodes = _replaced(nodes, image.name, sequence.inputs[0])
        nodes = [each for each in nodes if each.name != image.name]
        if not any(sequence.name in each.inputs for each in nodes):
            nodes = [each for each in nodes if each.name != sequence.name]
    return nodes


def _there_and_back(nodes: list[Node]) -> tuple[Node, Node] | None:
    """Return what makes a sequence of an image, and what makes the same image of that."""
    shapes, by_name = IntegerNetwork(tuple(nodes)).shapes, {node.name: node for node in nodes}
    for node in nodes:
        source = by_name[node.inputs[0]] if isinstance(node, Reshape) else None
        is_sequence = isinstance(source, Reshape) and len(source.shape) == 2
        if is_sequence and shapes[source.inputs[0]] == shapes[node.name]:
            return source, node
    return None


def simplified(nodes: list[Node]) -> list[Node]:
    """Put each activation directly after the convolution or add whose output it rounds.

    Rounding to a grid is monotone and elementwise, so it commutes with max-pooling, concatenation
    and reshaping; a grid that is ended at 0 does what a ReLU before it does, and where the ReLU
    ends at 6 the grid ends at the code of 6.
    """
    changed = True
    while changed:
        changed = False
        for node in nodes:
            if not isinstance(node, (Activation, Levels, ReLU)):
                continue
            source = next(other for other in nodes if other.name == node.inputs[0])
            if sum(source.name in other.inputs for other in nodes) != 1:
                continue
            if isinstance(source, ReLU) and _holds_relu(node):
                both = _ended(node, source.highest)
                nodes = [both if other is node else other for other in nodes if other is not source]
                nodes = _replaced(nodes, source.name, source.inputs[0])
            elif isinstance(source, _MOVING):
                many, taken = len(source.inputs) > 1, {other.name for other in nodes}
                moved = []
                for i, name in enumerate(source.inputs):
                    new = unique(f"{node.name}_{i + 1}", taken) if many else node.name
                    taken.add(new)
                    moved.append(replace(node, name=new, inputs=(name,)))
                after = replace(source, inputs=tuple(each.name for each in moved))
                nodes = _replaced(nodes, node.name, source.name)
                position = next(i for i, n in enumerate(nodes) if n.name == source.name)
                nodes = [n for n in nodes if n.name not in (node.name, source.name)]
                nodes[position:position] = [*moved, after]
            else:
                continue
            changed = True
            break
    return nodes


def _holds_relu(node: Activation | Levels | ReLU) -> bool:
    """Return whether a node, its codes ended at 0, does what a ReLU before it does."""
    return isinstance(node, (Activation, ReLU))


def _ended(node: Activation | ReLU, highest: float) -> Activation | ReLU:
    """Return the node with its outputs ended at 0 and at ``highest``."""
    if isinstance(node, ReLU):
        return replace(node, highest=min(node.highest, highest))
    code = min(node.grid.highest, np.rint(np.float32(highest) / node.grid.step))
    return replace(
        node, grid=replace(node.grid, lowest=max(node.grid.lowest, 0), highest=int(code))
    )
