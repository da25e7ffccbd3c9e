"""IntegerNetwork: what a low-bit network computes, as a short list of typed nodes.

Between Keras and the files. :mod:`dlqat_tf.export.integer.lower` makes it (batch norm is folded
there), :mod:`dlqat_tf.export.integer.plan` decides which kernel runs each node, the writers and the
simulation read the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.nodes import Input, Node, Output
from dlqat_tf.export.integer.shapes import output_shape


@dataclass(frozen=True)
class IntegerNetwork:
    """Nodes in topological order: the Inputs come first, the Outputs last.

    Attributes:
        nodes: The operations.
        shapes: Output shape of every node without the batch.
    """

    nodes: tuple[Node, ...]
    shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self):
        shapes: dict[str, tuple[int, ...]] = {}
        for node in self.nodes:
            if node.name in shapes:
                raise ExportError(
                    f"Expected unique names. Received: two nodes named {node.name!r}."
                )
            shapes[node.name] = output_shape(node, [shapes[name] for name in node.inputs])
        object.__setattr__(self, "shapes", shapes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The Inputs, in the order of the Keras model's."""
        return tuple(node for node in self.nodes if isinstance(node, Input))

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The Outputs, in the order of the Keras model's; without any the last node is the one."""
        found = tuple(node for node in self.nodes if isinstance(node, Output))
        return found or self.nodes[-1:]

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each node's output."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                readers[name].append(node)
        return readers
