"""What a network costs: bits, parameters, operations, memory, and the size of each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.costs import LayerSummary, Macs, Walk
from dlqat_tf.export.files import lce, tflite
from dlqat_tf.export.files.census import count
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.kernels import DEPTHWISE
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Weighted
from dlqat_tf.graph import check_graph
from dlqat_tf.report import Report

FILES = ("int8", "int4", "lce")
_ASSUMED_RANGE = (-8.0, 8.0)  # which one it is does not change a file's size


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
    walk = Walk()
    sources = [walk.input(tensor) for tensor in model.inputs]
    walk.outputs = walk.model(model, sources, "")
    built, bytes_by_layer, assumed = _files(model, files)
    for name, sizes in bytes_by_layer.items():
        for layer in walk.layers:
            parts = [each for each in (layer.layer, layer.layer + DEPTHWISE) if each in sizes]
            if parts:
                layer.bytes[name] = sum(sizes[each] for each in parts)
    storage = [
        StorageSummary(
            name,
            sum(layer.bytes[name] for layer in walk.layers),
            peak_activation_bytes=walk.peak(bits),
        )
        for name, bits in (("float32", 32), ("declared", None))
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
    """Change the constants of batch norms and biases: files store equal ones only once.

    Calls of a layer that share these go on sharing them.
    """
    generator = np.random.default_rng(0)
    nodes, moves = [], {}
    for node in network:
        if isinstance(node, Weighted) and node.bias_sources:
            if node.bias_sources not in moves:
                moves[node.bias_sources] = (
                    generator.normal(size=node.bias.shape),
                    generator.uniform(0.5, 1.5, node.bias.shape),
                )
            offset, gain = moves[node.bias_sources]
            node = replace(node, bias=node.bias + offset)
            if node.step is not None:
                node = replace(node, step=np.asarray(node.step * gain, np.float32))
        nodes.append(node)
    return IntegerNetwork(tuple(nodes))
