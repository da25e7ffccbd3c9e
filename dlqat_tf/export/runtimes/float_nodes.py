"""Runs single float nodes as a file does: in which order a kernel adds is known to it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.writer import Writer
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Input, Node, Output
from dlqat_tf.export.runtimes.host import runner


class FloatNodes:
    """Runs nodes of a planned network one by one, each as a file of its own.

    Args:
        network: What :func:`dlqat_tf.export.integer.plan.plan` returns.
        batch_size: How many images the file of the whole network takes at once, None for any
            number.
        kernels: Whose kernels that file is for, "xnnpack" or "builtin".
        runtime: What runs it, see :func:`dlqat_tf.export.parity`.
        binarized: Whether it runs on Larq Compute Engine's interpreter.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        batch_size: int | None,
        kernels: str,
        runtime: str,
        *,
        binarized: bool,
    ):
        self._network = network
        self._batch_size = batch_size
        self._kernels = kernels
        self._runtime = runtime
        self._binarized = binarized
        self._open: dict[tuple[str, int], object] = {}

    def __call__(self, node: Node, value: np.ndarray) -> np.ndarray:
        """Return what the kernel of a node gives, for the float32 values of its only input."""
        key = node.name, len(value)
        if key not in self._open:
            content = flatbuffer.parsed(self._written(node), node.name)
            self._open[key] = runner(
                content, len(value), runtime=self._runtime, binarized=self._binarized
            )
        return self._open[key]([value])[0]

    def _written(self, node: Node) -> bytes:
        shape = self._network.shapes[node.inputs[0]]
        source = Input(name=f"{node.name}/input", shape=shape, preprocessing=None)
        output = Output(name=f"{node.name}/output", inputs=(node.name,))
        alone = IntegerNetwork((source, replace(node, inputs=(source.name,)), output))
        writer = Writer(alone, {source.name: "float32"}, self._batch_size, self._kernels)
        return writer.write({})
