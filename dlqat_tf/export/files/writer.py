"""IntegerNetwork -> .tflite graph on stock kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.chains import break_chains
from dlqat_tf.export.files.flatbuffer import parsed
from dlqat_tf.export.files.float_writer import FloatWriter
from dlqat_tf.export.files.functions import has_integer_form, options_of, run_on_tflite
from dlqat_tf.export.files.inputs import codes_of, way_to_codes, zero_point
from dlqat_tf.export.files.lookups import add_lookup
from dlqat_tf.export.files.moving import add_merge, add_moving, add_reshape
from dlqat_tf.export.files.record import METADATA, encode_record
from dlqat_tf.export.files.weighted import file_layout
from dlqat_tf.export.integer.grids import code_of, integer_merge
from dlqat_tf.export.integer.integers import integers, is_integer, target_of
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    OUTPUT,
    Activation,
    Convolution,
    FromIsland,
    Input,
    Island,
    Lookup,
    Merge,
    Node,
    Output,
    Pad,
    PReLU,
    Reshape,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.float_part import FloatPart
from dlqat_tf.quantizers import ActivationGrid

_NONE = schema.ActivationFunctionType.NONE
_RELU = schema.ActivationFunctionType.RELU


class Writer(FloatWriter):
    """Writes a planned network node by node.

    Args:
        network: What :func:`dlqat_tf.export.integer.plan.plan` returns.
        input_types: "uint8", "int8" or "float32" for each input, by its name.
        batch_size: How many images the file takes at once, None for any number.
        kernels: Whose kernels it is for, see
            :attr:`dlqat_tf.export.integer.nodes.Weighted.library`.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        input_types: dict[str, str],
        batch_size: int | None = 1,
        kernels: str = "xnnpack",
    ):
        super().__init__(network, batch_size, kernels)
        self.input_types = input_types
        self.readers = network.consumers()
        self.inputs: list[int] = []  # tensors that take the images
        self._pixels: dict[str, int] = {}  # the same tensors, by input
        self._given: dict[str, ActivationGrid] = {}  # nodes whose codes come in as such
        self.islands: list[dict] = []  # names, layers and operations of the parts that stay float
        self._parts: dict[str, list[int]] = {}  # their outputs
        self._functions: set[str] = set()  # those that are one int8 operation

    def write(self, metadata: dict) -> bytes:
        """Return the file's content; ``metadata`` is what to record in it."""
        for node in self.network:
            is_kept = isinstance(node, Weighted) and node.step is None
            values = [self.float(name) for name in node.inputs if is_kept]
            first = len(self.file.operators)
            self.node(node)
            if values:
                self._in_float(node.name, [node.name], first)
        outputs = [self.float(node.name) for node in self.network.outputs]
        layers = [
            dict(name=name, bits=self.network[name].bits, tensors=tensors)
            for name, tensors in self.weights.items()
        ]
        endings = [getattr(node, "ending", "") for node in self.network.outputs]
        encoded = encode_record(
            {**metadata, "layers": layers, "islands": self.islands, "endings": endings}
        )
        if self.batch_size is not None:
            self.file.fix_batch(self.batch_size)
        names = [node.name.removesuffix(OUTPUT) for node in self.network.outputs]
        named = list(zip(names, outputs, strict=True))
        break_chains(self.file)
        return self.file.finish(self.inputs, named, {METADATA: encoded})

    def node(self, node: Node) -> None:
        """Add one node, unless the activation that follows it will."""
        match node:
            case _ if node.name in self._given:
                self.tensors[node.name] = self._passed(node)
            case Input():
                self.tensors[node.name] = self._input(node)
            case Lookup():
                self.tensors[node.name] = self._lookup(node)
            case Island():
                self._island(node)
            case FromIsland():
                self.tensors[node.name] = self._from_island(node)
            case Output():
                self.tensors[node.name] = self.float(node.inputs[0])
            case Activation():
                self.tensors[node.name] = self._activation(node)
            case Weighted() if is_integer(node):
                pass
            case Convolution() if node.kernel == "planes":
                self.tensors[node.name] = self.planes(node)
            case Weighted():
                self.tensors[node.name] = self.on_floats(node)
            case Merge() if integer_merge(node, self.grids, self.readers):
                pass
            case PReLU():
                pass
            case _ if self.grids[node.name]:
                self.tensors[node.name] = self._moving(node)
            case _:
                self.tensors[node.name] = self.on_floats(node)

    def run_part(self, part: FloatPart, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run a part that stays float on the kernels that run the file."""
        return part.run(arrays)

    def run_file(self, data: bytes, codes: np.ndarray) -> np.ndarray:
        """Run a file of one input and output on the kernels that run this one."""
        return run_on_tflite(data, codes)

    def _has_integer_form(self, node: Island) -> bool:
        """Return whether one int8 operation computes a part between two grids."""
        if self.kernels == "builtin":  # whose int8 functions are not the same on a microcontroller
            return False
        outputs = self.readers[node.name]
        reading = self.readers[outputs[0].name] if len(outputs) == 1 else []
        if len(node.inputs) != 1 or len(reading) != 1 or not isinstance(reading[0], Activation):
            return False
        source, target = self.grids[node.inputs[0]], reading[0].grid
        return source is not None and has_integer_form(
            node, source, target, self.run_part, self.run_file
        )

    def _island(self, node: Island) -> None:
        """Add the operations of a part that stays float, or leave them to what rounds it."""
        if self._has_integer_form(node):
            self._functions.add(node.name)
            return
        inputs = [self.float(name) for name in node.inputs]
        first = len(self.file.operators)
        self._parts[node.name] = self.file.splice(
            parsed(node.part.data, node.name), inputs, node.name
        )
        self._in_float(node.name, node.layers, first)

    def _in_float(self, name: str, layers: Sequence[str], first: int) -> None:
        """Record operations up to the last one as a part that stays float."""
        operators = [first, len(self.file.operators)]
        self.islands.append(dict(name=name, layers=list(layers), operators=operators))

    def _from_island(self, node: FromIsland) -> int:
        """Return an output of a part, which is called like the node unless it is an input too."""
        if node.inputs[0] in self._functions:
            return -1  # of no tensor: its only reader computes it
        output, island = self._parts[node.inputs[0]][node.index], self.network[node.inputs[0]]
        if output not in [self.float(name) for name in island.inputs]:
            self.file.tensors[output].name = node.name
        return output

    def planes(self, node: Convolution) -> int:
        """Add a convolution by binary kernels and return its float output."""
        raise NotImplementedError

    def _input(self, node: Input) -> int:
        kind, readers = self.input_types[node.name], self.readers[node.name]
        looked_up = [reader for reader in readers if isinstance(reader, Lookup)]
        if kind == "int8":
            grid = codes_of(node, self.readers)
            images = self.coded(node.name, grid, node.shape)
            if node.preprocessing is None:
                self._given |= {each.name: grid for each in way_to_codes(node, self.readers)}
        elif kind == "uint8":
            scale = 1.0 if looked_up else float(node.grid.step)
            images = self.file.tensor(node.name, node.shape, np.uint8, scale=scale)
        else:
            images = self.float_tensor(node.name)
        self.inputs.append(images)
        self._pixels[node.name] = images
        if kind == "int8" or node.preprocessing is None or len(looked_up) == len(readers):
            return images
        output = self.coded(f"{node.name}/int8", node.grid, node.shape)
        self.file.operator("QUANTIZE", [images], output, schema.QuantizeOptionsT())
        return output

    def _passed(self, node: Node) -> int:
        """Return codes that the file is given, on their way to the activation that they are of."""
        codes = self.tensors[node.inputs[0]]
        if not isinstance(node, Reshape):
            return codes
        output = self.coded(f"{node.name}/codes", self._given[node.name], node.shape)
        add_reshape(self.file, f"{node.name}/shape", codes, output, node.shape)
        return output

    def _lookup(self, node: Lookup) -> int:
        (name,) = node.inputs
        kind = self.input_types[name]
        if kind == "int8":
            return self._pixels[name]
        output = self.coded(node.name, node.grid)
        if kind == "float32":
            self.file.operator("QUANTIZE", [self._pixels[name]], output, schema.QuantizeOptionsT())
        else:
            shape, signed = self.network.shapes[node.name], self.kernels == "builtin"
            add_lookup(self.file, node, self._pixels[name], output, shape, signed=signed)
        return output

    def _activation(self, node: Activation) -> int:
        """Add what computes the codes: the integer kernel before it, or a QUANTIZE."""
        source = self.network[node.inputs[0]]
        lowest = zero_point(node.grid) + node.grid.lowest
        clips = lowest > -128  # int8 does not saturate there
        # A fused ReLU clips at code 0; grids that go below it need an operation of their own, and
        # so does what fuses none.
        is_function = isinstance(source, FromIsland) and source.inputs[0] in self._functions
        fuses_none = is_function or isinstance(source, TransposedConvolution)
        explicit = clips and (node.grid.lowest != 0 or fuses_none)
        name = f"{node.name}/unclipped" if explicit else node.name
        output = self.coded(name, node.grid, self.network.shapes[node.name])
        fused = _RELU if clips and not explicit else _NONE
        if is_integer(source):
            self.integer_weighted(source, output, fused)
        elif integer_merge(source, self.grids, self.readers):
            inputs = [self.tensors[each] for each in source.inputs]
            add_merge(self.file, type(source), inputs, output, fused)
        elif isinstance(source, PReLU):
            slopes = self.file.constant(f"{source.name}/slopes", source.codes, scale=source.step)
            inputs = [self.tensors[source.inputs[0]], slopes]
            self.file.operator("PRELU", inputs, output)
        elif is_function:
            island = self.network[source.inputs[0]]
            inputs = [self.tensors[name] for name in island.inputs]
            self.file.operator(island.operator, inputs, output, options_of(island.operator))
        else:
            self._quantize(source, output, fused)
        if not explicit:
            return output
        bound = self.file.constant(
            f"{node.name}/lowest",
            np.array([lowest], np.int8),
            scale=np.float32(node.grid.step),
            zero_point=zero_point(node.grid),
        )
        clipped = self.coded(node.name, node.grid)
        self.file.operator("MAXIMUM", [output, bound], clipped, schema.MaximumMinimumOptionsT())
        return clipped

    def _quantize(self, source: Node, output: int, fused: int) -> None:
        value = self.float(source.name)
        if fused != _NONE:
            options = self.fusible.get(value)
            if options is not None and len(self.readers[source.name]) == 1:
                options.fusedActivationFunction = fused
            else:
                rectified = self.float_tensor(
                    f"{source.name}/relu", self.network.shapes[source.name]
                )
                self.file.operator("RELU", [value], rectified)
                value = rectified
        self.file.operator("QUANTIZE", [value], output, schema.QuantizeOptionsT())

    def integer_weighted(self, node: Weighted, output: int, fused: int) -> None:
        """Add a convolution or dense layer between codes, with or without a ReLU."""
        source = self.grids[node.inputs[0]]
        numbers = integers(node, source, target_of(node, self.readers).grid)
        codes, axis = file_layout(node, numbers.codes)
        weights = self.file.constant(
            f"{node.name}/weights",
            codes,
            scale=numbers.scale,
            axis=axis,
            int4=node.kernel == "int4",
        )
        self.weights[node.name] = [weights]
        bias = self.file.constant(
            f"{node.name}/bias",
            numbers.bias.astype(np.int32),
            scale=source.step * numbers.scale,
        )
        value = self.tensors[node.inputs[0]]
        if self.padding(node) == "explicit":
            code = code_of(node.pad_value, source)
            value = self.explicitly_padded(node, value, code + zero_point(source), source)
        version = 8 if node.kernel == "int4" else None
        self.weighted(node, [value, weights, bias], output, fused, version)

    def _moving(self, node: Node) -> int:
        """Add an operation that moves codes and changes none."""
        grid = self.grids[node.name]
        inputs = [self.tensors[name] for name in node.inputs]
        if isinstance(node, Pad) and not node.mirrored:
            value = code_of(node.value, grid) + zero_point(grid)
            shape = self.network.shapes[node.name]
            return self.pad(node.name, inputs[0], node.amounts, value, grid, shape)
        output = self.coded(node.name, grid)
        add_moving(self.file, node, inputs, output, self.network.shapes[node.name])
        return output
