"""Whether the networks that people have become files: converted, trained, exported, compared.

Every family of Keras's own networks and the kinds that tutorials and papers show
(`benchmarks/networks.py`), with random weights, at several widths: `quantize`, a few steps of
training, `to_tflite`, and parity on images that training did not see. A row runs in a process of
its own; what was measured before is kept, so a run that was stopped goes on.

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
from dlqat_tf._host import write_whole
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
    """Folder for what was measured; rows in it are not measured again."""
    output: Path | None = None
    """Markdown file for the table."""


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
        failure: What went wrong, and at which step; empty where nothing did.
        environment: What it ran on.
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
    failure: str = ""
    environment: dict = field(default_factory=dict)


class _Steps:
    """Collects what a row says, step by step, so that a failure keeps what came before."""

    def __init__(self, network: str, widths: str):
        self.row = Row(network, widths, environment=environment())
        self._began = 0.0

    def begin(self, step: str) -> None:
        self.step, self._began = step, time.perf_counter()

    def done(self, seconds: str = "", **values) -> None:
        if seconds:
            values[seconds] = round(time.perf_counter() - self._began, 2)
        self.row = dataclasses.replace(self.row, **values)


def measure(name: str, widths: tuple[int, int], steps: int, images: int, target: Path) -> None:
    """Measure one row and write it to a file."""
    taken = _Steps(name, f"W{widths[0]}A{widths[1]}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(taken, NETWORKS[name], widths, steps, images, Path(folder) / "model.tflite")
    except Exception as error:  # what went wrong is what is measured here
        said = " ".join(str(error).split())
        taken.done(failure=f"{taken.step}: {type(error).__name__}: {said}")
    taken.done(megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    write_whole(target, json.dumps(dataclasses.asdict(taken.row), indent=2) + "\n")


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
        "compared", **{pair: round(agreement[pair], 2) for pair in agreement if pair in vars(Row)}
    )
    if proof.first_diverging:
        raise ValueError(f"layer {proof.first_diverging} differs between simulation and file")


def rows_of(settings: Settings) -> list[Row]:
    """Measure the rows that are missing; return all."""
    settings.rows.mkdir(parents=True, exist_ok=True)
    started = multiprocessing.get_context("spawn")
    found = []
    for widths in settings.widths:
        for name in settings.networks:
            text = f"W{widths[0]}A{widths[1]}"
            target = settings.rows / f"{name.replace(' ', '_')}.{text}.json"
            if not target.exists():
                arguments = (name, widths, settings.steps, settings.images, target)
                process = started.Process(target=measure, args=arguments)
                process.start()
                process.join(60 * settings.minutes)
                stopped = process.is_alive()
                process.kill()
                process.join()
                if not target.exists():
                    why = f"not done after {settings.minutes:g} minutes"
                    why = why if stopped else f"the process ended with {process.exitcode}"
                    row = Row(name, text, failure=why, environment=environment())
                    write_whole(target, json.dumps(dataclasses.asdict(row), indent=2) + "\n")
            row = Row(**json.loads(target.read_text()))
            found.append(row)
            print(_line(row), flush=True)
            if settings.output:
                write_whole(settings.output, page(found, settings))
    return found


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


_HEADINGS = (
    *("network", "widths", "layers", "quantize, s", "to_tflite, s", "parity, s", "MB of memory"),
    *("KB of file", "float MACs, %", "simulation = file", "snapped = file", "trained = file"),
    "failure",
)


def _line(row: Row) -> str:
    failure = row.failure if len(row.failure) < _SHOWN else row.failure[:_SHOWN] + " ..."
    cells = (
        *(row.network, row.widths, str(row.layers)),
        *(f"{each:.1f}" for each in (row.quantized, row.exported, row.compared)),
        *(str(row.megabytes), f"{row.bytes / 1000:.0f}", f"{row.float_share:.1f}"),
        *map(_percent, (row.simulation_file, row.keras_file, row.trained_file)),
        failure.replace("|", "/"),
    )
    return "| " + " | ".join(cells) + " |"


def page(rows: list[Row], settings: Settings) -> str:
    """Return the table and what a reader needs to place it."""
    first = rows[0].environment
    commits = sorted({row.environment["commit"] or "unknown" for row in rows})
    passed = sum(not row.failure for row in rows)
    return "\n".join(
        [
            "# Networks that people have",
            "",
            f"`{' '.join(['python', *sys.argv])}` on {first['device']}, commits "
            f"{', '.join(commits)}; {passed} of {len(rows)} rows are files that their simulation "
            "equals.",
            "",
            f"Random weights, `quantize` with 64 images, {settings.steps} steps of training, "
            f"`to_tflite`, parity on {settings.images} other images: percent of equal decisions. "
            "Networks that have hardly been trained have no margins, so that a code of difference "
            "turns many of their decisions. The machine was shared: its seconds are upper bounds.",
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
    return 1 if any(row.failure for row in rows_of(settings)) else 0


if __name__ == "__main__":
    sys.exit(main())
