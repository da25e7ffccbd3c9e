"""Weights of one network for another: between stages, bit widths and file formats."""

from __future__ import annotations

import contextlib
import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from dlqat_tf._code import code_in
from dlqat_tf._compat import check_keras_2_file
from dlqat_tf._host import check_name, check_readable, reason_of
from dlqat_tf.graph import leaves, refresh
from dlqat_tf.report import Report

_NOT_OF_THE_MODEL = {"optimizer", "keras_api"}  # parts of checkpoint keys
_CLASSES = {name for name in dir(tf.keras.layers) if name[0].isupper()} - {"Layer", "Wrapper"}
_KERAS_NAMES = {name.lower() for name in _CLASSES}
_UNTOUCHED = 2.0**-100  # marks variables that a file did not set


@dataclass(frozen=True)
class LoadReport(Report):
    """What :func:`load_weights` did.

    Attributes:
        source: The file, or the name of the model.
        loaded: Names of the model's variables that have new values.
        kept: Why each of the others kept its value.
        unused: Names of the source's variables that no variable of the model took.
    """

    source: str
    loaded: list[str]
    kept: dict[str, str]
    unused: list[str]

    def tables(self):
        count = len(self.loaded)
        lines = [f"{self.source}: {count} of {count + len(self.kept)} variables loaded"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"kept, since {reason}: {_few(names)}" for reason, names in reasons.items()]
        if self.unused:
            lines.append(f"not used: {_few(self.unused)}")
        return lines


class ModelFileError(ValueError):
    """A file of a model cannot or must not be loaded; the message says what to do."""


def load_model(path: str | Path, *, trust: bool = False) -> tf.keras.Model:
    """Load a model, not compiled, from a file that may come from anybody.

    A ``.keras`` file is an archive of settings and weights, which are read and not run. A
    SavedModel, an HDF5 file (whatever its name) and a Lambda layer are code, and so is any object
    of a module that nobody imported and any operation that does not only compute: loading runs it.

    Args:
        path: A ``.keras`` file; with ``trust`` also an HDF5 file or the folder of a SavedModel.
        trust: Load code too.

    Raises:
        ModelFileError: The file is damaged or no model, or holds code without ``trust``.
        OSError: There is nothing at ``path``, or its name is not UTF-8.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise FileNotFoundError(f"Expected a .keras file, found nothing at {path}.")
    check_readable(path)
    check_keras_2_file(path, ModelFileError)
    if not trust:
        _refuse_code(path)
    try:
        return tf.keras.models.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # whatever a file that is something else leads to
        raise damaged(path, "Keras 2 model", error) from error


def damaged(path: Path, expected: str, error: Exception) -> ModelFileError:
    """Return what to say of a file whose settings or weights make no model."""
    return ModelFileError(
        f"{path} is damaged or no {expected}: {reason_of(error).rstrip('.')}. Layers of your own "
        "must be registered (tf.keras.utils.register_keras_serializable) and imported before."
    )


def _refuse_code(path: Path) -> None:
    """Raise where loading would run what is in the file."""
    # Keras too decides by both; whatever is not its archive goes to its older loaders.
    if path.suffix == ".keras" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
            kind = next(code_in(config), None)
        except Exception as error:  # whatever a damaged archive leads to
            raise ModelFileError(f"{path} is damaged ({error}): save the model again.") from None
    elif path.is_dir() and (path / "saved_model.pb").is_file():
        kind = "a SavedModel, whose operations can do anything"
    elif path.is_file() and h5py.is_hdf5(path):
        kind = "an HDF5 file, whose Lambda layers run as they are loaded"
    else:
        raise ModelFileError(
            f"{path} is damaged or no Keras 2 model: expected a .keras file, the folder of a "
            "SavedModel or an HDF5 file."
        )
    if kind:
        raise ModelFileError(
            f"{path} is {kind}. Expected a .keras file of layers that need no code of their own: "
            "save it as one, give --import MODULE (import it in Python) for a module of yours that "
            "registers them, or --trust (trust=True in Python) if you know who made it."
        )


def load_weights(
    model: tf.keras.Model,
    source: tf.keras.Model | str | Path,
    *,
    trust: bool = False,
    quiet: bool = False,
) -> LoadReport:
    """Load all weights that fit from a network of another stage, width or head.

    Variables match by name and shape. Layers that Keras named itself ("conv2d_3"), and those that
    conversion named after them ("conv2d_3_bn"), have other numbers in each model, so those match by
    their order, where both networks have as many of that name. What remains keeps its value, such
    as the ranges of quantizers that a float stage does not have; the report says so, and is printed
    if anything was kept or not used.

    A ``.weights.h5`` file has no names: its layers match by class and order.

    Between two widths that both round, Keras's own ``model.load_weights`` does the same, since
    widths are no variables.

    >>> report = dlqat_tf.load_weights(quantized, "runs/x/float/last.keras")

    Args:
        model: Network that is changed; it has to be built.
        source: Another network, or the path of a ``.keras`` or H5 file of a model or of weights, a
            SavedModel, a TensorFlow checkpoint (its prefix, or the folder whose latest is meant).
        trust: Also build the model of a ``.keras`` file with code in it, see :func:`load_model`.
            Of the other formats only values are read.
        quiet: Return the report without printing it.

    Returns:
        What was loaded, what was kept and why, and what was not used.

    Raises:
        OSError: There is nothing of these at ``source``, or its name is not UTF-8.
        ModelFileError: The file is damaged, or holds code without ``trust``.
        ValueError: No variable fits, or the model has none.
    """
    here, there = _variables(model), _read(model, source, trust)
    described = source.name if isinstance(source, tf.keras.Model) else str(source)
    matching = _Matching(model, here, there)
    kept, taken, values = {}, set(), {}
    for name, variable in here.items():
        counterpart, reason = matching.find(name)
        if counterpart is None:
            kept[name] = reason
        elif there[counterpart].shape != tuple(variable.shape):
            shape = there[counterpart].shape
            kept[name] = f"its shape is {tuple(variable.shape)} here and {shape} there"
        else:
            taken.add(counterpart)
            values[name] = there[counterpart]
    if not values:
        first = next((f" {name} is kept, since {reason}." for name, reason in kept.items()), "")
        raise ValueError(
            f"Expected {described} to have weights of {model.name!r}. Received: "
            f"{_some(there)}; the model has {_some(here)}.{first}"
        )
    for name, value in values.items():
        here[name].assign(value)
    refresh(model)
    report = LoadReport(
        described, list(values), kept, [name for name in there if name not in taken]
    )
    if not quiet and (report.kept or report.unused):
        report.print()
    return report


def _some(names) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown} and so on ({len(names)} in all)" if shown else "none"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more (in the report)" if len(names) > 6 else ""
    return ", ".join(names[:5] if more else names) + more


def _by_name(pairs: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return things by the layer and the end of a variable's name, later equal ones numbered.

    Args:
        pairs: Layer, name of its variable, and what is meant. What stands between (nested layers)
            and whether the layer is part of the name depends on how a model was built or loaded.
    """
    found: dict[str, Any] = {}
    for layer, name, thing in pairs:
        name = short = f"{layer}/{name.split(':')[0].split('/')[-1]}"
        count = 1
        while name in found:
            count += 1
            name = f"{short}#{count}"
        found[name] = thing
    return found


def _variables(model: tf.keras.Model) -> dict[str, tf.Variable]:
    return _by_name((leaf.name, each.name, each) for leaf in leaves(model) for each in leaf.weights)


def _values(model: tf.keras.Model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in _variables(model).items()}


def _read(model: tf.keras.Model, source, trust: bool) -> dict[str, np.ndarray]:
    """Return the source's variables by name."""
    if isinstance(source, tf.keras.Model):
        return _values(source)
    path = Path(source)
    check_name(path)
    if path.is_file() and h5py.is_hdf5(path):
        with _naming(path):
            return _read_h5(model, path)
    if path.is_file() and path.suffix == ".keras":
        return _values(load_model(path, trust=trust))
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        raise ModelFileError(f"{path} is damaged or no HDF5 file: save the weights again.")
    if (path / "saved_model.pb").is_file():
        with _naming(path):
            return _read_checkpoint(str(path / "variables" / "variables"))
    checkpoint = tf.train.latest_checkpoint(str(path)) if path.is_dir() else str(path)
    if checkpoint and Path(f"{checkpoint}.index").is_file():
        with _naming(path):
            return _read_checkpoint(checkpoint)
    raise FileNotFoundError(
        "Expected a .keras or .h5 file, a SavedModel or a TensorFlow checkpoint. Found none at "
        f"{path}."
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what its readers raise, which is anything up to IndexError."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error)
        raise ModelFileError(
            f"{path} is damaged or holds no weights ({reason}): save them again."
        ) from error


def _read_h5(model: tf.keras.Model, path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        groups = file.get("model_weights", file)  # the file of a model, or of weights only
        if "layer_names" in groups.attrs:
            return _by_name(
                # Nested models are one group, of variables that name their layers.
                (name.split("/")[0] if "/" in name else layer, name, np.asarray(value[name]))
                for layer, value in ((each, groups[each]) for each in groups.attrs["layer_names"])
                for name in value.attrs["weight_names"]
            )
        stored = []
        file.visit(lambda name: stored.append(name) if "/vars/" in name else None)
    # Keras 3's layout has no names, but numbers for each class: let Keras read it.
    twin = tf.keras.models.clone_model(model)
    for variable in twin.weights:
        variable.assign(tf.fill(variable.shape, tf.cast(_UNTOUCHED, variable.dtype)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what does not fit, which the report says
        twin.load_weights(path, skip_mismatch=True)
    found = {
        name: value
        for name, value in _values(twin).items()
        if not np.all(value == np.asarray(_UNTOUCHED, value.dtype))
    }
    rest = sum(name.startswith("layers/") for name in stored) - len(found)
    return found | {f"without a name/{i + 1}": np.empty(0) for i in range(rest)}


def _read_checkpoint(prefix: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(prefix)
    graph = TrackableObjectGraph.FromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return _by_name(
        (each.full_name.split("/")[0], each.full_name, reader.get_tensor(each.checkpoint_key))
        for node in _in_place(graph.nodes)
        for each in node.attributes
        if "/" in each.full_name and not _NOT_OF_THE_MODEL & set(each.checkpoint_key.split("/"))
    )


def _in_place(nodes) -> list:
    """Return the nodes of a checkpoint from the first on, those of nested models in their place."""
    found: dict[int, Any] = {}
    rest = [0]
    while rest:
        number = rest.pop()
        if number not in found:
            found[number] = nodes[number]
            rest += [child.node_id for child in reversed(nodes[number].children)]
    return list(found.values())


class _Matching:
    """Finds the counterpart of a variable's name, whatever numbers Keras gave to its layers."""

    def __init__(self, model: tf.keras.Model, here: Iterable[str], there: Iterable[str]):
        # Quantized layers keep the names of those that they replace.
        self._automatic = _KERAS_NAMES | {type(layer).__name__.lower() for layer in leaves(model)}
        self._here, self._there = self._numbers(here), self._numbers(there)
        self._by_key = {self._key(name, self._there): name for name in there}

    def find(self, name: str) -> tuple[str | None, str]:
        """Return the source's name, or None and why there is none."""
        base, _ = self._split(name)
        here, there = (len(numbers.get(base, ())) for numbers in (self._here, self._there))
        if here != there and there:
            return None, (
                f"the source has {there} layers that Keras named {base!r}, this model {here} (give "
                "them names of their own)"
            )
        return self._by_key.get(self._key(name, self._here)), "the source has none that fits"

    def _split(self, name: str) -> tuple[str, int | None]:
        """Return what a layer is called but for the number that Keras gave it, and that number.

        Of "conv2d_3" and "conv2d_3_bn" 3, of "conv2d" 0, of names that are not Keras's None.
        """
        layer = name.split("/")[0]
        words = layer.split("_")
        for end in range(len(words), 0, -1):
            if "".join(words[:end]) in self._automatic:
                numbered = words[end : end + 1] and words[end].isdigit()
                rest = words[end + 1 :] if numbered else words[end:]
                kind = "_".join(words[:end])
                base = "_".join([kind, "*", *rest]) if rest else kind
                return base, int(words[end]) if numbered else 0
        return layer, None

    def _numbers(self, names: Iterable[str]) -> dict[str, list[int]]:
        found: dict[str, set[int]] = {}
        for base, number in map(self._split, names):
            if number is not None:
                found.setdefault(base, set()).add(number)
        return {base: sorted(numbers) for base, numbers in found.items()}

    def _key(self, name: str, numbers: dict[str, list[int]]) -> tuple[str, int | None, str]:
        base, number = self._split(name)
        rank = None if number is None else numbers[base].index(number)
        return base, rank, name.split("/")[1]
