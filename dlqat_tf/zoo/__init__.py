"""Small trained networks that come with the package, each with its proven files.

A network is a folder in ``networks/``: ``network.npz`` (:mod:`dlqat_tf.packed`), ``int8.tflite``,
``lce.tflite`` and ``entry.json``. ``dlqat zoo add`` or :func:`add` makes one of a finished run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from rich.table import Table

from dlqat_tf._host import write_whole
from dlqat_tf.export import ExportReport, parity, to_lce, to_tflite
from dlqat_tf.export.command import test_images
from dlqat_tf.export.integer.precision import in_float32
from dlqat_tf.loading import load_model
from dlqat_tf.packed import load_packed, save_packed
from dlqat_tf.report import Report
from dlqat_tf.training.recipe import read_recipe

__all__ = ["ZooEntry", "add", "entry", "file", "load", "names", "print_table"]

LARGEST = 1_000_000
"""Bytes of a packed network that the zoo takes."""
_NETWORKS = Path(__file__).parent / "networks"
_PACKED, _ENTRY = "network.npz", "entry.json"
_WRITERS: dict[str, Callable[..., ExportReport]] = {"int8": to_tflite, "lce": to_lce}
_PLACES = ("output", "data_dir", "float_stage", "teacher")  # of one machine


@dataclass(frozen=True)
class ZooEntry(Report):
    """What is known of a network.

    Attributes:
        name: What :func:`load` takes.
        accuracy: Top-1 in percent on the whole test set, of "keras" (the network), "int8" and
            "lce" (its files, run on the kernels of the host that added it).
        images: Number of test images.
        recipe: The settings it was trained with, but for the places of files.
        environment: Versions, commit and device of its training.
    """

    name: str
    accuracy: dict[str, float]
    images: int
    recipe: dict
    environment: dict

    def tables(self):
        return [_table([self])]


def names() -> tuple[str, ...]:
    """Return the names of all networks.

    >>> dlqat_tf.zoo.names()
    """
    return tuple(sorted(path.parent.name for path in _NETWORKS.glob(f"*/{_ENTRY}")))


def entry(name: str) -> ZooEntry:
    """Return what is known of a network.

    >>> dlqat_tf.zoo.entry("digits_w1a2").accuracy["int8"]

    Raises:
        ValueError: There is none of this name.
    """
    return ZooEntry(**json.loads((_folder(name) / _ENTRY).read_text()))


def load(name: str) -> tf.keras.Model:
    """Return a trained network, not compiled.

    Its weights are those of the training after rounding; the latent ones behind them lie in the
    middle of their levels.

    >>> model = dlqat_tf.zoo.load("digits_w1a2")

    Raises:
        ValueError: There is none of this name.
    """
    return load_packed(_folder(name) / _PACKED)


def file(name: str, kind: str = "int8") -> Path:
    """Return the path of a network's ``.tflite`` file.

    >>> dlqat_tf.export.census(dlqat_tf.zoo.file("digits_w1a2", "lce")).print()

    Args:
        name: Of the network.
        kind: "int8" for stock kernels, "lce" for those of Larq Compute Engine.

    Raises:
        ValueError: There is no network or no kind of this name.
    """
    if kind not in _WRITERS:
        raise ValueError(f"Expected kind to be one of {', '.join(_WRITERS)}. Received: {kind!r}.")
    return _folder(name) / f"{kind}.tflite"


def print_table() -> None:
    """Print all networks with their accuracies and sizes.

    >>> dlqat_tf.zoo.print_table()
    """
    from rich.console import Console

    Console().print(_table([entry(name) for name in names()]))


def add(run: str | Path, name: str, *, data_dir: str | Path | None = None) -> ZooEntry:
    """Make a network of the zoo of a finished run: pack it, export it, prove and measure the files.

    >>> dlqat_tf.zoo.add("runs/demo", "digits_w1a2")

    Args:
        run: Folder of the run.
        name: A new name, of letters, digits and underscores.
        data_dir: Where the recipe's data set lies; None for where the run found it.

    Returns:
        The new entry.

    Raises:
        ValueError: The name is taken or no name, the run is not finished, the packed network has
            more than a million bytes, a file does not compute what its snapped network computes, or
            its accuracy is not that of the trained network within 0.1 points.
        ExportError: The network cannot be exported.
        dlqat_tf.training.data.DataError: The test images cannot be read.
    """
    run, target = Path(run), _NETWORKS / name
    if not name.isidentifier() or target.exists():
        raise ValueError(
            "Expected a new name of letters, digits and underscores. Received: "
            f"{name!r}{', which is in the zoo' if target.exists() else ''}."
        )
    if not (run / "result.json").is_file():
        raise ValueError(f"Expected the folder of a finished run, found no {run / 'result.json'}.")
    recipe = read_recipe(run)
    result = json.loads((run / "result.json").read_text())
    trained = in_float32(load_model(run / "model.keras"))
    place = recipe.data_dir if data_dir is None else Path(data_dir)
    images, labels = test_images(recipe.dataset, place, trained.input_shape[1:], None)
    _NETWORKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_NETWORKS, prefix=".") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        save_packed(trained, folder / _PACKED)
        size = (folder / _PACKED).stat().st_size
        if size > LARGEST:
            raise ValueError(
                f"Expected a packed network of at most {LARGEST:,} bytes, got {size:,}."
            )
        model = load_packed(folder / _PACKED)
        accuracy: dict[str, float] = {}
        for kind, write in _WRITERS.items():
            path = folder / f"{kind}.tflite"
            snapped = path.with_suffix(".snapped.keras")
            write(model, path)
            report = parity(load_model(snapped), path, images, labels, trained=trained)
            # Where half of the predictions are wrong, many hang on single codes: what has to be
            # that of the trained network is the accuracy, and what is equal is the snapped one.
            missed = report.failures(trained_agreement=0.0)
            if missed:
                raise ValueError(f"The {kind} file is not proven: {'; '.join(missed)}.")
            accuracy |= {"keras": report.top1["trained"], kind: report.top1["file"]}
            snapped.unlink()
        settings = {key: each for key, each in recipe.plain().items() if key not in _PLACES}
        known = ("python", "versions", "commit", "device")
        environment = {key: result["environment"][key] for key in known}
        added = ZooEntry(name, accuracy, len(images), settings, environment)
        content = json.dumps(dataclasses.asdict(added), indent=2)
        write_whole(folder / _ENTRY, content + "\n")
        shutil.move(folder, target)
    return added


def _folder(name: str) -> Path:
    if name in names():
        return _NETWORKS / name
    close = difflib.get_close_matches(str(name), names(), n=2)
    raise ValueError(
        f"Expected one of the zoo's networks: {', '.join(names()) or 'it has none'}. Received: "
        f"{name!r}." + (f" Did you mean {' or '.join(close)}?" if close else "")
    )


def _table(entries: list[ZooEntry]) -> Table:
    table = Table(title="Networks", title_justify="left")
    for heading in ("network", "tested on"):
        table.add_column(heading, overflow="fold")
    for heading in ("Keras", "int8 file", "LCE file"):
        table.add_column(heading, justify="right")
    for each in entries:
        paths = {"keras": _NETWORKS / each.name / _PACKED}
        paths |= {kind: file(each.name, kind) for kind in _WRITERS}
        table.add_row(
            each.name,
            f"{each.images:,} images of {each.recipe['dataset']}",
            *(f"{each.accuracy[k]:.2f} %\n{p.stat().st_size:,} B" for k, p in paths.items()),
        )
    return table
