"""Activations as bitpacked planes, which Larq Compute Engine's binary kernels read."""

from __future__ import annotations

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.inputs import zero_point
from dlqat_tf.export.files.writer import Writer
from dlqat_tf.export.integer.grids import free_levels
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Add, Levels, Node, Sign
from dlqat_tf.quantizers import ActivationPlanes

WORD = 32  # signs to an int32
_NARROW = 3  # bits up to which comparing codes with all levels costs less than folding floats


class PlaneWriter(Writer):
    """Packs signs, codes and free levels to planes of bits.

    Args:
        network: As for :class:`Writer`.
        input_types: As for :class:`Writer`.
        batch_size: As for :class:`Writer`.
        kernels: As for :class:`Writer`.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        input_types: dict[str, str],
        batch_size: int | None,
        kernels: str,
    ):
        super().__init__(network, input_types, batch_size, kernels)
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
            inputs = [sign, self._scalar(-factor)]
            self.file.operator("MUL", inputs, term, schema.MulOptionsT())
            if not node.planes.signed:  # from one of -factor and factor to one of 0 and the scale
                name = node.name if alone else ""
                moved = self.float_tensor(name, self.network.shapes[node.name])
                inputs = [term, self._scalar(factor)]
                self.file.operator("ADD", inputs, moved, schema.AddOptionsT())
                term = moved
            terms.append(term)
        return terms[0] if len(terms) == 1 else self.merged_floats(Add, node.name, terms)

    def _above(self, value: int, planes: ActivationPlanes, thresholds, name: str) -> list[int]:
        """Pack where each plane is at its upper value; bit 1 where it is.

        A plane changes at some of the thresholds, so it is up where a value is above an odd number
        of them.
        """
        above = []
        for threshold in thresholds:
            difference = self.float_tensor("", self.network.shapes[name])
            inputs = [self._scalar(float(threshold)), value]
            self.file.operator("SUB", inputs, difference, schema.SubOptionsT())
            above.append(self._pack("", difference, name))
        packed = []
        for plane in planes.planes:
            first, *others = (above[i] for i in np.flatnonzero(np.diff(plane)))
            for other in others:
                first = self._xor(first, other, name)
            packed.append(first)
        return packed

    def _pack(self, name: str, value: int, node: str) -> int:
        """Pack 32 signs of a float tensor to an int32; bit 1 where negative."""
        packed = self.file.tensor(name, self._packed_shape(node), np.int32)
        self.file.operator("LceQuantize", [value], packed, custom=b"")
        return packed

    def planes_of(self, name: str) -> list[int]:
        """Return the bitpacked planes of a coded tensor, least significant first; bit 1 where set.

        All layers that read the tensor share them.
        """
        if name not in self._bits and self.levels[name] is not None:
            free = self.levels[name]  # moved by a pool or the like, which leaves them levels
            self._bits[name] = self._above(self.float(name), free, free.between, name)
        elif name not in self._bits:
            narrow = self.grids[name].highest.bit_length() <= _NARROW
            self._bits[name] = self._compared(name) if narrow else self._folded(name)
        return self._bits[name]

    def _compared(self, name: str) -> list[int]:
        """Pack int8 codes, compared with each of their levels.

        LceQuantize says which codes lie below the zero point of its input, so the same bytes as
        tensors of other zero points (a BITCAST, which copies nothing) give :math:`c < k` for each
        level k. Bit j of a code changes at every multiple of 2^j: it is the parity of how many of
        them the code reaches, and those multiples that bit j + 1 has not counted are the odd ones.
        """
        grid, shape = self.grids[name], self.network.shapes[name]
        planes: list[int] = []
        for j in reversed(range(grid.highest.bit_length())):
            odd = range(2**j, grid.highest + 1, 2 ** (j + 1))
            plane = planes[0] if planes else None
            for level in odd:
                moved = zero_point(grid) + level
                codes = self.file.tensor(
                    "", shape, np.int8, scale=float(grid.step), zero_point=moved
                )
                self.file.operator("BITCAST", [self.tensors[name]], codes, schema.BitcastOptionsT())
                below = self._pack("", codes, name)
                plane = below if plane is None else self._xor(plane, below, name)
            if len(odd) % 2:  # each says where the code is below, not where it has reached
                plane = self._xor(plane, self._ones(shape[-1]), name)
            planes.insert(0, plane)
        return planes

    def _folded(self, name: str) -> list[int]:
        """Pack float values, folded about the centre once for each bit.

        With the codes centred, c - h/2, the sign says the highest bit. Folding the absolute value
        about the centre of the half that is left says each next one, inverted where the bit above
        it is set (a Gray code): one XOR of packed words undoes that.
        """
        grid = self.grids[name]
        bits, step = grid.highest.bit_length(), float(grid.step)
        shape = self.network.shapes[name]
        centre = self._scalar((2**bits - 1) / 2 * step)
        folded = self.float_tensor("", shape)
        self.file.operator("SUB", [centre, self.float(name)], folded, schema.SubOptionsT())
        planes = [self._pack("", folded, name)]
        for j in reversed(range(bits - 1)):
            absolute = self.float_tensor("", shape)
            self.file.operator("ABS", [folded], absolute, schema.AbsOptionsT())
            folded = self.float_tensor("", shape)
            half = self._scalar(2.0**j * step)
            self.file.operator("SUB", [absolute, half], folded, schema.SubOptionsT())
            planes.insert(0, self._xor(self._pack("", folded, name), planes[0], name))
        return planes

    def _xor(self, first: int, second: int, name: str) -> int:
        """Add the exclusive or of packed words of a node's output."""
        output = self.file.tensor("", self._packed_shape(name), np.int32)
        self.file.operator("BITWISE_XOR", [first, second], output, schema.BitwiseXorOptionsT())
        return output

    def _ones(self, channels: int) -> int:
        """Return the packed words of one pixel with the bits of all channels set."""
        return self.file.constant("", packed_signs(-np.ones((1, 1, channels, 1))))

    def _packed_shape(self, name: str) -> tuple[int, ...]:
        *rest, channels = self.network.shapes[name]
        return (*rest, -(-channels // WORD))

    def _scalar(self, value: float) -> int:
        return self.file.constant("", np.array([value], np.float32))


def packed_signs(signs: np.ndarray) -> np.ndarray:
    """Return (output channels, height, width, words) int32, bit 1 where the sign is -1."""
    negative = signs.transpose(3, 0, 1, 2) < 0
    missing = -negative.shape[-1] % WORD
    negative = np.pad(negative, ((0, 0), (0, 0), (0, 0), (0, missing)))
    packed = np.packbits(negative, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4")
