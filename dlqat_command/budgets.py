"""The budgets that shorten a recipe: what they change of the paper's settings."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from dlqat_command.recipe import Recipe

PAPER_LITERAL: dict[str, Any] = {
    "gml_fit_power": 0.0,
    "margin_warmup_epochs": 0.0,
    "final_gain": 1.0,
}
"""What ``--paper-literal`` changes: equation 4 without anything of ours around its margin."""

SMOKE: dict[str, Any] = {
    "float_epochs": 1,
    "epochs": 1,
    "images_per_epoch": 2560,
    "batch_size": 128,
    "stem": "imagenet",
    "width": 16,
}
"""What ``--budget smoke`` changes: enough to see that everything runs, not to learn."""

CIFAR_SHORT: dict[str, Any] = {
    "float_epochs": 10,
    "epochs": 5,
    "batch_size": 128,
    "learning_rate": 0.05,
    "quantized_learning_rate": 0.02,
    "reference_batch": 128,
    "stem": "imagenet",
}
"""What ``--budget short`` changes on CIFAR: about an hour on two cores."""

IMAGENET_SHORT: dict[str, Any] = {
    "float_epochs": 2,
    "epochs": 2,
    "images_per_epoch": 6400,
    "batch_size": 64,
    "learning_rate": 0.05,
    "reference_batch": 64,
}
"""What ``--budget short`` changes on ImageNet: about an hour on two cores, and the evaluations."""


def defaults_of(
    paper: Recipe, short: dict, arguments: Sequence[str]
) -> tuple[Recipe, dict[str, Any]]:
    """Return the defaults of all flags, and what the budget changes of them.

    Method and budget choose the defaults of the other flags, so they are read before them. A method
    that is unknown chooses none, and is refused with the rest of the recipe.

    Args:
        paper: The recipe with the paper's settings.
        short: The fields that ``--budget short`` changes.
        arguments: The command line, without the names of program and subcommand.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--budget", choices=("paper", "short", "smoke"), default="paper")
    first.add_argument("--paper-literal", action="store_true")
    first.add_argument("--method")
    chosen = first.parse_known_args(arguments)[0]
    budget = chosen.budget
    if chosen.method is not None:
        with contextlib.suppress(ValueError):
            paper = paper.with_method(chosen.method)
    changes = {"paper": {}, "short": short, "smoke": SMOKE}[budget]
    literal = PAPER_LITERAL if chosen.paper_literal else {}
    defaults = dataclasses.replace(paper, budget=budget, **changes, **literal)
    if budget != "paper":
        defaults = dataclasses.replace(
            defaults, output=paper.output.with_name(f"{paper.output.name}_{budget}")
        )
    return defaults, changes
