"""The command line of the recipe scripts, and the budgets that shorten a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import sys

import tensorflow as tf
import tyro
from rich.console import Console
from rich.table import Table

from dlqat_tf._script import ending
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import TrainingResult
from dlqat_tf.training.stages import TrainingDiverged, run

_console = Console()
# A full disk or memory, and a folder that TensorFlow cannot write to.
MENDABLE = (
    tf.errors.ResourceExhaustedError,
    tf.errors.PermissionDeniedError,
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
)

PAPER_LITERAL = {"gml_fit_power": 0.0, "margin_warmup_epochs": 0.0, "final_gain": 1.0}
"""What ``--paper-literal`` changes: equation 4 without anything of ours around its margin."""

SMOKE = {
    "float_epochs": 1,
    "epochs": 1,
    "images_per_epoch": 2560,
    "batch_size": 128,
    "stem": "imagenet",
    "width": 16,
}
"""What ``--budget smoke`` changes: enough to see that everything runs, not to learn."""

CIFAR_SHORT = {
    "float_epochs": 10,
    "epochs": 5,
    "batch_size": 128,
    "learning_rate": 0.05,
    "quantized_learning_rate": 0.02,
    "reference_batch": 128,
    "stem": "imagenet",
}
"""What ``--budget short`` changes on CIFAR: about an hour on two cores."""

IMAGENET_SHORT = {
    "float_epochs": 2,
    "epochs": 2,
    "images_per_epoch": 6400,
    "batch_size": 64,
    "learning_rate": 0.05,
    "reference_batch": 64,
}
"""What ``--budget short`` changes on ImageNet: about an hour on two cores, and the evaluations."""


def main(
    paper: Recipe, *, short: dict, description: str, arguments: list[str] | None = None
) -> TrainingResult:
    """Run a recipe script: parse its command line, train, print the result.

    Args:
        paper: The recipe with the paper's settings, the defaults of every flag.
        short: The fields that ``--budget short`` changes.
        description: The script's docstring, shown by ``--help``.
        arguments: Command line without the program's name; ``sys.argv`` by default.

    Returns:
        The result of the run. What a user can mend ends the process with one sentence and status 2,
        a diverged training with status 1, Ctrl-C with status 130.
    """
    defaults, changes = defaults_of(paper, short, arguments)
    recipe = tyro.cli(Recipe, default=defaults, description=description, args=arguments)
    print_shortening(recipe, changes)
    interrupted = (
        f"interrupted; the same command goes on after the last whole epoch in {recipe.output}"
    )
    with ending(ValueError, *MENDABLE, interrupted=interrupted):
        try:
            result = run(recipe)
        except TrainingDiverged as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
    _print(recipe, result)
    return result


def defaults_of(
    paper: Recipe, short: dict, arguments: list[str] | None = None
) -> tuple[Recipe, dict]:
    """Return the defaults of all flags, and what the budget changes of them.

    The budget chooses the defaults of the other flags, so it is read before them.

    Args:
        paper: As for :func:`main`.
        short: As for :func:`main`.
        arguments: As for :func:`main`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--budget", choices=("paper", "short", "smoke"), default="paper")
    first.add_argument("--paper-literal", action="store_true")
    chosen = first.parse_known_args(arguments)[0]
    budget = chosen.budget
    changes = {"paper": {}, "short": short, "smoke": SMOKE}[budget]
    literal = PAPER_LITERAL if chosen.paper_literal else {}
    defaults = dataclasses.replace(paper, budget=budget, **changes, **literal)
    if budget != "paper":
        defaults = dataclasses.replace(
            defaults, output=paper.output.with_name(f"{paper.output.name}_{budget}")
        )
    return defaults, changes


def print_shortening(recipe: Recipe, changes: dict) -> None:
    """Say what a budget changed."""
    shortened = ", ".join(f"{name}={value}" for name, value in changes.items())
    if shortened:
        _console.print(f"--budget {recipe.budget} shortens the paper's run: {shortened}")


def _print(recipe: Recipe, result: TrainingResult) -> None:
    table = Table(title=f"{recipe.dataset}, {recipe.head}, test top-1")
    for heading in ("stage", "epochs", "last epoch", "best epoch", "minutes"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in result.stages:
        name = stage["name"]
        if name == "quantized":
            name = f"W{recipe.weight_bits}A{recipe.activation_bits}"
        table.add_row(
            name,
            str(stage["epochs"]),
            f"{stage['final_accuracy']:.2%}",
            "lost" if stage["best_accuracy"] is None else f"{stage['best_accuracy']:.2%}",
            "lost" if stage["seconds"] is None else f"{stage['seconds'] / 60:.1f}",
        )
    _console.print(table)
    _console.print(f"{recipe.output / 'model.keras'}, {recipe.output / 'result.json'}")
