"""What each layer of a Keras model costs: weights, multiply-accumulates and activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf.export.files.census import peak
from dlqat_tf.export.integer.inputs import preprocessing_before
from dlqat_tf.graph import follow
from dlqat_tf.preprocessing import ChannelAffine
from dlqat_tf.quantizers import Unwrapped, unwrapped

_PIXEL_BITS = 8
_FLOAT_BITS = 32
_layers = tf.keras.layers
_CONVOLUTIONS = (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D)
_TRANSPOSED = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
_DEPTHWISE = (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)
_SEPARABLE = (_layers.SeparableConv1D, _layers.SeparableConv2D)
# Layers whose outputs have no more levels than their inputs, so that the width stays.
_MOVING = (
    _layers.MaxPool1D,
    _layers.MaxPool2D,
    _layers.GlobalMaxPool1D,
    _layers.GlobalMaxPool2D,
    _layers.Flatten,
    _layers.Reshape,
    _layers.Permute,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.ZeroPadding2D,
    _layers.Cropping2D,
    _layers.Concatenate,
    _layers.ReLU,
    _layers.Rescaling,
    ChannelAffine,
)
# Layers that can write over their input, when nothing else reads it.
_IN_PLACE = (
    _layers.BatchNormalization,
    _layers.ReLU,
    _layers.Activation,
    _layers.Dropout,
    _layers.SpatialDropout2D,
    _layers.Rescaling,
    ChannelAffine,
    _layers.Flatten,
    _layers.Reshape,
    lq.quantizers.Quantizer,
)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one width.

    Attributes:
        weight_bits: Width of the weights.
        activation_bits: Width of the activations.
        number: How many.
        bit_operations: Their number times both widths.
    """

    weight_bits: int
    activation_bits: int
    number: int
    bit_operations: int


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer, for a single image.

    Attributes:
        layer: Name; that of a layer in a nested model follows the model's name and a slash, that of
            a later call ends in its number.
        kind: Class of the layer, that of a wrapped layer where it is in a wrapper of TF-MOT.
        output_shape: Shape of its (first) output without the batch.
        weight_bits: Widths of its kernels; empty without any.
        input_bits: Width of what it reads, its ``input_quantizer`` applied; None for the input.
        output_bits: Width of what it gives.
        parameters: Number of its variables' values, counters left out; 0 for a later call.
        macs: Multiply-accumulates of each kernel.
        bytes: Size of the parameters in float32 and at their declared widths ("declared"), and in
            each file that of the weights alone, where it has some of this layer: batch norms and
            biases are folded there.
    """

    layer: str
    kind: str
    output_shape: tuple[int, ...]
    weight_bits: tuple[int, ...]
    input_bits: int | None
    output_bits: int
    parameters: int
    macs: tuple[Macs, ...]
    bytes: dict[str, int]


@dataclass(eq=False)
class _Tensor:
    values: int
    bits: int

    def bytes(self, bits: int | None) -> int:
        """Return its size at ``bits`` a value, or at its own width."""
        return -(-self.values * (bits or self.bits) // 8)


class Walk:
    """Collects what each layer costs on the way through the model."""

    def __init__(self):
        self.layers: list[LayerSummary] = []
        self.notes: list[str] = []
        self.outputs: list[_Tensor] = []
        self._steps: list[tuple[list[_Tensor], _Tensor, bool]] = []
        self._calls: Counter[str] = Counter()

    def input(self, tensor) -> _Tensor:
        """Add an input of the whole model: images of pixels, or anything else in float."""
        shape = tuple(tensor.shape[1:])
        layer = tensor.node.layer
        bits = _FLOAT_BITS if preprocessing_before(layer, shape) is None else _PIXEL_BITS
        sizes = dict.fromkeys(("float32", "declared"), 0)
        self.layers.append(
            LayerSummary(layer.name, type(layer).__name__, shape, (), None, bits, 0, (), sizes)
        )
        return _Tensor(int(np.prod(shape)), bits)

    def model(self, model: tf.keras.Model, sources: list[_Tensor], prefix: str) -> list[_Tensor]:
        """Add the layers of a (nested) model and return its outputs."""
        return follow(model, sources, lambda call, inputs: self.layer(call, inputs, prefix))

    def layer(self, call, inputs: list[_Tensor], prefix: str) -> list[_Tensor]:
        """Add one call of one layer and return what stands for each of its outputs."""
        layer, name = call.layer, prefix + call.layer.name
        if isinstance(layer, tf.keras.Model) and hasattr(layer, "_nodes_by_depth"):
            return self.model(layer, inputs, name + "/")
        self._calls[name] += 1
        again = self._calls[name] > 1
        shapes = [
            tuple(tensor.shape[1:])
            for tensor in (tf.nest.flatten(call.input_tensors)[0], *tf.nest.flatten(call.outputs))
        ]
        parts = _parts(layer)
        bits = max(tensor.bits for tensor in inputs)
        if getattr(parts.layer, "input_quantizer", None) is not None:
            bits = _precision(parts.layer.input_quantizer)
        output = _Tensor(
            sum(int(np.prod(shape)) for shape in shapes[1:]), _output_bits(parts, bits)
        )
        self._steps.append((inputs, output, isinstance(parts.layer, _IN_PLACE)))
        weights = _weights(layer, parts)
        widths = {width for weight, width in weights if weight.shape.rank > 1}
        macs = _macs(parts, shapes[0], shapes[1], bits)
        kind = type(parts.layer).__name__
        if widths and not macs:
            self.notes.append(f"MACs of {name!r} ({kind}) are not counted")
        self.layers.append(
            LayerSummary(
                layer=f"{name}_{self._calls[name]}" if again else name,
                kind=kind,
                output_shape=shapes[1],
                weight_bits=tuple(sorted(widths)),
                input_bits=bits,
                output_bits=output.bits,
                parameters=0 if again else sum(w.shape.num_elements() for w, _ in weights),
                macs=macs,
                bytes=_sizes([] if again else weights),
            )
        )
        return [output] * (len(shapes) - 1)

    def peak(self, bits: int | None) -> int:
        """Return the peak of the activations in bytes, at ``bits`` a value or at their widths."""
        readers = Counter(tensor for inputs, _, _ in self._steps for tensor in inputs)
        readers.update(self.outputs)
        place: dict[_Tensor, _Tensor] = {}
        sizes: dict[Hashable, int] = {}
        for inputs, output, in_place in self._steps:
            over = in_place and readers[inputs[0]] == 1
            for tensor in inputs:
                place.setdefault(tensor, tensor)
                sizes.setdefault(tensor, tensor.bytes(bits))
            place[output] = place[inputs[0]] if over else output
            sizes[place[output]] = output.bytes(bits)
        return peak(
            [([place[t] for t in inputs], place[output]) for inputs, output, _ in self._steps],
            sizes,
        )


def _precision(quantized) -> int:
    """Return the width that Larq reads of a variable or quantizer; 32 where it says none."""
    precision = getattr(quantized, "precision", None)
    return precision if isinstance(precision, int) else _FLOAT_BITS


def _parts(layer) -> Unwrapped:
    """Return a layer without its wrapper, or as it is where no export reads that."""
    try:
        return unwrapped(layer)
    except ValueError:
        return Unwrapped(layer, None, None)


def _weights(layer, parts: Unwrapped) -> list[tuple[tf.Variable, int]]:
    """Return a layer's variables and their widths, without those that count steps."""
    return [
        (weight, _weight_bits(weight, parts))
        for weight in layer.weights
        if weight.dtype.is_floating
    ]


def _weight_bits(weight, parts: Unwrapped) -> int:
    is_quantized = weight is parts.kernel and parts.kernel_quantizer is not None
    return _precision(parts.kernel_quantizer if is_quantized else weight)


def _output_bits(parts: Unwrapped, bits: int) -> int:
    if parts.output_quantizer is not None:
        return _precision(parts.output_quantizer)
    if isinstance(parts.layer, lq.quantizers.Quantizer):
        return _precision(parts.layer)
    if isinstance(parts.layer, _MOVING):
        return bits
    return _precision(getattr(parts.layer, "activation", None))


def _sizes(weights: list[tuple[tf.Variable, int]]) -> dict[str, int]:
    counts = [(weight.shape.num_elements(), bits) for weight, bits in weights]
    return {
        "float32": sum(4 * count for count, _ in counts),
        "declared": sum(-(-count * bits // 8) for count, bits in counts),
    }


def _macs(parts: Unwrapped, input_shape, output_shape, bits: int) -> tuple[Macs, ...]:
    layer = parts.layer
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    inside, outside = (
        int(np.prod(shape[1:] if first else shape[:-1])) for shape in (input_shape, output_shape)
    )
    match layer:
        case _ if isinstance(layer, _SEPARABLE):  # nothing rounds what lies between its two
            kernels = [(layer.depthwise_kernel, outside, bits)]
            kernels += [(layer.pointwise_kernel, outside, _FLOAT_BITS)]
        case _ if isinstance(layer, _TRANSPOSED):
            kernels = [(parts.kernel, inside, bits)]
        case _ if isinstance(layer, (*_CONVOLUTIONS, *_DEPTHWISE, _layers.Dense)):
            kernels = [(parts.kernel, outside, bits)]
        case _:
            kernels = []
    found = []
    for kernel, positions, activation_bits in kernels:
        number, weight_bits = kernel.shape.num_elements() * positions, _weight_bits(kernel, parts)
        found.append(
            Macs(weight_bits, activation_bits, number, number * weight_bits * activation_bits)
        )
    return tuple(found)
