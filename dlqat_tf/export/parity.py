"""Proof that a file computes what was trained: Keras, the simulation and the file, compared."""

from __future__ import annotations

import contextlib
from numbers import Integral
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._progress import progress, say, steps
from dlqat_tf.export.agreement import Labels, compared, labels_of, mean_of
from dlqat_tf.export.constants import plan_of, types_of
from dlqat_tf.export.files import flatbuffer, lce
from dlqat_tf.export.files.inputs import Images, arrays_of, for_file, for_keras, zero_point
from dlqat_tf.export.files.record import read_record
from dlqat_tf.export.integer.adapted import adapted
from dlqat_tf.export.integer.endings import with_endings
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.inputs import preprocessing_before
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Node
from dlqat_tf.export.integer.precision import in_float32
from dlqat_tf.export.integer.simulate import FLOAT_TOLERANCE, Simulation, batches
from dlqat_tf.export.parity_report import LayerParity, ParityReport
from dlqat_tf.export.runtimes import web
from dlqat_tf.export.runtimes.choice import chosen
from dlqat_tf.export.runtimes.float_nodes import FloatNodes
from dlqat_tf.export.runtimes.host import kernels_of, runner
from dlqat_tf.float_part import FloatPart
from dlqat_tf.graph import check_graph

_RECORDED = {"inputs", "batch_size", "int4", "floats", "kernels", "plane_limit", "target"}
_RECORDED |= {"ranges", "layers", "endings"}


@progress("parity")
def parity(
    model: tf.keras.Model,
    path: str | Path,
    images: Images,
    labels: Labels = None,
    *,
    trained: tf.keras.Model | None = None,
    runtime: str | None = None,
    layer_images: int = 16,
    batch_size: int = 64,
) -> ParityReport:
    """Compare a file with the Keras model that it was exported from.

    Keras models run in float32, whatever policy they were trained under.

    Args:
        model: The model, or better the snapped one that export saved beside the file: that one has
            the file's biases.
        path: A .tflite file that export wrote.
        images: uint8 pixels, or float as the model takes them (pixels / 255 too where it prepares
            pixels itself), (images, height, width, channels), or the values of an input that is no
            image; for a model of several inputs a list of such arrays, or a dictionary by input
            name.
        labels: Class of each image, for accuracies; for several outputs a list of such arrays,
            None for those without, or a dictionary by output name.
        trained: The model as trained, where ``model`` is the snapped one, to compare with too.
        runtime: What runs the file, and whose rounding the simulation has: "tflite", on this host
            with XNNPACK (Larq Compute Engine where the file has its operations); "builtin", TFLite
            without XNNPACK; "micro", TFLite Micro (the extra ``micro``); "compiled_model", LiteRT's
            newer interface (the extra ``litert``); or "web", LiteRT.js in a headless browser
            (:mod:`dlqat_tf.export.runtimes.web`). Layers agree on all of them, the Keras model and
            the file best on what the file was exported for: None stands for "tflite" or "builtin",
            whichever that is.
        layer_images: How many images the comparison layer by layer takes.
        batch_size: Images that run at once; of the file as many as it is fixed to, one by default.

    Raises:
        ExportError: The file is not such a file or not of this model, arguments do not fit, or the
            runtime is not installed or refuses the file.
    """
    for name, value in dict(layer_images=layer_images, batch_size=batch_size).items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ExportError(f"Expected {name} of at least 1. Received: {value!r}.")
    content = flatbuffer.read(path)
    record = _record(content, path)
    runtime = chosen(runtime, content, record["kernels"], path)
    say("reads the model and plans its file")
    model = _as_recorded(model, record, path)
    network = lower(model)
    images = arrays_of(images, network)
    batch_size = min(batch_size, len(images[0]))  # the rest of a batch would be filled with zeros
    names = list(model.output_names)
    of_outputs = labels_of(labels, names)
    planned, other_constants = plan_of(content, record, network, path)
    models = {"keras": model}
    if trained is not None:
        trained = _as_recorded(trained, record, path)
        models = {"trained": trained, **models}
        _, others = plan_of(content, record, lower(trained), path)
        other_constants = list(dict.fromkeys(other_constants + others))
    simulation = _simulation(planned, content, record, runtime)
    feed = for_file(planned, types_of(record, network))
    some = list(batches(images, batch_size))
    with _runner(runtime, content, batch_size, feed, path) as run:
        of_file = _concatenated(map(run, steps("the file on images, batch", some)))
    values = {
        **{name: _of_keras(name, each, network, some) for name, each in models.items()},
        "simulation": simulation.outputs(images, batch_size),
        "file": of_file,
    }
    first = next(batches(images, layer_images))
    layers = _layers(simulation, first, _recorded(content, simulation, first, runtime, feed, path))
    pairs = [("keras", "file"), ("keras", "simulation"), ("simulation", "file")]
    pairs = ([("trained", "file"), ("trained", "keras")] if trained is not None else []) + pairs
    borders = [0.5 if node.ending == "sigmoid" else 0.0 for node in network.outputs]
    outputs = [
        compared(name, {form: each[i] for form, each in values.items()}, pairs, of_output, border)
        for i, (name, of_output, border) in enumerate(zip(names, of_outputs, borders, strict=True))
    ]
    return ParityReport(
        path=str(path),
        kernels=web.version() if runtime == "web" else kernels_of(content, runtime),
        images=len(images[0]),
        top1=mean_of(outputs),
        agreement={
            pair: min(each.agreement[pair] for each in outputs) for pair in outputs[0].agreement
        },
        logit_difference={
            pair: max(each.difference[pair] for each in outputs) for pair in outputs[0].difference
        },
        layers=layers,
        first_diverging=next((each.layer for each in layers if each.differing), None),
        other_constants=other_constants,
        outputs=outputs,
        ties=max(each.ties for each in outputs),
    )


def _simulation(planned: IntegerNetwork, content, record: dict, runtime: str) -> Simulation:
    """Return what simulates a file as its runtime rounds, with the kernels that run its floats."""
    binarized = flatbuffer.is_binarized(content)
    run_part = lce.PartRunner() if binarized else FloatPart.run
    run_node = FloatNodes(
        planned, record["batch_size"], record["kernels"], runtime, binarized=binarized
    )
    # A browser for each node would take minutes.
    return Simulation(planned, run_part, runtime, None if runtime == "web" else run_node)


def _of_keras(name: str, model: tf.keras.Model, network: IntegerNetwork, some: list):
    """Return the values of each output of a Keras model, in float32, those of all batches."""
    model = in_float32(model)
    return _concatenated(
        tf.nest.flatten(model.predict_on_batch(for_keras(batch, network)))
        for batch in steps(f"Keras ({name}) on images, batch", some)
    )


def _concatenated(batches) -> list[np.ndarray]:
    """Return the values of each output, those of all batches together."""
    return [np.concatenate(each) for each in zip(*batches, strict=True)]


def check_runtime(path: str | Path, runtime: str | None) -> None:
    """Say before the long work what :func:`parity` would of a file and a runtime.

    Raises:
        ExportError: The file is not such a file, or the runtime is not there or refuses it.
    """
    content = flatbuffer.read(path)
    chosen(runtime, content, _record(content, path)["kernels"], path)


def as_exported(model: tf.keras.Model, path: str | Path) -> tf.keras.Model:
    """Return a model, or a copy that takes the size of a file, and is told its preprocessing.

    Args:
        model: The model that a file was exported from, or the snapped one.
        path: The file.

    Raises:
        ExportError: The file is not such a file, or not of this model.
    """
    return _as_recorded(model, _record(flatbuffer.read(path), path), path)


def _record(content, path) -> dict:
    """Return what export recorded in a file."""
    record = read_record(content, path)
    if record is None:
        raise ExportError(f"{path} was not written by this package, so its codes have no meaning.")
    if not record.keys() >= _RECORDED:
        raise ExportError(f"{path} is of another version of this package: export it again.")
    return record


def _as_recorded(model: tf.keras.Model, record: dict, path) -> tf.keras.Model:
    check_graph(model, ExportError)
    if len(record["inputs"]) != len(model.inputs):
        raise ExportError(
            f"{path} was exported from another model: it has {len(record['inputs'])} inputs, the "
            f"model {len(model.inputs)}."
        )
    sizes, preprocessing = {}, {}
    for tensor, each in zip(model.inputs, record["inputs"], strict=True):
        layer, shape = tensor.node.layer, tuple(tensor.shape[1:])
        if None in shape and len(shape) == len(each["shape"]):
            pairs = zip(shape, each["shape"], strict=True)
            sizes[layer.name] = [size for free, size in pairs if free is None]
        if preprocessing_before(layer, shape) is None and each["preprocessing"]:
            preprocessing[layer.name] = each["preprocessing"]
    if len(record["endings"]) != len(model.outputs):
        raise ExportError(
            f"{path} was exported from another model: it has {len(record['endings'])} outputs, the "
            f"model {len(model.outputs)}."
        )
    model = with_endings(model, record["endings"])
    return adapted(model, size=sizes or None, preprocessing=preprocessing or None)


def _rectified(readers: list[Node]) -> bool:
    """Return whether the file may clip a float value at 0 before the one activation rounds it."""
    return len(readers) == 1 and isinstance(readers[0], Activation) and readers[0].grid.lowest == 0


def _runner(runtime: str, content, batch_size: int, feed, path):
    """Return a context that gives what runs a file; several batches share a browser."""
    if runtime == "web":
        return web.runner(content, feed, path)
    return contextlib.nullcontext(runner(content, batch_size, feed, path, runtime))


def _recorded(content, simulation: Simulation, images: list[np.ndarray], runtime: str, feed, path):
    """Return what the file computes at each node that it has a tensor of, by the node's name."""
    graph = content.subgraphs[0]
    nodes = simulation.network.nodes[len(simulation.network.inputs) :]
    names = [tensor.name.decode() for tensor in graph.tensors]
    computed = {int(output) for operator in graph.operators for output in operator.outputs}
    at = {
        node.name: names.index(node.name)
        for node in nodes
        if node.name in names and names.index(node.name) in computed
    }
    outputs = graph.outputs
    graph.outputs = np.array(list(at.values()), np.int32)
    with _runner(runtime, content, len(images[0]), feed, path) as run:
        recorded = dict(zip(at, run(images), strict=True))
    graph.outputs = outputs
    return recorded


def _layers(simulation: Simulation, images: list[np.ndarray], recorded: dict[str, np.ndarray]):
    """Compare each layer's output, the simulation given the file's own inputs."""
    inputs = simulation.network.inputs
    nodes = simulation.network.nodes[len(inputs) :]
    values = {
        node.name: each if node.preprocessing is None else each.astype(np.int32)
        for node, each in zip(inputs, images, strict=True)
    }
    readers = simulation.network.consumers()
    found = []
    for node in steps("the file and the simulation, layer", nodes):
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
        bound = 0 if grid else FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1e-30)
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
