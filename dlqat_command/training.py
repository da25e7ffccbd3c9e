"""The command line that trains a recipe: ``dlqat train``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from dlqat_command.budgets import defaults_of
from dlqat_command.recipe import Recipe
from dlqat_command.tree import Command

if TYPE_CHECKING:
    from dlqat_tf.training import TrainingResult


def train(recipe: Recipe, changes: dict[str, Any]) -> TrainingResult | None:
    """Train a recipe, see :func:`dlqat_tf.training.command_line.train`."""
    from dlqat_tf.training import command_line

    return command_line.train(recipe, changes)


def command(
    paper: Recipe,
    *,
    short: dict[str, Any],
    description: str | None,
    work: Callable[[Recipe, dict[str, Any]], object] = train,
) -> Command:
    """Return the command that trains a recipe.

    Args:
        paper: The recipe with the paper's settings, the defaults of every flag.
        short: The fields that ``--budget short`` changes.
        description: What ``--help`` shows.
        work: Gets the recipe and what its budget changed of the paper's settings.
    """

    def prepare(arguments: Sequence[str]) -> Callable[..., object]:
        defaults, changes = defaults_of(paper, short, arguments)

        def start(recipe: tyro.conf.OmitArgPrefixes[Recipe] = defaults) -> object:
            return work(recipe, changes)

        start.__doc__ = description
        return start

    return prepare
