"""Whether GML's margin pays: cross-entropy beside GML with and without it, at several budgets.

Every network learns 45,000 of CIFAR-100's training images, or fewer, and is measured on the 5,000
held out, so that settings are not chosen on the test set. One seed each by default.

    python benchmarks/gml_margin.py --data-dir DIR --epochs 6 15

The same command continues what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from dlqat_tf._host import replacing
from dlqat_tf._script import ending
from dlqat_tf.report import check_target
from dlqat_tf.training.grid import Cell, Grid
from dlqat_tf.training.history import read_history
from dlqat_tf.training.recipe import Recipe

LOSSES = {
    "CEL": {"head": "linear"},
    "AMS": {"head": "cosine"},
    "GML-no-margin": {"head": "gml", "gml_alpha": 0.0},
    "GML-p2": {"head": "gml", "gml_fit_power": 2.0},
    "GML-p4": {"head": "gml", "gml_fit_power": 4.0},
    "GML-p8": {"head": "gml", "gml_fit_power": 8.0},
}


def compare(
    data_dir: Path,
    losses: tuple[str, ...] = ("CEL", "GML-no-margin", "GML-p8"),
    epochs: tuple[int, ...] = (6, 15, 30),
    quantized_epochs: int = 3,
    train_size: int | None = None,
    seeds: tuple[int, ...] = (0,),
    stem: str = "cifar",
    width: int = 16,
    learning_rate: float = 0.05,
    output: Path = Path("runs/gml_margin"),
    archive: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Train each loss in float and then as W1A2, and print top-1 of the images held out.

    Args:
        data_dir: Folder of tensorflow-datasets.
        losses: Names out of LOSSES.
        epochs: Epochs of the float stage; each is a budget of its own.
        quantized_epochs: Epochs of the W1A2 stage.
        train_size: Learn this many images only, which a network can fit.
        seeds: Of initial weights and order.
        stem: As in the recipes.
        width: Channels of the first stage.
        learning_rate: Peak of the float stage at batch 128; the W1A2 stage takes 0.4 of it.
        output: Folder of the runs.
        archive: Folder for the small files of finished runs.
        picture: PNG file for their accuracies, epoch by epoch.
    """
    with ending(ValueError, OSError, interrupted="interrupted; the same command goes on"):
        if picture is not None:
            check_target(picture, force=True)
        cells = {
            (loss, length, seed): Cell(
                f"{stem}{width}-{loss}-{length}+{quantized_epochs}"
                f"{f'-of{train_size}' if train_size else ''}-s{seed}",
                Recipe(
                    dataset="cifar100",
                    data_dir=data_dir,
                    train_size=train_size,
                    validation_size=5000,
                    stem=stem,
                    width=width,
                    float_epochs=length,
                    epochs=quantized_epochs,
                    batch_size=128,
                    reference_batch=128,
                    learning_rate=learning_rate,
                    quantized_learning_rate=0.4 * learning_rate,
                    precision="mixed_bfloat16",
                    seed=seed,
                    **LOSSES[loss],
                ),
            )
            for length in epochs
            for seed in seeds
            for loss in losses
        }
        outcomes = Grid(list(cells.values()), output, archive).run()
        if picture is not None:
            draw(cells.values(), list(filter(None, (output, archive))), picture)
    table = Table(
        title=f"top-1 of 5,000 held out, {stem} stem, width {width}, rate {learning_rate}"
    )
    for heading in ("epochs", "seed", "loss", "float", "W1A2"):
        table.add_column(heading, justify="left" if heading == "loss" else "right")
    for (loss, length, seed), cell in cells.items():
        result = outcomes[cell.name].result
        accuracies = (result.get("float_accuracy"), result.get("accuracy"))
        shown = ("diverged" if each is None else f"{each:.2%}" for each in accuracies)
        table.add_row(f"{length} + {quantized_epochs}", str(seed), loss, *shown)
    Console().print(table)


def draw(cells: Iterable[Cell], folders: list[Path], picture: Path) -> None:
    """Draw the accuracies of each cell after every epoch, of both stages."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, 2), ("float", "quantized"), strict=True):
        for cell in cells:
            files = (folder / cell.name / stage / "history.csv" for folder in folders)
            rows = next(filter(None, map(read_history, files)), [])
            epochs = [row["epoch"] + 1 for row in rows]
            accuracies = [100 * row["val_accuracy"] for row in rows]
            axes.plot(epochs, accuracies, marker=".", label=cell.name)
        axes.set(xlabel=f"epoch of the {stage} stage", ylabel="top-1 of images held out, percent")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small", loc="lower right")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    tyro.cli(compare)
