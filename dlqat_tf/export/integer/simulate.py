"""Runs a planned IntegerNetwork in exact integer arithmetic, rounding as the kernels do.

Independent of TFLite: the reference that files are compared with. The rounding rules are those of
:mod:`dlqat_tf.export.integer.rounding` and of Larq Compute Engine's output transform; none of them
is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from dlqat_tf._progress import steps
from dlqat_tf.export.integer.arithmetic import exact_product, moved, on_floats, padded, product
from dlqat_tf.export.integer.binary import BinaryPart, binary_parts
from dlqat_tf.export.integer.binary_forms import pads_zeros_apart
from dlqat_tf.export.integer.grids import code_of, free_levels, grids, integer_merge
from dlqat_tf.export.integer.integers import integers, is_integer, target_of
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    AveragePool,
    Convolution,
    Dense,
    FromIsland,
    GlobalAveragePool,
    Input,
    Island,
    Levels,
    Lookup,
    Merge,
    Node,
    Output,
    PReLU,
    Weighted,
)
from dlqat_tf.export.integer.rounding import RUNTIMES, Accumulator, Merged, Sloped, rounds_away
from dlqat_tf.float_part import FloatPart
from dlqat_tf.quantizers import ActivationPlanes

FLOAT_TOLERANCE = 1e-5  # of the largest value of a float layer, for sums in another order


class Simulation:
    """Evaluates the nodes of a planned network.

    Values are int32 codes where the node's output is coded, float32 otherwise.

    Args:
        network: What :func:`dlqat_tf.export.integer.plan.plan` returns.
        run_part: Runs a part that stays float; that of another interpreter for its files.
        runtime: Whose rounding, of :data:`dlqat_tf.export.integer.rounding.RUNTIMES`.
        run_node: Runs a node that adds floats, given it and its input, as the file's kernel does,
            whose order of sums is its own. :meth:`run` goes on with what it gives where that is
            what is computed here, up to 1e-5 of the largest value. None: in no particular order.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        run_part: Callable = FloatPart.run,
        runtime: str = "tflite",
        run_node: Callable | None = None,
    ):
        self.network = network
        self._run_part = run_part
        self._run_node = run_node
        self._rounding = RUNTIMES[runtime]
        self.grids = grids(network)
        self.levels = free_levels(network)
        self._readers = network.consumers()
        self._integers = {
            node.name: integers(
                node, self.grids[node.inputs[0]], target_of(node, self._readers).grid
            )
            for node in network
            if is_integer(node)
        }

    def run(
        self, images: np.ndarray | list[np.ndarray], names: Iterable[str] = ()
    ) -> dict[str, np.ndarray]:
        """Return the values of the network's outputs and of the nodes in ``names``.

        Args:
            images: uint8 pixels (batch, height, width, channels), or float32 values of an input
                that is no image; or a list of one such array for each input.
            names: Nodes to return beside the outputs.
        """
        wanted = {*names, *(node.name for node in self.network.outputs)}
        names_of_inputs = (node.name for node in self.network.inputs)
        values: dict = dict(zip(names_of_inputs, by_input(images), strict=True))
        last_reader = {
            name: node.name for node in self.network for name in (*node.inputs, node.name)
        }
        for node in self.network:
            if not isinstance(node, Input):
                inputs = [values[name] for name in node.inputs]
                value = self.evaluate(node, inputs)
                if self._run_node is not None and self._adds_floats(node):
                    value = self._in_order(node, inputs[0], value)
                values[node.name] = value
            for name in [name for name in values if last_reader[name] == node.name]:
                if name not in wanted:
                    del values[name]
        return {name: values[name] for name in wanted}

    def logits(self, images: np.ndarray | list[np.ndarray], batch_size: int = 128) -> np.ndarray:
        """Return the only output's float32 (images, classes); ``images`` are as for :meth:`run`."""
        (logits,) = self.outputs(images, batch_size)
        return logits

    def outputs(
        self, images: np.ndarray | list[np.ndarray], batch_size: int = 128
    ) -> list[np.ndarray]:
        """Return the values of each output; ``images`` are as for :meth:`run`."""
        names = [node.name for node in self.network.outputs]
        some = steps("the simulation on images, batch", batches(images, batch_size))
        values = [self.run(each) for each in some]
        return [np.concatenate([each[name] for each in values]) for name in names]

    def evaluate(self, node: Node, inputs: list) -> np.ndarray | Accumulator | Merged | Sloped:
        """Return a node's value, given the values of its inputs."""
        match node:
            case Lookup():
                codes = node.codes[inputs[0][..., node.order], np.arange(len(node.order))]
                return codes.astype(np.int32)
            case Activation():
                return self._round(node, inputs[0])
            case Weighted() if is_integer(node):
                return self._integer(node, inputs[0])
            case Convolution() if node.kernel == "planes":
                return self._planes(node, inputs[0])
            case Weighted() if node.kernel == "sums":
                x = padded(node, inputs[0], node.pad_value)
                sums = np.rint(product(node, x, np.float32(node.weights))).astype(np.float32)
                return sums * node.step + node.bias.astype(np.float32)
            case Weighted():
                x = self._float(node.inputs[0], inputs[0])
                sums = product(node, padded(node, x, node.pad_value), node.values)
                return (sums + node.bias.astype(np.float32)).astype(np.float32)
            case Levels():
                return _on_levels(node, self._float(node.inputs[0], inputs[0]))
            case Merge() if integer_merge(node, self.grids, self._readers):
                sources = tuple(self.grids[name] for name in node.inputs)
                return Merged(node, tuple(inputs), sources)
            case PReLU():
                return Sloped(inputs[0], self.grids[node.inputs[0]], node.codes, node.step)
            case Island():
                floats = [self._float(*each) for each in zip(node.inputs, inputs, strict=True)]
                return self._run_part(node.part, floats)
            case FromIsland():
                return inputs[0][node.index]
            case Output():
                return self._float(node.inputs[0], inputs[0])
            case _ if self.grids[node.name]:
                return moved(node, inputs, self.grids[node.name])
            case _:
                floats = [self._float(*each) for each in zip(node.inputs, inputs, strict=True)]
                return on_floats(node, floats)

    def _adds_floats(self, node: Node) -> bool:
        if isinstance(node, Weighted):
            return node.kernel == "float"
        return isinstance(node, (AveragePool, GlobalAveragePool)) and not self.grids[node.name]

    def _in_order(self, node: Node, source: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return a node's value as its kernel adds it up, unless that is another value."""
        added = self._run_node(node, self._float(node.inputs[0], source))
        bound = FLOAT_TOLERANCE * np.abs(value).max(initial=0)
        return np.where(np.abs(added - value) <= bound, added, value)

    def _float(self, name: str, value: np.ndarray) -> np.ndarray:
        grid = self.grids[name]
        return self._rounding.floats(value, grid) if grid else np.float32(value)

    def _integer(self, node: Weighted, codes: np.ndarray) -> Accumulator:
        numbers, source = self._integers[node.name], self.grids[node.inputs[0]]
        x = padded(node, codes, code_of(node.pad_value, source))
        sums = exact_product(node, x, numbers.codes, source)
        return Accumulator(
            sums + numbers.bias,
            numbers.scale,
            source,
            int4=node.kernel == "int4",
            away=rounds_away(node),
            is_dense=isinstance(node, Dense),
        )

    def _round(self, node: Activation, value) -> np.ndarray:
        grid = node.grid
        if isinstance(value, Accumulator):
            rounded = self._rounding.product(value, grid)
        elif isinstance(value, Merged):
            rounded = self._rounding.merged(value, grid)
        elif isinstance(value, Sloped):
            rounded = self._rounding.sloped(value, grid)
        else:
            rounded = self._rounding.quotient(value, grid)
        return np.clip(rounded, grid.lowest, grid.highest).astype(np.int32)

    def _planes(self, node: Convolution, value: np.ndarray) -> np.ndarray:
        """Binary convolutions of each weight plane with each bit of the codes, summed in float32.

        A bit is (1 - s) / 2 with s = -1 where it is set, so padding by +1 stands for code 0. Around
        signs +1 is padded too where zeros are meant, and what that added is taken off afterwards,
        by the kernel or, where that is wrong, by an operation of its own.
        """
        source = self.grids[node.inputs[0]] or self.levels[node.inputs[0]]
        size = int(np.prod(node.weights.shape[:3]))
        border = correction(node, source, value.shape[1:])
        is_signed = source is None or getattr(source, "signed", False)
        zeros = is_signed and node.padding == "same" and node.pad_value == 0 and border is None
        total = None
        for part in binary_parts(node, source):
            if source is None:
                signs = value
            elif isinstance(source, ActivationPlanes):
                signs = 1 - 2 * _bits_of_levels(source, value, part.activation_bit)
            else:
                signs = 1 - 2 * ((value >> part.activation_bit) & 1)
            around = padded(node, signs.astype(np.float32), 1)
            sums = product(node, around, part.signs.astype(np.float32))
            doubled = (size - sums).astype(np.float32)  # twice the number of differing bits
            if node.clipped is not None:
                doubled = np.minimum(doubled, size)  # sums below zero
            offset = part.bias.astype(np.float64) + size * part.multiplier.astype(np.float64)
            term = doubled * -part.multiplier + offset.astype(np.float32)
            if zeros:
                term = term + _of_zeros(node, [part], value.shape[1:])
            total = term if total is None else total + term
        return total if border is None else total + border


def _on_levels(node: Levels, value: np.ndarray) -> np.ndarray:
    """Return the level of the interval that each value lies in."""
    return node.planes.values[np.searchsorted(node.planes.thresholds, value, side="left")]


def _bits_of_levels(planes: ActivationPlanes, values: np.ndarray, plane: int) -> np.ndarray:
    """Return whether a plane is at its upper value, of values that are levels."""
    return (planes.planes[plane] > 0)[np.searchsorted(planes.between, values)].astype(np.int32)


def correction(node: Convolution, source, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return what zeros around an image add to what ones around it give, float32.

    Args:
        node: The convolution.
        source: What its input is on: a grid, free levels, or signs (None).
        shape: Of its input.

    Returns:
        (1, height, width, output channels) of the output; None where the kernel pads as asked.
    """
    if source is not None or not pads_zeros_apart(node, shape):
        return None
    return _of_zeros(node, binary_parts(node, None), shape)


def _of_zeros(node: Convolution, parts: list[BinaryPart], shape: tuple[int, ...]) -> np.ndarray:
    """Return what zeros around an image of signs add to what ones around it give."""
    outside = padded(node, np.zeros((1, *shape), np.float32), 1)
    added = sum(
        product(node, outside, part.signs.astype(np.float32)) * part.multiplier.astype(np.float64)
        for part in parts
    )
    return (-added).astype(np.float32)


def by_input(images) -> list[np.ndarray]:
    """Return the list of one array for each input that ``images`` is, or whose only one it is."""
    return list(images) if isinstance(images, (list, tuple)) else [images]


def batches(images: np.ndarray | list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yield ``size`` images at a time, in one array for each input."""
    arrays = by_input(images)
    for i in range(0, len(arrays[0]), size):
        yield [each[i : i + size] for each in arrays]


def measured_ranges(images: np.ndarray | list[np.ndarray]) -> Callable:
    """Return the ``calibrate`` of :func:`dlqat_tf.export.integer.plan.plan` for some images.

    Args:
        images: As for :meth:`Simulation.run`.
    """

    def calibrate(network: IntegerNetwork, names: list[str]) -> dict[str, tuple[float, float]]:
        floats = [replace(n, kernel="float") if isinstance(n, Weighted) else n for n in network]
        simulation = Simulation(IntegerNetwork(tuple(floats)))
        ranges = {name: (0.0, 0.0) for name in names}
        for batch in steps("calibration, batch", batches(images, 64)):
            values = simulation.run(batch, names)
            for name, (low, high) in ranges.items():
                ranges[name] = (
                    min(low, float(values[name].min())),
                    max(high, float(values[name].max())),
                )
        return ranges

    return calibrate
