"""What each node's output is on, and what rounds it."""

from __future__ import annotations

import math

from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Add,
    Concatenate,
    Crop,
    Input,
    Levels,
    Maximum,
    MaxPool,
    Minimum,
    Multiply,
    Node,
    Pad,
    Reshape,
    Sign,
    Subtract,
    Transpose,
    Upsample,
)
from dlqat_tf.quantizers import ActivationGrid, ActivationPlanes


def grids(network: IntegerNetwork) -> dict[str, ActivationGrid | None]:
    """Return the grid of every node's output; None where it is float (or a sign)."""
    found: dict[str, ActivationGrid | None] = {}
    for node in network:
        found[node.name] = grid_of(node, [found[name] for name in node.inputs])
    return found


def grid_of(node: Node, sources: list[ActivationGrid | None]) -> ActivationGrid | None:
    """Return the grid of a node's output, given those of its inputs."""
    match node:
        case Input() | Activation():
            return node.grid
        case MaxPool() | Reshape() | Crop() | Upsample() | Transpose():
            return sources[0]
        case Pad():
            grid = sources[0]
            is_held = grid and (node.mirrored or code_of(node.value, grid) is not None)
            return grid if is_held else None
        case Concatenate() | Maximum() | Minimum():
            return sources[0] if all(each == sources[0] for each in sources) else None
        case _:
            return None


def free_levels(network: IntegerNetwork) -> dict[str, ActivationPlanes | None]:
    """Return the levels of every node's output that are no grid; None where there are none."""
    found: dict[str, ActivationPlanes | None] = {}
    for node in network:
        match node:
            case Levels():
                found[node.name] = node.planes
            case MaxPool() | Reshape() | Crop() | Upsample() | Transpose():
                found[node.name] = found[node.inputs[0]]
            case _:
                found[node.name] = None
    return found


def levels_of(network: IntegerNetwork) -> dict[str, ActivationGrid | ActivationPlanes | None]:
    """Return what each node's output is on: a grid, free levels, or neither."""
    free = free_levels(network)
    return {name: grid or free[name] for name, grid in grids(network).items()}


def signs(network: IntegerNetwork) -> set[str]:
    """Return the nodes whose outputs are -1 and 1."""
    found: set[str] = set()
    for node in network:
        match node:
            case Sign():
                found.add(node.name)
            case Concatenate() | MaxPool() | Reshape() | Crop() | Upsample() | Transpose():
                found |= {node.name} if found.issuperset(node.inputs) else set()
    return found


def code_of(value: float, grid: ActivationGrid) -> int | None:
    """Return the code of ``value`` on the grid, or None where it is none of its levels."""
    code = round(value / float(grid.step))
    exact = math.isclose(code * float(grid.step), value, rel_tol=1e-6, abs_tol=0.0)
    return code if exact and grid.lowest <= code <= grid.highest else None


def single_activation(node: Node, readers: dict[str, list[Node]]) -> Activation | None:
    """Return the activation that alone reads a node, None where something else does."""
    reading = readers[node.name]
    return reading[0] if len(reading) == 1 and isinstance(reading[0], Activation) else None


def tail_of(network: IntegerNetwork) -> set[str]:
    """Return the nodes after the last rounding: no activation is downstream of them."""
    readers = network.consumers()
    tail: set[str] = set()
    for node in reversed(network.nodes):
        if not isinstance(node, (Activation, Levels, Sign)) and all(
            reader.name in tail for reader in readers[node.name]
        ):
            tail.add(node.name)
    return tail


def integer_merge(node: Node, known, readers) -> bool:
    """Return whether an integer kernel computes with two coded inputs, rounded directly after."""
    return (
        isinstance(node, (Add, Subtract, Multiply))
        and len(node.inputs) == 2
        and all(known[name] for name in node.inputs)
        and single_activation(node, readers) is not None
    )
