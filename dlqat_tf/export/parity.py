"""Proof that a file computes what the Keras model computes: both, and the simulation, compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.table import Table
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._compat import tflite_interpreter
from dlqat_tf.export import flatbuffer
from dlqat_tf.export.census import METADATA, operator_name
from dlqat_tf.export.lower import lower
from dlqat_tf.export.network import Activation, ExportError, IntegerNetwork, Node, Weighted
from dlqat_tf.export.plan import plan
from dlqat_tf.export.simulate import Simulation, batches
from dlqat_tf.export.tflite import Images, pixels
from dlqat_tf.export.writer import zero_point
from dlqat_tf.report import Report

_FLOAT_TOLERANCE = 1e-5  # of the largest value of a float layer, for sums in another order


@dataclass(frozen=True)
class LayerParity:
    """One layer of the file against the simulation, both given the file's inputs of that layer.

    Attributes:
        layer: Name of the node whose output it is.
        values: How many outputs were compared.
        differing: How many differ: codes that are not equal, floats beyond 1e-5 of the largest.
        largest: Largest difference, in codes where the layer is coded.
    """

    layer: str
    values: int
    differing: int
    largest: float


@dataclass(frozen=True)
class ParityReport(Report):
    """Agreement of Keras model, integer simulation and file.

    Attributes:
        path: The file.
        kernels: What ran the file.
        images: Number of images.
        top1: Accuracy in percent of "keras", "simulation" and "file"; empty without labels.
        agreement: Percentage of equal arg-maxes, of each pair.
        logit_difference: Largest absolute difference of logits between simulation and file, and
            between Keras and file after both are centred and scaled to unit length per image
            (files drop the factor and offset that do not change the arg-max).
        layers: Each layer given the same input, on the first images.
        first_diverging: First layer with a differing value, or None.
    """

    path: str
    kernels: str
    images: int
    top1: dict[str, float]
    agreement: dict[str, float]
    logit_difference: dict[str, float]
    layers: list[LayerParity]
    first_diverging: str | None

    def failures(
        self, *, keras_agreement: float = 99.5, file_agreement: float = 100.0, accuracy: float = 0.1
    ) -> list[str]:
        """Return what misses the bounds, nothing where all is well.

        Args:
            keras_agreement: Least percentage of arg-maxes that Keras and the file share.
            file_agreement: The same for simulation and file; layers must not differ at all where
                it is 100.
            accuracy: Largest difference of top-1 between Keras and file, in points.
        """
        found = []
        bounds = {"keras_file": keras_agreement, "simulation_file": file_agreement}
        for pair, bound in bounds.items():
            if self.agreement[pair] < bound:
                names = " and ".join(pair.split("_"))
                found.append(f"{names} agree on {self.agreement[pair]:.2f} %, expected {bound} %")
        if file_agreement == 100.0 and self.first_diverging:
            found.append(f"layer {self.first_diverging} differs between simulation and file")
        if self.top1 and abs(self.top1["keras"] - self.top1["file"]) > accuracy:
            found.append(
                f"accuracy is {self.top1['keras']:.2f} % in Keras and {self.top1['file']:.2f} % in "
                f"the file, expected at most {accuracy} points between them"
            )
        return found

    def tables(self):
        summary = Table(title=f"{self.path}, {self.images} images", title_justify="left")
        summary.add_column("pair")
        summary.add_column("equal arg-max", justify="right")
        summary.add_column("largest logit difference", justify="right")
        for pair, percent in self.agreement.items():
            difference = self.logit_difference.get(pair)
            shown = "" if difference is None else f"{difference:.2g}"
            summary.add_row(pair.replace("_", " - "), f"{percent:.2f} %", shown)
        layers = Table(title="Layers given the same input", title_justify="left")
        layers.add_column("layer", overflow="fold")
        for column in ("values", "differing", "largest"):
            layers.add_column(column, justify="right")
        for each in self.layers:
            layers.add_row(
                each.layer, f"{each.values:,}", f"{each.differing:,}", f"{each.largest:.2g}"
            )
        accuracy = ", ".join(f"{name} {percent:.2f} %" for name, percent in self.top1.items())
        return [
            summary,
            layers,
            f"first diverging layer: {self.first_diverging or 'none'}",
            *([f"top-1: {accuracy}"] if accuracy else []),
            f"kernels: {self.kernels}",
        ]


def parity(
    model: tf.keras.Model,
    path: str | Path,
    images: Images,
    labels: np.ndarray | None = None,
    *,
    layer_images: int = 16,
    batch_size: int = 64,
) -> ParityReport:
    """Compare a file with the Keras model that it was exported from.

    Args:
        model: The model, or better the snapped one that export saved beside the file: that one has
            the file's biases.
        path: A .tflite file that export wrote.
        images: uint8, or float in [0, 1], (images, height, width, channels); for a model of
            several inputs a list of such arrays, or a dictionary by input name.
        labels: Class of each image, for accuracies.
        layer_images: How many images the comparison layer by layer takes.
        batch_size: Images that run at once.

    Raises:
        ExportError: The file is not such a file or not of this model, or arguments do not fit.
    """
    content = flatbuffer.read(path)
    record = flatbuffer.metadata(content, METADATA)
    if record is None:
        raise ExportError(f"{path} was not written by this package, so its codes have no meaning.")
    record = json.loads(record)
    network = lower(model)
    images = pixels(images, network)
    count = len(images[0])
    if labels is not None and len(labels) != count:
        raise ExportError(f"Expected {count} labels. Received: {len(labels)}.")
    planned = plan(
        network,
        calibrate=(lambda *_: record["ranges"]) if record["ranges"] else None,
        plane_limit=record["plane_limit"],
        int4=record["int4"],
        clear=record["clear"],
    )
    _check_same(content, record, planned, path)
    simulation = Simulation(planned)
    run = runner(content, batch_size, record["input_type"])
    logits = {
        "keras": _concatenated(
            model.predict_on_batch(_for_keras(batch, network))
            for batch in batches(images, batch_size)
        ),
        "simulation": simulation.logits(images, batch_size),
        "file": _concatenated(run(batch)[0] for batch in batches(images, batch_size)),
    }
    best = {name: each.argmax(-1).reshape(count, -1) for name, each in logits.items()}
    pairs = (("keras", "file"), ("keras", "simulation"), ("simulation", "file"))
    layers = _layers(content, record, simulation, next(batches(images, layer_images)))
    unit = {name: _normalised(each) for name, each in logits.items()}
    return ParityReport(
        path=str(path),
        kernels=kernels_of(content),
        images=count,
        top1={}
        if labels is None
        else {
            name: 100.0 * float(np.mean(each == np.reshape(labels, (count, -1))))
            for name, each in best.items()
        },
        agreement={
            f"{a}_{b}": 100.0 * float(np.mean(np.all(best[a] == best[b], axis=-1)))
            for a, b in pairs
        },
        logit_difference={
            "keras_file": float(np.abs(unit["keras"] - unit["file"]).max()),
            "simulation_file": float(np.abs(logits["simulation"] - logits["file"]).max()),
        },
        layers=layers,
        first_diverging=next((each.layer for each in layers if each.differing), None),
    )


def _concatenated(batches) -> np.ndarray:
    return np.concatenate(list(batches))


def _for_keras(images: list[np.ndarray], network: IntegerNetwork):
    """Return pixels as the Keras model takes them."""
    scaled = [
        each.astype(np.float32) / np.float32(1 if node.raw else 255)
        for each, node in zip(images, network.inputs, strict=True)
    ]
    return scaled if len(scaled) > 1 else scaled[0]


def _normalised(logits: np.ndarray) -> np.ndarray:
    centred = logits.astype(np.float64) - logits.mean(axis=-1, keepdims=True, dtype=np.float64)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)


def _check_same(content, record: dict, planned: IntegerNetwork, path) -> None:
    """Raise where the file holds other layers than the model."""
    stored = [layer["name"] for layer in record["layers"]]
    expected = [node.name for node in planned if isinstance(node, Weighted)]
    if sorted(stored) != sorted(expected):
        other = sorted(set(stored) ^ set(expected))
        raise ExportError(
            f"{path} was exported from another model: only one of the two has the layers "
            f"{', '.join(other[:5])}."
        )


def is_binarized(content: schema.ModelT) -> bool:
    """Return whether a file has operations of Larq Compute Engine."""
    names = {operator_name(content, each) for each in content.subgraphs[0].operators}
    return any(name.startswith("Lce") for name in names)


def kernels_of(content: schema.ModelT) -> str:
    """Return what runs a file here."""
    if is_binarized(content):
        return "Larq Compute Engine with XNNPACK, on this host's kernels"
    types = {tensor.type for tensor in content.subgraphs[0].tensors}
    if schema.TensorType.INT4 in types:
        return f"TFLite {tf.__version__}: int4 convolutions built in, the rest XNNPACK"
    return f"TFLite {tf.__version__} with XNNPACK"


def runner(content: schema.ModelT, batch_size: int, input_type: str = "uint8"):
    """Return a function from lists of inputs to lists of outputs.

    Its inputs are uint8 images, at most ``batch_size`` of them, one array for each input.
    """
    shapes = [tensor.shape for tensor in content.subgraphs[0].tensors]
    for tensor in content.subgraphs[0].tensors:
        if tensor.shapeSignature is not None and tensor.shapeSignature[0] == -1:
            tensor.shape = np.array([batch_size, *tensor.shape[1:]], np.int32)
    data = flatbuffer.packed(content)
    for tensor, shape in zip(content.subgraphs[0].tensors, shapes, strict=True):
        tensor.shape = shape
    if is_binarized(content):
        from dlqat_tf.export.lce import open_interpreter

        interpreter = open_interpreter(data)

        def invoke(images):
            return interpreter.predict(images)

    else:
        interpreter = tflite_interpreter(data, num_threads=2)

        def invoke(images):
            for index, each in zip(content.subgraphs[0].inputs, images, strict=True):
                interpreter.set_tensor(int(index), each)
            interpreter.invoke()
            return [interpreter.get_tensor(int(i)) for i in content.subgraphs[0].outputs]

    def filled(images: np.ndarray) -> np.ndarray:
        missing = np.zeros((batch_size - len(images), *images.shape[1:]), np.uint8)
        images = np.concatenate([images, missing])
        if input_type == "int8":
            return (images.astype(np.int16) - 128).astype(np.int8)
        if input_type == "float32":
            return images.astype(np.float32) / np.float32(255)
        return images

    def run(images: list[np.ndarray]) -> list[np.ndarray]:
        return [output[: len(images[0])] for output in invoke([filled(each) for each in images])]

    return run


def _rectified(readers: list[Node]) -> bool:
    """Return whether the file may clip a float value at 0 before the one activation rounds it."""
    return len(readers) == 1 and isinstance(readers[0], Activation) and readers[0].grid.lowest == 0


def _layers(content, record: dict, simulation: Simulation, images: list[np.ndarray]):
    """Compare each layer's output, the simulation given the file's own inputs."""
    graph = content.subgraphs[0]
    inputs = simulation.network.inputs
    nodes = simulation.network.nodes[len(inputs) :]
    names = [tensor.name.decode() for tensor in graph.tensors]
    computed = {int(operator.outputs[0]) for operator in graph.operators}
    at = {
        node.name: names.index(node.name)
        for node in nodes
        if node.name in names and names.index(node.name) in computed
    }
    outputs = graph.outputs
    graph.outputs = np.array(list(at.values()), np.int32)
    recorded = dict(
        zip(at, runner(content, len(images[0]), record["input_type"])(images), strict=True)
    )
    graph.outputs = outputs

    values = {node.name: each.astype(np.int32) for node, each in zip(inputs, images, strict=True)}
    readers = simulation.network.consumers()
    found = []
    for node in nodes:
        expected = simulation.evaluate(node, [values[name] for name in node.inputs])
        if node.name not in recorded:
            values[node.name] = expected  # fused into the activation that follows
            continue
        grid, actual = simulation.grids[node.name], recorded[node.name]
        if grid:
            actual = actual.astype(np.int32) - zero_point(grid)
        elif _rectified(readers[node.name]):
            actual, expected = np.maximum(actual, 0), np.maximum(expected, 0)
        difference = np.abs(actual.astype(np.float64) - expected)
        bound = 0 if grid else _FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1e-30)
        found.append(
            LayerParity(
                layer=node.name,
                values=int(difference.size),
                differing=int(np.sum(difference > bound)),
                largest=float(difference.max()),
            )
        )
        values[node.name] = actual
    return found
