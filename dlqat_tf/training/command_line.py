"""What the commands that train do once their arguments are read: train, print, end in one line."""

from __future__ import annotations

import sys

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from dlqat_tf import methods
from dlqat_tf._script import ending
from dlqat_tf.training.callbacks import TrainingDiverged
from dlqat_tf.training.distribution import WorkerLost
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import TrainingResult
from dlqat_tf.training.stages import run

_console = Console()
# A full disk or memory, and a folder that TensorFlow cannot write to.
MENDABLE = (
    tf.errors.ResourceExhaustedError,
    tf.errors.PermissionDeniedError,
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
)


def train(recipe: Recipe, changes: dict) -> TrainingResult | None:
    """Train a recipe and print its result.

    Args:
        recipe: Its settings.
        changes: What its budget changed of the paper's.

    Returns:
        The result of the run; None in a worker that is not the first of its job. What a user can
        mend ends the process with one sentence and status 2, a diverged training or a lost worker
        with status 1; Ctrl-C with status 130 and SIGTERM with 143, when where training was is
        saved.
    """
    print_shortening(recipe, changes)
    _print_method(recipe)
    interrupted = (
        f"interrupted; the same command goes on after the last checkpoint in {recipe.output}"
    )
    with ending(ValueError, *MENDABLE, interrupted=interrupted):
        try:
            result = run(recipe)
        except (TrainingDiverged, WorkerLost) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
    if result is not None:
        _print(recipe, result)
    return result


def print_shortening(recipe: Recipe, changes: dict) -> None:
    """Say what a budget changed, and no other flag changed again."""
    if shortened := _in_force(recipe, changes):
        _console.print(f"--budget {recipe.budget} shortens the paper's run: {shortened}")


def _print_method(recipe: Recipe) -> None:
    """Say what a method brought of its paper."""
    if recipe.method not in methods.names():  # it is refused with the rest of the recipe
        return
    if kept := _in_force(recipe, methods.get(recipe.method).recipe):
        _console.print(f"--method {recipe.method}, as in its paper: {kept}")


def _in_force(recipe: Recipe, changes: dict) -> str:
    """Return which of some settings a recipe has."""
    kept = {name: each for name, each in changes.items() if getattr(recipe, name) == each}
    return ", ".join(f"{name}={value}" for name, value in kept.items())


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
