"""What comparisons take, as plain values that a command line fills, without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from dlqat_command.metavars import COUNT, FOLDER
from dlqat_command.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """What every comparison takes beside a recipe's flags."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    """What all cells have in common; --output is the folder of the comparison."""
    cells: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("*",)
    """Train these cells only, by name; * and ? stand for other characters."""
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED [SEED ...]")] = (0,)
    """Each cell is trained once with each."""
    archive: Annotated[Path | None, FOLDER] = None
    """Folder for results and histories of finished cells; what it holds is not trained again."""
    report: Annotated[Path | None, FOLDER] = None
    """Train nothing: write table.md, table.csv and table.png of what is finished to this folder."""


@dataclass(frozen=True)
class LossOptions(Options):
    """What a comparison of losses takes beside a recipe's flags."""

    rates: Annotated[tuple[float, ...], arg(metavar="RATE [RATE ...]")] = ()
    """Learning rates, at reference_batch, to find each loss's own best on training images held out;
    every cell is then trained at that one too, beside the paper's."""
    rate_epochs: Annotated[tuple[int, int], arg(metavar="EPOCHS EPOCHS")] = (6, 3)
    """Epochs of the float and of the quantized stage while learning rates are compared."""
    held_out: Annotated[int, COUNT] = 5000
    """Training images that learning rates are measured on."""


@dataclass(frozen=True)
class MethodOptions(Options):
    """What a comparison of methods takes beside a recipe's flags."""

    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """Names in dlqat_tf.methods; all by default."""
    losses: Annotated[tuple[str, ...], arg(metavar="LOSS [LOSS ...]")] = ("CEL",)
    """Train each with these: CEL, AMS, GML."""
    learning_rates: Annotated[tuple[float, ...], arg(metavar="RATE [RATE ...]")] = ()
    """Learning rate of each loss, at reference_batch; the paper's by default."""
    step_times: Annotated[Path | None, arg(metavar="FILE")] = None
    """For the report: what benchmarks/step_time.py --method all --output FILE wrote."""
