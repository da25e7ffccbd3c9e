"""Whether the binary networks of Larq's zoo become files, beside Larq's own converter.

Random weights and a few steps of training, then `to_lce`, `to_tflite` and the converter of Larq
Compute Engine on the same network: bytes, and the decisions that equal Keras's on images that
training did not see. A row runs in a process of its own; what was measured before is kept.

    pip install --no-deps larq-zoo zookeeper
    python benchmarks/zoo_of_larq.py --output results/larq_zoo.md

(With its dependencies larq-zoo wants an older protobuf than TensorFlow.) Exit status: 0 where both
files of every network equal their simulation, else 1.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from networks import CLASSES, Network

import dlqat_tf
from dlqat_tf._host import check_folder, write_whole
from dlqat_tf._script import ending
from dlqat_tf.report import check_target
from dlqat_tf.training.results import environment

import tensorflow as tf  # isort: skip

_SIZES = {
    "QuickNet": 64,
    "BiRealNet": 64,
    "BinaryResNetE18": 64,
    "BinaryAlexNet": 64,
    "XNORNet": 224,  # whose windows leave nothing of smaller images
    "DoReFaNet": 64,
    "RealToBinaryNet": 64,
    "MeliusNet22": 64,
    "BinaryDenseNet28": 64,
}
_EXPORTS = ("to_lce", "to_tflite")


@dataclass(frozen=True)
class Settings:
    """Larq's zoo, exported."""

    networks: tuple[str, ...] = tuple(_SIZES)
    """Networks to export."""
    steps: int = 8
    """Training steps, of 16 images each."""
    images: int = 64
    """Images that files are compared with Keras on."""
    rows: Path = Path("build/larq_zoo")
    """Folder for what was measured; rows in it are not measured again."""
    output: Path | None = None
    """Markdown file for the table."""


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        network: Its name in the zoo.
        size: Rows and columns of its images.
        parameters: In thousands.
        bytes: Of the file, by what wrote it: "converter" (Larq's), "to_lce", "to_tflite".
        agreement: Percentages of equal decisions, by what wrote the file and the pair.
        seconds: Of what wrote it.
        failures: What went wrong, by what should have written it.
        environment: What it ran on.
    """

    network: str
    size: int
    parameters: int = 0
    bytes: dict = field(default_factory=dict)
    agreement: dict = field(default_factory=dict)
    seconds: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


def _trained(name: str, size: int, steps: int):
    """Return a network and images (uint8) that it did not see."""
    from larq_zoo import literature, sota

    make = getattr(sota, name, None) or getattr(literature, name)
    tf.keras.utils.set_random_seed(0)
    model = make(input_shape=(size, size, 3), weights=None, num_classes=CLASSES)
    for layer in model.submodules:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.5  # 0.99 would need more steps than are made here
    source = Network(lambda: model, ((size, size, 3),))
    (images,), (labels,) = source.data(16 * steps, seed=1)
    model.compile(tf.keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(np.float32(images / 255), labels, 16, steps_per_epoch=steps, verbose=0)
    return model, source


def _by_converter(model, images: np.ndarray) -> tuple[int, float]:
    """Return the bytes of what Larq's converter writes, and the share of Keras's decisions."""
    import larq_compute_engine as lce
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    data = lce.convert_keras_model(model)
    values = np.float32(images / 255)
    scores = Interpreter(data, num_threads=1).predict(values)
    same = scores.argmax(-1) == model.predict(values, verbose=0).argmax(-1)
    return len(data), round(100 * float(same.mean()), 2)


def measure(name: str, steps: int, images: int, target: Path) -> None:
    """Measure one row and write it to a file."""
    model, source = _trained(name, _SIZES[name], steps)
    row = Row(name, _SIZES[name], round(model.count_params() / 1000), environment=environment())
    (unseen,), (labels,) = source.data(images, seed=2)
    for kind in ("converter", *_EXPORTS):
        began = time.perf_counter()
        try:
            if kind == "converter":
                row.bytes[kind], same = _by_converter(model, unseen)
                row.agreement[kind] = dict(trained_file=same)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    _exported(row, kind, model, unseen, labels, Path(folder) / "model.tflite")
        except Exception as error:  # what went wrong is what is measured here
            row.failures[kind] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        row.seconds[kind] = round(time.perf_counter() - began, 1)
        write_whole(target, json.dumps(dataclasses.asdict(row), indent=2) + "\n")


def _exported(row: Row, kind: str, model, images, labels, path: Path) -> None:
    report = getattr(dlqat_tf.export, kind)(model, path)
    row.bytes[kind] = report.census.file_bytes
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    proof = dlqat_tf.export.parity(snapped, path, images, labels, trained=model)
    row.agreement[kind] = {pair: round(value, 2) for pair, value in proof.agreement.items()}
    if proof.first_diverging:
        raise ValueError(f"layer {proof.first_diverging} differs between simulation and file")


def rows_of(settings: Settings) -> list[Row]:
    """Measure the rows that are missing; return all."""
    if settings.output:
        check_target(settings.output, force=True)
    check_folder(settings.rows)
    settings.rows.mkdir(parents=True, exist_ok=True)
    started, found = multiprocessing.get_context("spawn"), []
    for name in settings.networks:
        target = settings.rows / f"{name}.json"
        if not target.exists():
            arguments = (name, settings.steps, settings.images, target)
            process = started.Process(target=measure, args=arguments)
            process.start()
            process.join()
            if process.exitcode or not target.exists():
                raise RuntimeError(f"{name}: the process ended with {process.exitcode}")
        found.append(Row(**json.loads(target.read_text())))
        print(_line(found[-1]), flush=True)
        if settings.output:
            write_whole(settings.output, page(found, settings))
    return found


_HEADINGS = (
    *("network", "size", "parameters, k"),
    *("converter, KB", "converter = Keras"),
    *("`to_lce`, KB", "simulation = file", "snapped = file", "trained = file"),
    *("`to_tflite`, KB", "simulation = file", "snapped = file", "trained = file"),
    "failure",
)


def _line(row: Row) -> str:
    def kilobytes(kind: str) -> str:
        return f"{row.bytes[kind] / 1000:.0f}" if kind in row.bytes else ""

    def percent(kind: str, pair: str) -> str:
        value = row.agreement.get(kind, {}).get(pair)
        return "" if value is None else f"{value:.1f}"

    cells = [row.network, str(row.size), str(row.parameters)]
    cells += [kilobytes("converter"), percent("converter", "trained_file")]
    for kind in _EXPORTS:
        pairs = ("simulation_file", "keras_file", "trained_file")
        cells += [kilobytes(kind), *(percent(kind, pair) for pair in pairs)]
    cells.append("; ".join(f"{kind}: {why}" for kind, why in row.failures.items()))
    return "| " + " | ".join(each.replace("|", "/") for each in cells) + " |"


def page(rows: list[Row], settings: Settings) -> str:
    """Return the table and what a reader needs to place it."""
    device = rows[0].environment["device"]
    commits = ", ".join(sorted({row.environment["commit"] or "unknown" for row in rows}))
    return "\n".join(
        [
            "# Larq's zoo",
            "",
            f"`{' '.join(['python', *sys.argv])}` on {device}, commits {commits}.",
            "",
            f"Random weights, {settings.steps} steps of training, no `quantize`. *converter* is "
            "`larq_compute_engine.convert_keras_model`, *snapped* the Keras model with the file's "
            f"biases. Percent of {settings.images} images that training did not see for which both "
            "decide the same.",
            "",
            "Where a window is larger than the image (3x3 on 2x2 in the last blocks of ResNets at "
            "this size) LCE's kernel pads zeros wrongly, for which the files of `to_lce` hold a "
            "correction, 8 KB for each such layer of 512 channels, and the converter's do not. "
            "(At 96 px, where those images are 3x3, the converter's BiRealNet and "
            "RealToBinaryNet decided as Keras on 32 of 32 images after 2 steps of training.) "
            "Where trained and file differ on single images, signs behind float layers turned: "
            "Keras adds up in another order than the file's kernels, whose order the simulation "
            "has.",
            "",
            "| " + " | ".join(_HEADINGS) + " |",
            "|" + "---|" * len(_HEADINGS),
            *map(_line, rows),
            "",
        ]
    )


def _is_proven(row: Row) -> bool:
    return all(row.agreement.get(kind, {}).get("simulation_file") == 100 for kind in _EXPORTS)


def main() -> int:
    """Measure and write."""
    rows = rows_of(tyro.cli(Settings, description=__doc__))
    return 0 if all(map(_is_proven, rows)) else 1


if __name__ == "__main__":
    with ending(interrupted="interrupted; the same command goes on"):
        sys.exit(main())
