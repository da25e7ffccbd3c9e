"""The command line that compares losses width by width: ``dlqat table``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from dlqat_command.budgets import defaults_of
from dlqat_command.metavars import COUNT, FOLDER
from dlqat_command.recipe import Recipe
from dlqat_command.tree import Command

if TYPE_CHECKING:
    from dlqat_tf.training.comparison_report import PaperFigures


@dataclass(frozen=True)
class Options:
    """What a comparison takes beside a recipe's flags."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    """What all cells have in common; --output is the folder of the comparison."""
    cells: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("*",)
    """Train these cells only, by name; * and ? stand for other characters."""
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED [SEED ...]")] = (0,)
    """Each cell is trained once with each."""
    rates: Annotated[tuple[float, ...], arg(metavar="RATE [RATE ...]")] = ()
    """Learning rates, at reference_batch, to find each loss's own best on training images held out;
    every cell is then trained at that one too, beside the paper's."""
    rate_epochs: Annotated[tuple[int, int], arg(metavar="EPOCHS EPOCHS")] = (6, 3)
    """Epochs of the float and of the quantized stage while learning rates are compared."""
    held_out: Annotated[int, COUNT] = 5000
    """Training images that learning rates are measured on."""
    archive: Annotated[Path | None, FOLDER] = None
    """Folder for results and histories of finished cells; what it holds is not trained again."""
    report: Annotated[Path | None, FOLDER] = None
    """Train nothing: write table.md, table.csv and table.png of what is finished to this folder."""


def command(
    paper: Recipe,
    *,
    short: dict[str, Any],
    losses: dict[str, dict[str, Any]],
    figures: PaperFigures,
    description: str | None,
) -> Command:
    """Return the command that compares losses.

    Args:
        paper: What all cells have in common at the paper's settings.
        short: The fields that ``--budget short`` changes.
        losses: By name, worst first as the paper claims, what a loss changes in the recipe.
        figures: The paper's figures, which name the datasets and the widths of each. Another
            dataset, given by ``--dataset``, takes the place of all, with the most widths.
        description: What ``--help`` shows.
    """

    def prepare(arguments: Sequence[str]) -> Callable[..., None]:
        defaults, changes = defaults_of(paper, short, arguments)

        def compare(
            comparison: tyro.conf.OmitArgPrefixes[Options] = Options(recipe=defaults),  # noqa: B008
        ) -> None:
            from dlqat_tf.training import comparison_line

            comparison_line.compare(
                comparison, defaults=defaults, changes=changes, losses=losses, figures=figures
            )

        compare.__doc__ = description
        return compare

    return prepare
