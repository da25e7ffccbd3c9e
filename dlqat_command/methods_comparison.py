"""The command line of comparisons of methods: ``dlqat table methods``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from dlqat_command.budgets import defaults_of
from dlqat_command.metavars import FOLDER
from dlqat_command.recipe import Recipe
from dlqat_command.tree import Command


@dataclass(frozen=True)
class Options:
    """What a comparison of methods takes beside a recipe's flags."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    """What all cells have in common; --output is the folder of the comparison."""
    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """Names in dlqat_tf.methods; all by default."""
    losses: Annotated[tuple[str, ...], arg(metavar="LOSS [LOSS ...]")] = ("CEL",)
    """Train each with these: CEL, AMS, GML."""
    learning_rates: Annotated[tuple[float, ...], arg(metavar="RATE [RATE ...]")] = ()
    """Learning rate of each loss, at reference_batch; the paper's by default."""
    cells: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("*",)
    """Train these cells only, by name; * and ? stand for other characters."""
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED [SEED ...]")] = (0,)
    """Each cell is trained once with each."""
    archive: Annotated[Path | None, FOLDER] = None
    """Folder for results and histories of finished cells; what it holds is not trained again."""
    report: Annotated[Path | None, FOLDER] = None
    """Train nothing: write table.md, table.csv and table.png of what is finished to this folder."""
    step_times: Annotated[Path | None, arg(metavar="FILE")] = None
    """For the report: what benchmarks/step_time.py --method all --output FILE wrote."""


def command(
    paper: Recipe,
    *,
    short: dict[str, Any],
    losses: dict[str, dict[str, Any]],
    as_in_papers: bool,
    description: str | None,
) -> Command:
    """Return the command that compares methods.

    Args:
        paper: What all cells have in common at the paper's settings.
        short: The fields that ``--budget short`` changes.
        losses: By name, what a loss changes in the recipe.
        as_in_papers: Whether each method has its own paper's rows, network and training, instead of
            the same for all at its lowest bits.
        description: What ``--help`` shows.
    """

    def prepare(arguments: Sequence[str]) -> Callable[..., None]:
        defaults, changes = defaults_of(paper, short, arguments)

        def compare(
            comparison: tyro.conf.OmitArgPrefixes[Options] = Options(recipe=defaults),  # noqa: B008
        ) -> None:
            from dlqat_tf.training import methods_line

            methods_line.compare(
                comparison,
                defaults=defaults,
                changes=changes,
                losses=losses,
                as_in_papers=as_in_papers,
            )

        compare.__doc__ = description
        return compare

    return prepare
