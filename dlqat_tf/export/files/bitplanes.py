"""Activations as bitpacked planes, which Larq Compute Engine's binary kernels read."""

from __future__ import annotations

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.writer import Writer
from dlqat_tf.export.integer.network import IntegerNetwork, Levels, Node, Sign
from dlqat_tf.export.integer.plan import free_levels
from dlqat_tf.quantizers import ActivationPlanes

WORD = 32  # signs to an int32


class PlaneWriter(Writer):
    """Packs signs, codes and free levels to planes of bits.

    Args:
        network: As for :class:`Writer`.
        input_types: As for :class:`Writer`.
    """

    def __init__(self, network: IntegerNetwork, input_types: dict[str, str]):
        super().__init__(network, input_types)
        self.levels = free_levels(network)
        self._bits: dict[str, list[int]] = {}  # bitpacked planes of a node's output

    def node(self, node: Node) -> None:
        if isinstance(node, Sign):
            self.tensors[node.name] = self._sign(node)
        elif isinstance(node, Levels):
            self.tensors[node.name] = self._on_levels(node)
        else:
            super().node(node)

    def _sign(self, node: Node) -> int:
        """Pack the signs; unpack them too where something else than a binary kernel reads them."""
        packed = self._pack(f"{node.name}/bits", self.float(node.inputs[0]), node.name)
        self._bits[node.name] = [packed]
        if self._only_planes_read(node):
            return packed
        output = self.float_tensor(node.name)
        self.file.operator("LceDequantize", [packed], output, custom=b"")
        return output

    def _only_planes_read(self, node: Node) -> bool:
        readers = self.readers[node.name]
        return bool(readers) and all(
            getattr(reader, "kernel", "") == "planes" for reader in readers
        )

    def _on_levels(self, node: Levels) -> int:
        """Pack the planes of free levels; sum them too where something else reads them."""
        (source,) = node.inputs
        packed = self._above(self.float(source), node.planes, node.planes.thresholds, node.name)
        self._bits[node.name] = packed
        if self._only_planes_read(node):
            return packed[0]
        terms = []
        for plane, scale in zip(packed, node.planes.scales, strict=True):
            sign = self.float_tensor("", self.network.shapes[node.name])
            self.file.operator("LceDequantize", [plane], sign, custom=b"")
            alone = len(packed) == 1
            factor = float(scale) if node.planes.signed else float(scale) / 2
            name = node.name if alone and node.planes.signed else ""
            term = self.float_tensor(name, self.network.shapes[node.name])
            inputs = [sign, self._scalar("", -factor)]
            self.file.operator("MUL", inputs, term, schema.MulOptionsT())
            if not node.planes.signed:  # from one of -factor and factor to one of 0 and the scale
                name = node.name if alone else ""
                moved = self.float_tensor(name, self.network.shapes[node.name])
                inputs = [term, self._scalar("", factor)]
                self.file.operator("ADD", inputs, moved, schema.AddOptionsT())
                term = moved
            terms.append(term)
        return terms[0] if len(terms) == 1 else self.add_floats(node.name, terms)

    def _above(self, value: int, planes: ActivationPlanes, thresholds, name: str) -> list[int]:
        """Pack where each plane is at its upper value; bit 1 where it is.

        A plane changes at some of the thresholds, so it is up where a value is above an odd number
        of them.
        """
        above = []
        for threshold in thresholds:
            difference = self.float_tensor("", self.network.shapes[name])
            inputs = [self._scalar("", float(threshold)), value]
            self.file.operator("SUB", inputs, difference, schema.SubOptionsT())
            above.append(self._pack("", difference, name))
        packed = []
        for plane in planes.planes:
            first, *others = (above[i] for i in np.flatnonzero(np.diff(plane)))
            for other in others:
                both = self.file.tensor("", self._packed_shape(name), np.int32)
                options = schema.BitwiseXorOptionsT()
                self.file.operator("BITWISE_XOR", [first, other], both, options)
                first = both
            packed.append(first)
        return packed

    def _pack(self, name: str, value: int, node: str) -> int:
        """Pack 32 signs of a float tensor to an int32; bit 1 where negative."""
        *rest, channels = self.network.shapes[node]
        packed = self.file.tensor(name, (*rest, -(-channels // WORD)), np.int32)
        self.file.operator("LceQuantize", [value], packed, custom=b"")
        return packed

    def planes_of(self, name: str) -> list[int]:
        """Return the bitpacked planes of a coded tensor, least significant first; bit 1 where set.

        With the codes centred, c - h/2, the sign says the highest bit. Folding the absolute value
        about the centre of the half that is left says each next one, inverted where the bit above
        it is set (a Gray code): one XOR of packed words undoes that.
        """
        if name in self._bits:
            return self._bits[name]
        free = self.levels[name]
        if free is not None:  # moved by a pool or the like, which leaves them levels
            self._bits[name] = self._above(self.float(name), free, free.between, name)
            return self._bits[name]
        grid = self.grids[name]
        bits, step = grid.highest.bit_length(), float(grid.step)
        shape = self.network.shapes[name]
        centre = self._scalar("", (2**bits - 1) / 2 * step)
        folded = self.float_tensor("", shape)
        self.file.operator("SUB", [centre, self.float(name)], folded, schema.SubOptionsT())
        planes = [self._pack("", folded, name)]
        for j in reversed(range(bits - 1)):
            absolute = self.float_tensor("", shape)
            self.file.operator("ABS", [folded], absolute, schema.AbsOptionsT())
            folded = self.float_tensor("", shape)
            half = self._scalar("", 2.0 ** (j) * step)
            self.file.operator("SUB", [absolute, half], folded, schema.SubOptionsT())
            gray = self._pack("", folded, name)
            plane = self.file.tensor("", self._packed_shape(name), np.int32)
            self.file.operator("BITWISE_XOR", [gray, planes[0]], plane, schema.BitwiseXorOptionsT())
            planes.insert(0, plane)
        self._bits[name] = planes
        return planes

    def _packed_shape(self, name: str) -> tuple[int, ...]:
        *rest, channels = self.network.shapes[name]
        return (*rest, -(-channels // WORD))

    def _scalar(self, name: str, value: float) -> int:
        return self.file.constant(name, np.array([value], np.float32))
