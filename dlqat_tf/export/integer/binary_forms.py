"""Which layers binary kernels can run, and the forms of a network that let them run more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dlqat_tf.export.integer.cores import dearer
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Convolution,
    Dense,
    Input,
    Lookup,
    Node,
    ReLU,
    Reshape,
    Sign,
)
from dlqat_tf.quantizers import ActivationGrid, ActivationPlanes


def no_planes(
    node: Convolution,
    source: Node,
    on: ActivationGrid | ActivationPlanes | None,
    plane_limit: int,
    target: str,
    shapes: dict[str, tuple[int, ...]],
) -> str:
    """Return why a convolution does not run as planes, "" where it does.

    Args:
        node: The convolution.
        source: What it reads.
        on: What that is on: a grid, free levels, or neither (signs and floats).
        plane_limit: Largest product of weight and activation bits.
        target: As for :func:`dlqat_tf.export.integer.plan.plan`.
        shapes: Of all nodes' outputs.
    """
    is_sign, is_free = isinstance(source, Sign), isinstance(on, ActivationPlanes)
    signed = is_sign or (is_free and on.signed)
    if isinstance(source, (Input, Lookup)) and not signed:
        return "reads what comes in"
    if is_sign:
        activation_bits = 1
    elif is_free:
        activation_bits = len(on.scales)
    elif on is not None and on.lowest == 0:
        activation_bits = on.highest.bit_length()
    else:
        return "its input is signed" if on else "its input is not rounded"
    if not _is_sum_of_planes(node):
        return "its weights are no sum of planes"
    # One is a sign, but no free level; and zeros around those cannot be corrected apart.
    held = (0, 1) if is_sign else (0,)
    apart = is_free and signed and pads_zeros_apart(node, shapes[source.name])
    if (node.padding == "same" and node.pad_value not in held) or apart:
        return f"pads with {node.pad_value:g}"
    planes = node.bits * activation_bits
    if planes > plane_limit:
        return f"{planes} planes, plane_limit is {plane_limit}"
    if is_sign or is_free:  # no int8 kernel reads signs or free levels
        return ""
    return dearer(node, planes, shapes[node.name], target)


def _is_sum_of_planes(node: Convolution) -> bool:
    """Return whether the weights are a sum of ``bits`` planes, all of one group."""
    if node.step is None or node.depthwise or node.groups > 1:
        return False
    if node.free is not None:
        return node.free.signs is not None
    return bool(np.all(node.weights % 2)) and np.abs(node.weights).max() <= 2**node.bits - 1


def pads_zeros_apart(node: Convolution, shape: tuple[int, ...]) -> bool:
    """Return whether zeros around signs need a correction of their own.

    LCE's kernel pads with ones and corrects the result where zeros were asked for, which is wrong
    where a window, gaps of its dilation included, is larger than the image: it takes a window to
    stick out on one side only. (Compared with sums of integers for windows and images of 1 to 5 and
    1 to 7 rows and columns, strides of 1 to 3 and dilations of 1 to 3: wrong there and only there.)

    Args:
        node: A convolution of signs.
        shape: Of its input.
    """
    windows = (
        (size - 1) * dilation + 1
        for size, dilation in zip(node.weights.shape, node.dilation, strict=False)
    )
    return (
        node.padding == "same"
        and node.pad_value == 0
        and any(window > size for window, size in zip(windows, shape, strict=False))
    )


def with_dense_as_convolutions(
    network: IntegerNetwork, levels_of: Callable, plane_limit: int
) -> IntegerNetwork:
    """Return the network with dense layers as convolutions of one position where planes run them.

    LCE has no binary fully connected layer.

    Args:
        network: As lowered.
        levels_of: Returns what each node's output is on, given a network.
        plane_limit: As for :func:`no_planes`.
    """
    for node in network:
        if isinstance(node, Dense) and node.step is not None:
            network = _convolved(network, node.name, levels_of(network), plane_limit)
    return network


def _convolved(network: IntegerNetwork, name: str, levels: dict, plane_limit: int):
    node, readers = network[name], network.consumers()
    origin = network[node.inputs[0]]
    while isinstance(origin, Reshape):
        origin = network[origin.inputs[0]]
    convolution = Convolution(
        name=name,
        weights=node.weights[None, None],
        step=node.step,
        bias=node.bias,
        bits=node.bits,
        bias_sources=node.bias_sources,
        gain_source=node.gain_source,
        moments=node.moments,
        free=node.free,
    )
    shapes = {**network.shapes, name: (1, 1, len(node.bias))}
    if no_planes(convolution, origin, levels[origin.name], plane_limit, "all", shapes):
        return network
    before: list[Node] = []
    source, image = origin, (1, 1, len(node.weights))
    if network.shapes[origin.name] != image:
        signed = isinstance(origin, Sign)
        of = origin.inputs[0] if signed else origin.name
        source = Reshape(name=f"{name}_image", inputs=(of,), shape=image)
        before.append(source)
        if signed:  # they are packed along the channels
            source = Sign(name=f"{name}_signs", inputs=(source.name,))
            before.append(source)
    # What rounds the sums does so where they are, so that their biases are kept clear of ties.
    chain = [name]
    while len(readers[chain[-1]]) == 1 and isinstance(
        readers[chain[-1]][0], (Activation, ReLU, Sign)
    ):
        chain.append(readers[chain[-1]][0].name)
    vector = Reshape(
        name=f"{chain[-1]}_vector", inputs=(chain[-1],), shape=network.shapes[chain[-1]]
    )
    nodes: list[Node] = []
    for each in network:
        if each.name == name:
            nodes += [*before, replace(convolution, inputs=(source.name,))]
        elif each.name in chain:
            nodes.append(each)
        else:
            inputs = (vector.name if other == chain[-1] else other for other in each.inputs)
            nodes.append(replace(each, inputs=tuple(inputs)))
        if each.name == chain[-1]:
            nodes.append(vector)
    return IntegerNetwork(tuple(_read(nodes, {each.name for each in network.outputs})))


def _read(nodes: list[Node], outputs: set[str]) -> list[Node]:
    """Return the nodes that outputs come from; a network without Outputs ends with its last."""
    wanted, kept = {*outputs, nodes[-1].name}, []
    for node in reversed(nodes):
        if node.name in wanted or isinstance(node, Input):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def with_clipped_sums(network: IntegerNetwork, rounds: Callable) -> IntegerNetwork:
    """Return the network with the ReLU and the norm after a binary convolution inside of it.

    LCE's kernel clips the sums at zero before it scales them, so the order of Larq's guide,
    convolution, ReLU, norm, is one operation.

    Args:
        network: Planned, kernels decided.
        rounds: Whether an integer rounding directly follows a node, whose bias then may move.
    """
    readers, by_name = network.consumers(), {node.name: node for node in network}
    merged: dict[str, Convolution] = {}
    for norm in network:
        if not (isinstance(norm, Convolution) and scales_channels(norm) and not rounds(norm)):
            continue
        relu = by_name[norm.inputs[0]]
        source = by_name[relu.inputs[0]] if relu.inputs else relu
        if (
            isinstance(relu, ReLU)
            and np.isinf(relu.highest)
            and isinstance(source, Convolution)
            and source.kernel == "planes"
            and source.bits == 1
            and isinstance(by_name[source.inputs[0]], Sign)
            and (source.padding == "valid" or source.pad_value == 1)  # zeros are corrected later
            and not np.any(source.bias)
            and len(readers[source.name]) == len(readers[relu.name]) == 1
        ):
            gain = norm.values.reshape(-1)
            merged[norm.name] = replace(source, clipped=gain, bias=norm.bias, bias_sources=())
    gone = {by_name[name].inputs[0] for name in merged}
    renamed = {name: node.name for name, node in merged.items()}
    at = {node.name: node for node in merged.values()}
    nodes = [
        replace(
            at.get(node.name, node), inputs=tuple(renamed.get(name, name) for name in node.inputs)
        )
        for node in network
        if node.name not in merged and node.name not in gone
    ]
    return IntegerNetwork(tuple(nodes))


def scales_channels(node: Convolution) -> bool:
    """Return whether a convolution multiplies each channel by a number."""
    is_alone = node.weights.shape[:2] == node.strides == (1, 1)
    return node.depthwise and is_alone and node.weights.shape[3] == 1
