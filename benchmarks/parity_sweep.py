"""Whether exported files compute what was trained, width by width, on a whole test set.

Takes the float stage of a finished run, trains shortly at each width from there, exports to int8
(to binary kernels and to int4 storage where asked for and possible), and compares Keras, integer
simulation and file on all test images.

    python benchmarks/parity_sweep.py runs/cifar100_gml_short --binary

Exit status: 0 where all bounds are met, 1 where one is missed, 2 for what you can mend.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.table import Table

from dlqat_tf import export
from dlqat_tf._host import write_whole
from dlqat_tf.export import command
from dlqat_tf.export.files.lce import PLANE_LIMIT
from dlqat_tf.report import Report, check_target
from dlqat_tf.training import data, stages
from dlqat_tf.training.callbacks import TrainingDiverged
from dlqat_tf.training.recipe import Recipe, read_recipe
from dlqat_tf.training.results import environment

import tensorflow as tf  # isort: skip

AGREEMENT = 99.5  # least percentage of equal arg-maxes of snapped Keras model and file
TIGHTER = {"W1A2": 99.9}
TRAINED_AGREEMENT = 99.5  # the same of trained Keras model and file
ACCURACY = 0.1  # points between the trained network and the file
INT4_BITS = 3  # of weights; more do not fit


@dataclass(frozen=True)
class Row:
    """One exported file.

    Attributes:
        network: Widths, for example "W1A2".
        file: "int8", "binary" or "int4".
        bytes: Size of the file.
        trained: Top-1 in percent of the trained Keras model, in float32.
        snapped: Top-1 of the Keras model with the file's biases.
        exported: Top-1 of the file.
        simulation_file: Percentage of equal arg-maxes of integer simulation and file.
        trained_file: The same of trained Keras model and file.
        keras_file: The same of snapped Keras model and file.
        largest_shift: How far a bias moved at most, in steps of the activation that follows.
        failures: What misses the bounds.
    """

    network: str
    file: str
    bytes: int
    trained: float
    snapped: float
    exported: float
    simulation_file: float
    trained_file: float
    keras_file: float
    largest_shift: float
    failures: list[str]


@dataclass(frozen=True)
class SweepReport(Report):
    """All files of a sweep, with what a reader needs to place the figures."""

    rows: list[Row]
    images: int
    steps: int
    environment: dict

    def tables(self):
        table = Table(
            title=f"{self.images:,} test images, {self.steps} steps from one float stage",
            title_justify="left",
        )
        for heading in ("network", "file"):
            table.add_column(heading)
        for heading in ("bytes", "trained", "snapped", "exported"):
            table.add_column(heading, justify="right")
        for heading in ("simulation = file", "trained = file", "snapped = file", "largest shift"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            percents = (
                *(row.trained, row.snapped, row.exported),
                *(row.simulation_file, row.trained_file, row.keras_file),
            )
            table.add_row(
                row.network,
                row.file,
                f"{row.bytes:,}",
                *(f"{percent:.2f} %" for percent in percents),
                f"{row.largest_shift:.2g} steps",
            )
        return [table, *(f"failed: {each}" for row in self.rows for each in row.failures)]


def sweep(
    run: Annotated[Path, tyro.conf.Positional],
    widths: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (3, 3), (4, 4), (8, 8), (1, 8)),
    steps: int = 100,
    residual_bits: int = 8,
    binary: bool = False,
    plane_limit: int = PLANE_LIMIT,
    int4: bool = False,
    data_dir: Path | None = None,
    output: Path = Path("runs/parity_sweep"),
    json: Path | None = None,
    force: bool = False,
) -> None:
    """Train at each width from one float stage, export, and compare on the whole test set.

    Args:
        run: Folder of a run of a recipe, whose float stage is finished.
        widths: Weight and activation bits of each network.
        steps: Training steps of each network, at least.
        residual_bits: Bits of the inputs of residual adds; a float run has none.
        binary: Export to binary kernels too, where weight times activation bits allow it.
        plane_limit: Largest product of weight and activation bits that does.
        int4: Export to int4 storage too, where weights have at most 3 bits.
        data_dir: Where the data set lies; by default where the run had it.
        output: Folder for networks and files; the same command continues what it finds there.
        json: Write the report here too.
        force: Overwrite the --json file.
    """

    def work() -> int:
        if json:
            check_target(json, force=force)
        recipe = read_recipe(run)
        recipe = dataclasses.replace(
            recipe,
            float_stage=run / "float",
            residual_bits=residual_bits,
            lr_warmup_epochs=0.1,
            restart=False,
            data_dir=data_dir or recipe.data_dir,
            **_epochs(recipe, data_dir or recipe.data_dir, steps),
        )
        rows: list[Row] = []
        for weight_bits, activation_bits in widths:
            name = f"W{weight_bits}A{activation_bits}"
            stages.run(
                dataclasses.replace(
                    recipe,
                    weight_bits=weight_bits,
                    activation_bits=activation_bits,
                    output=output / name,
                )
            )
            kinds = ["int8"]
            kinds += ["binary"] if binary and weight_bits * activation_bits <= plane_limit else []
            kinds += ["int4"] if int4 and weight_bits <= INT4_BITS else []
            model = tf.keras.models.load_model(output / name / "model.keras", compile=False)
            images, labels = command.test_images(
                recipe.dataset, recipe.data_dir, model.input_shape[1:], None
            )
            for kind in kinds:
                path = output / name / f"{kind}.tflite"
                row = _row(model, path, kind, plane_limit, images, labels)
                rows.append(row)
                print(
                    f"{name} {kind}: trained and file agree on {row.trained_file:.2f} %", flush=True
                )
        report = SweepReport(rows, len(images), steps, environment())
        report.print()
        if json:
            write_whole(json, report.to_json() + "\n")
        return 1 if any(row.failures for row in rows) else 0

    command.run(work, (OSError, ValueError, TrainingDiverged))


def _epochs(recipe: Recipe, data_dir: Path | None, steps: int) -> dict[str, int]:
    """Return the recipe's fields that make at least ``steps`` steps."""
    if steps < 1:
        raise ValueError(f"Expected at least 1 step of training. Received: {steps}.")
    images = data.load(
        recipe.dataset,
        data_dir=data_dir,
        image_size=recipe.image_size,
        train_size=recipe.train_size,
        validation_size=recipe.validation_size,
        seed=recipe.seed,
    )
    epochs = math.ceil(steps / images.steps_per_epoch(recipe.batch_size))
    return dict(epochs=epochs, images_per_epoch=math.ceil(steps / epochs) * recipe.batch_size)


def _row(
    model: tf.keras.Model,
    path: Path,
    kind: str,
    plane_limit: int,
    images: np.ndarray,
    labels: np.ndarray,
) -> Row:
    """Export one file and compare it."""
    network = path.parent.name
    if kind == "binary":
        exported = export.to_lce(model, path, plane_limit=plane_limit, force=True)
    else:
        exported = export.to_tflite(model, path, weights=kind, force=True)
    snapped = tf.keras.models.load_model(exported.snapped, compile=False)
    proof = export.parity(snapped, path, images, labels, trained=model)
    failures = proof.failures(
        trained_agreement=TRAINED_AGREEMENT,
        keras_agreement=TIGHTER.get(network, AGREEMENT),
        accuracy=ACCURACY,
    )
    return Row(
        network=network,
        file=kind,
        bytes=exported.census.file_bytes,
        trained=proof.top1["trained"],
        snapped=proof.top1["keras"],
        exported=proof.top1["file"],
        simulation_file=proof.agreement["simulation_file"],
        trained_file=proof.agreement["trained_file"],
        keras_file=proof.agreement["keras_file"],
        largest_shift=export.SnapReport(exported.shifts).largest_steps,
        failures=[f"{network} {kind}: {each}" for each in failures],
    )


if __name__ == "__main__":
    tyro.cli(sweep)
