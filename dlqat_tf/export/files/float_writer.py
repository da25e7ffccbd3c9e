"""Operations of files on float32 tensors: those of nodes that no integer kernel computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.files.inputs import zero_point
from dlqat_tf.export.files.moving import add_merge, add_moving
from dlqat_tf.export.files.weighted import add_weighted, file_layout, padding_of
from dlqat_tf.export.integer.binary_forms import scales_channels
from dlqat_tf.export.integer.grids import grids
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Affine,
    Convolution,
    GlobalAveragePool,
    Merge,
    Node,
    Pad,
    ReLU,
    Sign,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.export.integer.shapes import paddings
from dlqat_tf.quantizers import ActivationGrid

_NONE = schema.ActivationFunctionType.NONE


class FloatWriter:
    """Holds the tensors of a file that is written, and adds operations on float ones.

    Args:
        network: As for :class:`dlqat_tf.export.files.writer.Writer`.
        batch_size: Likewise.
        kernels: Likewise.
    """

    def __init__(self, network: IntegerNetwork, batch_size: int | None, kernels: str):
        self.network = network
        self.batch_size = batch_size
        self.kernels = kernels
        self.file = FileBuilder()
        self.grids = grids(network)
        self.tensors: dict[str, int] = {}  # of each node's output, int8 where it is coded
        self.weights: dict[str, list[int]] = {}  # tensors that hold each layer's weights
        self.fusible: dict[int, object] = {}  # float outputs -> options with a fused activation
        self._floats: dict[str, int] = {}

    def coded(self, name: str, grid: ActivationGrid, shape=None) -> int:
        """Add an int8 tensor on a grid."""
        shape = self.network.shapes[name] if shape is None else shape
        return self.file.tensor(
            name, shape, np.int8, scale=float(grid.step), zero_point=zero_point(grid)
        )

    def float_tensor(self, name: str, shape=None) -> int:
        """Add a float32 tensor of a node's shape."""
        shape = self.network.shapes[name] if shape is None else shape
        return self.file.tensor(name, shape, np.float32)

    def float(self, name: str) -> int:
        """Return the float32 form of a node's output."""
        if not self.grids[name]:
            return self.tensors[name]
        if name not in self._floats:
            output = self.float_tensor(f"{name}/float", self.network.shapes[name])
            self.file.operator(
                "DEQUANTIZE", [self.tensors[name]], output, schema.DequantizeOptionsT()
            )
            self._floats[name] = output
        return self._floats[name]

    def on_floats(self, node: Node) -> int:
        """Add a node's operations on float tensors and return its output."""
        if isinstance(node, Weighted):
            return self._weighted_on_floats(node)
        inputs = [self.float(name) for name in node.inputs]
        if isinstance(node, Merge):
            return self.merged_floats(type(node), node.name, inputs)
        if isinstance(node, Pad) and not node.mirrored:
            shape = self.network.shapes[node.name]
            return self.pad(node.name, inputs[0], node.amounts, node.value, None, shape)
        if isinstance(node, Affine):
            return self._affine(node, *inputs)
        if isinstance(node, Sign):
            return self._sign_of(node, *inputs)
        output = self.float_tensor(node.name)
        if isinstance(node, ReLU):
            self.file.operator("RELU6" if node.highest == 6 else "RELU", inputs, output)
        elif isinstance(node, GlobalAveragePool):
            axes = self.file.constant("rows_and_columns", np.array([1, 2], np.int32))
            options = schema.ReducerOptionsT()
            options.keepDims = node.keepdims
            self.file.operator("MEAN", [*inputs, axes], output, options)
        else:
            add_moving(self.file, node, inputs, output, self.network.shapes[node.name])
        return output

    def _weighted_on_floats(self, node: Weighted) -> int:
        if node.kernel == "sums":
            return self._scaled_sums(node)
        if isinstance(node, Convolution) and scales_channels(node):
            return self._scaled_channels(node)
        return self._float_weighted(node)

    def merged_floats(self, kind: type[Merge], name: str, inputs: list[int]) -> int:
        """Add an operation on float tensors; its last output has the node's name."""
        total = inputs[0]
        for i, each in enumerate(inputs[1:]):
            last = i == len(inputs) - 2
            output = self.float_tensor(
                name if last else f"{name}/part{i + 1}", self.network.shapes[name]
            )
            options = add_merge(self.file, kind, [total, each], output)
            if hasattr(options, "fusedActivationFunction"):
                self.fusible[output] = options
            total = output
        return total

    def _affine(self, node: Affine, value: int) -> int:
        scaled = self.float_tensor(f"{node.name}/scaled", self.network.shapes[node.name])
        gain = self.file.constant(f"{node.name}/gain", node.gain)
        self.file.operator("MUL", [value, gain], scaled, schema.MulOptionsT())
        output, options = self.float_tensor(node.name), schema.AddOptionsT()
        offset = self.file.constant(f"{node.name}/offset", node.offset)
        self.file.operator("ADD", [scaled, offset], output, options)
        self.fusible[output] = options
        return output

    def _sign_of(self, node: Sign, value: int) -> int:
        """Add what is 1 where a float tensor is at least 0, and -1 elsewhere; SIGN has a 0."""
        shape = self.network.shapes[node.name]
        zero, one, minus = (
            self.file.constant(name, np.float32([number]))
            for name, number in (("zero", 0), ("one", 1), ("minus_one", -1))
        )
        positive = self.file.tensor(f"{node.name}/positive", shape, np.bool_)
        self.file.operator("GREATER_EQUAL", [value, zero], positive)
        output = self.float_tensor(node.name)
        self.file.operator("SELECT_V2", [positive, one, minus], output)
        return output

    def _float_weighted(self, node: Weighted, output: int | None = None) -> int:
        # TFLite Micro would dequantize them at every run, into RAM, and by one scale for all.
        if node.step is None or self.kernels == "builtin":
            codes, _ = file_layout(node, node.values)
            stored = weights = self.file.constant(f"{node.name}/weights", codes)
        else:
            codes, axis = file_layout(node, node.weights.astype(np.int8))
            stored = self.file.constant(
                f"{node.name}/weights",
                codes,
                scale=node.step,
                axis=axis,
                int4=node.storage == "int4",
            )
            weights = self.float_tensor(f"{node.name}/weights/float", codes.shape[1:])
            tensor = self.file.tensors[weights]
            tensor.shape, tensor.shapeSignature = np.array(codes.shape, np.int32), None
            self.file.operator("DEQUANTIZE", [stored], weights, schema.DequantizeOptionsT())
        self.weights[node.name] = [stored]
        bias = self.file.constant(f"{node.name}/bias", node.bias.astype(np.float32))
        value = self.float(node.inputs[0])
        if self.padding(node) == "explicit":
            value = self.explicitly_padded(node, value, node.pad_value, None)
        output = self.float_tensor(node.name) if output is None else output
        options = self.weighted(node, [value, weights, bias], output, _NONE)
        if not isinstance(node, TransposedConvolution):
            self.fusible[output] = options
        return output

    def _scaled_channels(self, node: Convolution) -> int:
        """Add a gain and an offset of each channel, which a convolution would round only once."""
        gain, bias = node.values.reshape(-1), node.bias.astype(np.float32)
        affine = Affine(name=node.name, gain=gain, offset=bias)
        output = self._affine(affine, self.float(node.inputs[0]))
        self.weights[node.name] = [self.file.constant(f"{node.name}/gain", gain)]
        return output

    def _scaled_sums(self, node: Weighted) -> int:
        """Add exact sums of signs times codes, and after them their step and bias."""
        codes = replace(node, step=np.ones_like(node.step), bias=np.zeros_like(node.bias))
        sums = self.float_tensor(f"{node.name}/sums", self.network.shapes[node.name])
        self._float_weighted(codes, sums)
        bias = node.bias.astype(np.float32)
        return self._affine(Affine(name=node.name, gain=node.step, offset=bias), sums)

    def weighted(self, node: Weighted, inputs, output: int, fused: int, version=None):
        """Add the operation of a layer with weights and return its options."""
        return add_weighted(
            self.file,
            node,
            inputs,
            output,
            fused,
            padding=self.padding(node),
            shape=(self.batch_size, *self.network.shapes[node.name]),
            version=version,
        )

    def padding(self, node: Weighted) -> str:
        return padding_of(node, self.network.shapes)

    def explicitly_padded(self, node: Convolution, value: int, pad, grid) -> int:
        shape = self.network.shapes[node.inputs[0]]
        amounts = paddings(node, shape)
        name = f"{node.name}/padded"
        rows, columns = (n + sum(each) for n, each in zip(shape, amounts, strict=False))
        return self.pad(name, value, amounts, pad, grid, (rows, columns, shape[2]))

    def pad(self, name: str, value: int, amounts, pad, grid, shape) -> int:
        """Add rows and columns of ``pad``, an int8 where there is a grid."""
        paddings = np.array([(0, 0), *amounts, (0, 0)], np.int32)
        inputs = [value, self.file.constant(f"{name}/amounts", paddings)]
        output = self.coded(name, grid, shape) if grid else self.float_tensor(name, shape)
        if pad == (zero_point(grid) if grid else 0.0):
            self.file.operator("PAD", inputs, output, schema.PadOptionsT())
            return output
        scale = dict(scale=grid.step, zero_point=zero_point(grid)) if grid else {}
        dtype = np.int8 if grid else np.float32
        inputs.append(self.file.constant(f"{name}/value", np.array([pad], dtype), **scale))
        self.file.operator("PADV2", inputs, output, schema.PadV2OptionsT())
        return output
