"""What a network costs: bits, parameters, operations, memory, and the size of each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import larq as lq
import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.export.files import lce, tflite
from dlqat_tf.export.files.census import count, peak
from dlqat_tf.export.integer.inputs import preprocessing_before
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import ExportError, IntegerNetwork, Weighted
from dlqat_tf.graph import check_graph, follow
from dlqat_tf.preprocessing import ChannelAffine
from dlqat_tf.quantizers import Unwrapped, unwrapped
from dlqat_tf.report import Report

FILES = ("int8", "int4", "lce")
_PIXEL_BITS = 8
_FLOAT_BITS = 32
_ASSUMED_RANGE = (-8.0, 8.0)  # which one it is does not change a file's size
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


@dataclass(frozen=True)
class StorageSummary:
    """One way to store the network.

    Attributes:
        name: "float32", "declared", or a file: "int8" and "int4" of
            :func:`dlqat_tf.export.to_tflite`, "lce" of :func:`dlqat_tf.export.to_lce`.
        weight_bytes: Size of the parameters, in files of the weights; None without a file.
        file_bytes: Size of the file; None where there is none.
        peak_activation_bytes: Largest sum of the tensors that are needed at once; None without a
            file.
        reason: Why there is no such file, or "".
    """

    name: str
    weight_bytes: int | None = None
    file_bytes: int | None = None
    peak_activation_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, repr=False)  # else a notebook shows all of it once more below the tables
class SummaryReport(Report):
    """What a network costs, for a single image.

    Attributes:
        model: Name of the model.
        layers: Its layers in topological order.
        parameters: Number of its parameters.
        trainable_parameters: How many of them are trained.
        macs: Multiply-accumulates of all layers by width, narrowest first.
        bit_operations: Sum of MACs times weight bits times activation bits.
        storage: Each way to store it.
        notes: What the counts leave out or assume.
    """

    model: str
    layers: list[LayerSummary]
    parameters: int
    trainable_parameters: int
    macs: list[Macs]
    bit_operations: int
    storage: list[StorageSummary]
    notes: list[str]

    def tables(self):
        layers = _table(
            f"{self.model}: {self.parameters:,} parameters, {self.trainable_parameters:,} trained",
            ["layer", "output", "weight\nbits", "bits\nin", "bits\nout", "parameters", "MACs"],
        )
        for each in self.layers:
            layers.add_row(
                each.layer,
                "x".join(map(str, each.output_shape)),
                ", ".join(map(str, each.weight_bits)),
                "" if each.input_bits is None else str(each.input_bits),
                str(each.output_bits),
                _number(each.parameters),
                _number(sum(macs.number for macs in each.macs)),
            )
        operations = _table("Operations", ["bits", "MACs", "bit operations"])
        for macs in self.macs:
            operations.add_row(
                f"W{macs.weight_bits}A{macs.activation_bits}",
                f"{macs.number:,}",
                f"{macs.bit_operations:,}",
            )
        operations.add_row(
            "all", f"{sum(each.number for each in self.macs):,}", f"{self.bit_operations:,}"
        )
        names = [each.name for each in self.storage if not each.reason]
        weights = _table("Bytes of the weights", ["layer", *names])
        for each in self.layers:
            if each.weight_bits:
                weights.add_row(each.layer, *(_number(each.bytes.get(name)) for name in names))
        storage = _table(
            "Bytes of the network", ["stored as", "weights", "file", "activations at their peak"]
        )
        reasons: dict[str, list[str]] = {}
        for way in self.storage:
            if way.reason:
                reasons.setdefault(way.reason, []).append(way.name)
            else:
                numbers = (way.weight_bytes, way.file_bytes, way.peak_activation_bytes)
                storage.add_row(way.name, *map(_number, numbers))
        lines = [f"no file of {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        return [layers, operations, weights, storage, *lines, *self.notes]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _number(value: int | None) -> str:
    return f"{value:,}" if value else ""


def summary(model: tf.keras.Model) -> SummaryReport:
    r"""Print and return what a network costs, layer by layer, for a single image.

    The companion of ``larq.models.summary``, which does not see activations that are quantized by
    layers of their own, nor files.

    - *MACs* (multiply-accumulates) are those of convolutions and dense layers, every position of
      the window counted, those over the padding included: the values of the kernel times the
      positions of the output (of the input, for transposed convolutions). Additions, pools, batch
      norms, biases and the roundings themselves count as none.
    - *Width* of a MAC is (weight bits, activation bits): "W1A2". Images have 8 bits, the pixels
      that the files read. A quantizer gives its width; pools by maximum, flattening, padding,
      dropout, ReLU, rescaling and concatenation hand on the (largest) width of their inputs;
      everything else, a sum or an average too, gives 32 bits until it is rounded.
    - *Bit operations* are :math:`\sum \text{MACs} \cdot b_w \cdot b_a`, the BOPs of HAWQ-V3 (Yao
      et al. 2021, arXiv 2011.10680).
    - *Declared bytes* are each parameter at its declared width, not rounded or packed: what
      ``larq.models.summary`` calls memory, except that Larq counts two values of a batch norm's
      four.
    - *Peak activation memory* of a file is the largest sum of computed tensors that one of its
      operations needs at once, beside those that later ones read: int8 where coded, four bytes
      where float. The interpreter's arena adds alignment. Of "float32" and "declared" it is the
      same over the layers of the model, in topological order, at four bytes or at the declared
      bits a value; batch norm, quantizers and activations write over their input when nothing else
      reads it.
    - *Files* are built in memory with the default arguments of :func:`dlqat_tf.export.to_tflite`
      (and ``weights="int4"``) and :func:`dlqat_tf.export.to_lce`, as they will be once every batch
      norm is trained. Ranges that the int8 file would take from calibration images are assumed.

    >>> report = dlqat_tf.summary(model)

    Args:
        model: Functional or Sequential model, trained or not; nested ones are flattened.

    Returns:
        The report, printed already. A file that cannot be written has no bytes but a reason.

    Raises:
        ExportError: The model is subclassed or was never built, so its layers are not connected.
    """
    report = predict(model)
    report.print()
    return report


def predict(model: tf.keras.Model, files: Iterable[str] = FILES) -> SummaryReport:
    """Return what :func:`summary` prints.

    Args:
        model: As there.
        files: Those to build, of :data:`FILES`.

    Raises:
        ExportError: As there.
    """
    check_graph(model, ExportError)
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        raise ExportError(
            "Expected inputs of a fixed size, since operations and memory depend on it. Received: "
            f"{[tuple(tensor.shape[1:]) for tensor in model.inputs]}. Build the model with "
            "tf.keras.Input((height, width, channels)) and load its weights."
        )
    walk = _Walk()
    sources = [walk.input(tensor) for tensor in model.inputs]
    walk.outputs = walk.model(model, sources, "")
    built, bytes_by_layer, assumed = _files(model, files)
    for name, sizes in bytes_by_layer.items():
        for layer in walk.layers:
            if layer.layer in sizes:
                layer.bytes[name] = sizes[layer.layer]
    storage = [
        StorageSummary(
            name,
            sum(layer.bytes[name] for layer in walk.layers),
            peak_activation_bytes=walk.peak(bits),
        )
        for name, bits in (("float32", _FLOAT_BITS), ("declared", None))
    ]
    return SummaryReport(
        model=model.name,
        layers=walk.layers,
        parameters=sum(layer.parameters for layer in walk.layers),
        trainable_parameters=sum(w.shape.num_elements() for w in model.trainable_weights),
        macs=_by_width(walk.layers),
        bit_operations=sum(macs.bit_operations for layer in walk.layers for macs in layer.macs),
        storage=storage + built,
        notes=walk.notes + assumed,
    )


@dataclass(eq=False)
class _Tensor:
    values: int
    bits: int

    def bytes(self, bits: int | None) -> int:
        """Return its size at ``bits`` a value, or at its own width."""
        return -(-self.values * (bits or self.bits) // 8)


class _Walk:
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


def _by_width(layers: list[LayerSummary]) -> list[Macs]:
    numbers: Counter[tuple[int, int]] = Counter()
    for layer in layers:
        for macs in layer.macs:
            numbers[macs.weight_bits, macs.activation_bits] += macs.number
    return [
        Macs(weight, activation, number, number * weight * activation)
        for (weight, activation), number in sorted(numbers.items())
    ]


def _files(
    model, files: Iterable[str]
) -> tuple[list[StorageSummary], dict[str, dict[str, int]], list[str]]:
    """Return what each export would write, its bytes by layer, and what was assumed for it."""

    def assume(network, names):
        return dict.fromkeys(names, _ASSUMED_RANGE)

    builders: dict[str, Callable[..., Any]] = {
        "int8": partial(tflite.build, calibrate=assume),
        "int4": partial(tflite.build, calibrate=assume, weights="int4"),
        "lce": lce.build,
    }
    builders = {name: builders[name] for name in files}
    if not builders:
        return [], {}, []
    try:
        network = _as_if_trained(lower(model))
    except ExportError as error:
        return [StorageSummary(name, reason=str(error)) for name in builders], {}, []
    found, by_layer, notes = [], {}, []
    for name, build in builders.items():
        try:
            file = build(network)
        except ExportError as error:
            found.append(StorageSummary(name, reason=str(error)))
            continue
        if file.warnings:  # a file that is no better than another one
            found.append(StorageSummary(name, reason=file.warnings[0]))
            continue
        content = count(file.data, f"{model.name}.tflite")
        by_layer[name] = {layer.layer: layer.bytes for layer in content.layers}
        found.append(
            StorageSummary(
                name,
                sum(by_layer[name].values()),
                content.file_bytes,
                content.peak_activation_bytes,
            )
        )
        if file.ranges:
            notes.append(
                "int8 kernels need calibration images, or residual_bits, for the ranges of "
                + ", ".join(file.ranges)
            )
    return found, by_layer, list(dict.fromkeys(notes))


def _as_if_trained(network: IntegerNetwork) -> IntegerNetwork:
    """Change the constants of batch norms and biases: files store equal ones only once."""
    generator = np.random.default_rng(0)
    nodes = []
    for node in network:
        if isinstance(node, Weighted) and node.bias_sources:
            node = replace(node, bias=node.bias + generator.normal(size=node.bias.shape))
            if node.step is not None:
                gain = generator.uniform(0.5, 1.5, node.step.shape)
                node = replace(node, step=np.asarray(node.step * gain, np.float32))
        nodes.append(node)
    return IntegerNetwork(tuple(nodes))
