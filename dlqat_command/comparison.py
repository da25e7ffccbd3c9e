"""The command lines of comparisons, cell by cell: ``dlqat table``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlqat_command.budgets import defaults_of
from dlqat_command.comparison_options import LossOptions, MethodOptions, Options
from dlqat_command.recipe import Recipe
from dlqat_command.tree import Command

if TYPE_CHECKING:
    from dlqat_tf.training.comparison_report import PaperFigures


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
