"""The command lines of comparisons, cell by cell: ``dlqat table``."""

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


def of_losses(
    paper: Recipe,
    *,
    short: dict[str, Any],
    losses: dict[str, dict[str, Any]],
    figures: PaperFigures,
    description: str | None,
) -> Command:
    """Return the command that compares losses width by width.

    Args:
        paper: What all cells have in common at the paper's settings.
        short: The fields that ``--budget short`` changes.
        losses: By name, worst first as the paper claims, what a loss changes in the recipe.
        figures: The paper's figures, which name the datasets and the widths of each. Another
            dataset, given by ``--dataset``, takes the place of all, with the most widths.
        description: What ``--help`` shows.
    """

    def compare(options: LossOptions, **settings: Any) -> None:
        from dlqat_tf.training import comparison_line

        comparison_line.of_losses(options, losses=losses, figures=figures, **settings)

    return _command(paper, short, LossOptions, compare, description)


def of_methods(
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

    def compare(options: MethodOptions, **settings: Any) -> None:
        from dlqat_tf.training import comparison_line

        comparison_line.of_methods(options, losses=losses, as_in_papers=as_in_papers, **settings)

    return _command(paper, short, MethodOptions, compare, description)


def _command(
    paper: Recipe,
    short: dict[str, Any],
    options: type[Options],
    compare: Callable[..., None],
    description: str | None,
) -> Command:
    """Return a command of these options, whose work also gets the defaults and the changes."""

    def prepare(arguments: Sequence[str]) -> Callable[..., None]:
        defaults, changes = defaults_of(paper, short, arguments)

        def start(comparison: Any = options(recipe=defaults)) -> None:  # noqa: B008
            compare(comparison, defaults=defaults, changes=changes)

        # An annotation in the signature could not name what is not known before it is called.
        start.__annotations__["comparison"] = Annotated[options, tyro.conf.OmitArgPrefixes]
        start.__doc__ = description
        return start

    return prepare
