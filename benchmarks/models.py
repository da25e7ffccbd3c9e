"""Whether the networks that people have become files: converted, trained, exported, compared.

Every family of Keras's own networks and the kinds that tutorials and papers show
(`benchmarks/networks.py`), with random weights, at several widths: `quantize`, a few steps of
training, `to_tflite`, and parity on images that training did not see. A row runs in a process of
its own and is written after each of these steps. What this commit has measured is not measured
again, so a run that was stopped goes on, and the table is gathered over several runs: it has every
row in the folder, with the commit that measured it.

    python benchmarks/models.py --output results/models.md

Exit status: 0 where every row is a file that its simulation equals, else 1.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from networks import NETWORKS, Network

import dlqat_tf
from dlqat_tf._host import check_folder, write_whole
from dlqat_tf._script import ending
from dlqat_tf.report import check_target
from dlqat_tf.training.results import environment

import tensorflow as tf  # isort: skip

_SHOWN = 160  # characters of an error in the table


@dataclass(frozen=True)
class Settings:
    """Networks that people have, converted and exported."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks to convert."""
    widths: tuple[tuple[int, int], ...] = ((8, 8), (1, 2), (4, 4), (2, 2))
    """Weight and activation bits."""
    steps: int = 8
    """Training steps, of 16 images each, after the conversion."""
    images: int = 64
    """Images that parity compares on."""
    minutes: float = 20.0
    """After which a row is given up."""
    rows: Path = Path("build/models")
    """Folder for what was measured; rows of this commit in it are not measured again."""
    again: bool = False
    """Measure rows of this commit too."""
    output: Path | None = None
    """Markdown file for the table of all rows in the folder."""


@dataclass(frozen=True)
class Row:
    """One network at one width.

    Attributes:
        network: Its name.
        widths: For example "W1A2".
        layers: Of the result of the conversion.
        quantized: Seconds of `quantize` with 64 images.
        exported: Seconds of `to_tflite`.
        compared: Seconds of `parity`.
        megabytes: Largest memory of the process.
        bytes: Of the file.
        float_share: Percentage of the multiply-accumulates that run in float islands.
        simulation_file: Percentage of equal decisions of integer simulation and file.
        keras_file: The same of the Keras model with the file's biases, and the file.
        trained_file: The same of the Keras model as trained, and the file.
        ties: Percentage of the file's decisions between scores that are equal up to float rounding.
        failure: What went wrong, and at which step; empty where nothing did.
        environment: What it ran on.
        unfinished: The step that it is at; empty in the end.
    """

    network: str
    widths: str
    layers: int = 0
    quantized: float = 0.0
    exported: float = 0.0
    compared: float = 0.0
    megabytes: int = 0
    bytes: int = 0
    float_share: float = 0.0
    simulation_file: float | None = None
    keras_file: float | None = None
    trained_file: float | None = None
    ties: float | None = None
    failure: str = ""
    environment: dict = field(default_factory=dict)
    unfinished: str = ""

    @property
    def commit(self) -> str:
        """Of the package that was measured."""
        return self.environment.get("commit") or "unknown"

    def write(self, path: Path) -> None:
        """Write it to a file."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def read(path: Path) -> Row:
    """Return the row of a file."""
    return Row(**json.loads(path.read_text()))


class _Steps:
    """Writes what a row says, step by step, so that a failure keeps what came before."""

    def __init__(self, network: str, widths: str, target: Path):
        self.row = Row(network, widths, environment=environment())
        self._began, self._target = 0.0, target

    def begin(self, step: str) -> None:
        self._began = time.perf_counter()
        self.done(unfinished=step)

    def done(self, seconds: str = "", **values) -> None:
        if seconds:
            values[seconds] = round(time.perf_counter() - self._began, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.row = dataclasses.replace(self.row, megabytes=peak, **values)
        self.row.write(self._target)

    def end(self, failure: str = "") -> None:
        self.done(failure=failure and f"{self.row.unfinished}: {failure}", unfinished="")


def measure(name: str, widths: tuple[int, int], steps: int, images: int, target: Path) -> None:
    """Measure one row and write it to a file."""
    taken = _Steps(name, _text(widths), target)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(taken, NETWORKS[name], widths, steps, images, Path(folder) / "model.tflite")
    except Exception as error:  # what went wrong is what is measured here
        taken.end(f"{type(error).__name__}: {' '.join(str(error).split())}")
    else:
        taken.end()


def _text(widths: tuple[int, int]) -> str:
    return f"W{widths[0]}A{widths[1]}"


def _measure(taken: _Steps, network: Network, widths, steps: int, images: int, path: Path) -> None:
    taken.begin("build")
    tf.keras.utils.set_random_seed(0)
    source = network.build()
    for layer in source.submodules:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.5  # 0.99 would need more steps than are made here
    inputs, labels = network.data(16 * steps + 64, seed=1)
    prepared = network.prepared(inputs)
    known = network.preprocessing in ("tf", "caffe", "torch")
    taken.begin("quantize")
    model, _ = dlqat_tf.quantize(
        source,
        *widths,
        head=network.head,
        images=[each[:64] for each in prepared],
        preprocessing=network.preprocessing if known else None,
    )
    taken.done("quantized", layers=len(model.layers))
    taken.begin("train")
    losses = [
        "mse"
        if np.issubdtype(each.dtype, np.floating)
        else tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for each in labels
    ]
    model.compile(tf.keras.optimizers.Adam(1e-3), losses)
    history = model.fit(prepared, labels, 16, steps_per_epoch=steps, verbose=0).history
    if not np.isfinite(history["loss"][-1]):
        raise ValueError(f"the loss is {history['loss'][-1]}")
    taken.begin("export")
    report = dlqat_tf.export.to_tflite(model, path)
    census = report.census
    taken.done(
        "exported",
        bytes=census.file_bytes,
        float_share=round(100 * sum(each.share for each in census.islands), 1),
    )
    taken.begin("parity")
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    unseen, labels = network.data(images, seed=2)
    classes = [None if np.issubdtype(each.dtype, np.floating) else each for each in labels]
    proof = dlqat_tf.export.parity(snapped, path, unseen, classes, trained=model)
    agreement = proof.agreement
    taken.done(
        "compared",
        ties=round(proof.ties, 2),
        **{pair: round(agreement[pair], 2) for pair in agreement if pair in vars(Row)},
    )
    if proof.first_diverging:
        raise ValueError(f"layer {proof.first_diverging} differs between simulation and file")


def run(settings: Settings) -> list[Row]:
    """Measure the rows that are missing; return those that were asked for."""
    if settings.output:
        check_target(settings.output, force=True)
    check_folder(settings.rows)
    settings.rows.mkdir(parents=True, exist_ok=True)
    commit = environment()["commit"] or "unknown"
    found = []
    for widths in settings.widths:
        for name in settings.networks:
            target = settings.rows / f"{name.replace(' ', '_')}.{_text(widths)}.json"
            row = read(target) if target.exists() else None
            if settings.again or row is None or row.unfinished or row.commit != commit:
                row = _measured(name, widths, settings, target)
            found.append(row)
            print(_line(row), flush=True)
            if settings.output:
                write_whole(settings.output, page(gathered(settings.rows), settings))
    return found


def _measured(name: str, widths: tuple[int, int], settings: Settings, target: Path) -> Row:
    """Measure a row in a process of its own, and give it up after a while."""
    arguments = (name, widths, settings.steps, settings.images, target)
    Row(name, _text(widths), environment=environment(), unfinished="start").write(target)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
    process.start()
    process.join(60 * settings.minutes)
    why = f"not done after {settings.minutes:g} minutes"
    if not process.is_alive():
        why = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    row = read(target)
    if row.unfinished:
        row = dataclasses.replace(row, failure=f"{row.unfinished}: {why}", unfinished="")
        row.write(target)
    return row


def gathered(folder: Path) -> list[Row]:
    """Return all rows in a folder that are finished, in the order of widths and networks."""
    widths, names = [_text(each) for each in Settings.widths], list(NETWORKS)

    def place(row: Row) -> tuple:
        of_widths = (widths.index(row.widths) if row.widths in widths else len(widths), row.widths)
        return *of_widths, names.index(row.network) if row.network in names else len(names)

    rows = [read(path) for path in sorted(folder.glob("*.json"))]
    return sorted((row for row in rows if not row.unfinished), key=place)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


_HEADINGS = (
    *("network", "widths", "layers", "quantize, s", "to_tflite, s", "parity, s", "MB of memory"),
    *("KB of file", "float MACs, %", "simulation = file", "snapped = file", "trained = file"),
    *("ties", "commit", "failure"),
)


def _line(row: Row) -> str:
    failure = row.failure if len(row.failure) < _SHOWN else row.failure[:_SHOWN] + " ..."
    cells = (
        *(row.network, row.widths, str(row.layers)),
        *(f"{each:.1f}" for each in (row.quantized, row.exported, row.compared)),
        *(str(row.megabytes), f"{row.bytes / 1000:.0f}", f"{row.float_share:.1f}"),
        *map(_percent, (row.simulation_file, row.keras_file, row.trained_file, row.ties)),
        row.commit,
        failure.replace("|", "/"),
    )
    return "| " + " | ".join(cells) + " |"


def page(rows: list[Row], settings: Settings) -> str:
    """Return the table and what a reader needs to place it."""
    devices = sorted({row.environment["device"] for row in rows})
    passed = sum(not row.failure for row in rows)
    return "\n".join(
        [
            "# Networks that people have",
            "",
            f"`python benchmarks/models.py` on {', '.join(devices)}; {passed} of {len(rows)} rows "
            "are files that their simulation equals.",
            "",
            f"Random weights, `quantize` with 64 images, {settings.steps} steps of training, "
            f"`to_tflite`, parity on {settings.images} other images: percent of equal decisions. "
            "Networks that have hardly been trained have no margins, so that a code of difference "
            "turns many of their decisions; decisions between equal scores are ties. The machine "
            "was shared: its seconds are upper bounds.",
            "",
            "| " + " | ".join(_HEADINGS) + " |",
            "|" + "---|" * len(_HEADINGS),
            *map(_line, rows),
            "",
        ]
    )


def main() -> int:
    """Measure and write."""
    settings = tyro.cli(Settings, description=__doc__)
    return 1 if any(row.failure for row in run(settings)) else 0


if __name__ == "__main__":
    with ending(interrupted="interrupted; the same command goes on"):
        sys.exit(main())
