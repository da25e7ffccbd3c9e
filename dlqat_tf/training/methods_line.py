"""What ``dlqat table methods`` does once its arguments are read: train cells, or report on them."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.markdown import Markdown

from dlqat_command.methods_comparison import Options
from dlqat_tf import methods
from dlqat_tf._script import ending
from dlqat_tf.training.command_line import MENDABLE, print_shortening
from dlqat_tf.training.comparison_line import refuse_decided
from dlqat_tf.training.methods_comparison import MethodComparison
from dlqat_tf.training.methods_report import MethodsReport
from dlqat_tf.training.recipe import Recipe

_console = Console()
_ACTIVATIONS = (32, 2)
_DECIDED = (
    *("method", "head", "weight_bits", "activation_bits", "learning_rate", "stages"),
    *("quantized_learning_rate", "seed", "float_stage", "restart"),
)
"""Fields of a recipe that the comparison decides, cell by cell."""


def compare(
    options: Options,
    *,
    defaults: Recipe,
    changes: dict,
    losses: dict[str, dict],
    as_in_papers: bool,
) -> None:
    """Train the cells of a comparison of methods, or report on those that are finished.

    Args:
        options: What was asked for.
        defaults: The recipe before the command line changed it.
        changes: What its budget changed of the paper's settings.
        losses: As for :func:`dlqat_command.methods_comparison.command`.
        as_in_papers: Likewise.
    """
    recipe = options.recipe
    interrupted = f"interrupted; the same command goes on with what is in {recipe.output}"
    with ending(ValueError, OSError, *MENDABLE, interrupted=interrupted):
        if options.report is not None:
            folders = [folder for folder in (recipe.output, options.archive) if folder]
            report = MethodsReport(folders, options.step_times)
            _console.print(Markdown(report.markdown()))
            _console.print("\n".join(map(str, report.write(options.report))))
            return
        refuse_decided(
            recipe, defaults, _DECIDED, "--methods, --losses, --learning-rates, --seeds and --cells"
        )
        comparison = MethodComparison(
            base=recipe,
            widths=_widths(options.methods or methods.names(), as_in_papers),
            losses=_losses(options, losses),
            seeds=options.seeds,
            as_in_papers=as_in_papers,
            settled=frozenset(changes)
            | {
                each.name
                for each in dataclasses.fields(Recipe)
                if getattr(recipe, each.name) != getattr(defaults, each.name)
            },
        )
        print_shortening(recipe, changes)
        comparison.train(recipe.output, options.archive, options.cells)


def _widths(names: tuple[str, ...], as_in_papers: bool) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the widths of each method: of its paper's rows, or its lowest bits with A32 and A2."""
    found = {}
    for name in names:
        method = methods.get(name)
        if as_in_papers:
            found[name] = tuple((row.weight_bits, row.activation_bits) for row in method.rows)
        else:
            found[name] = tuple((method.lowest_bits, bits) for bits in _ACTIVATIONS)
    return {name: widths for name, widths in found.items() if widths}


def _losses(options: Options, losses: dict[str, dict]) -> dict[str, dict]:
    unknown = [name for name in options.losses if name not in losses]
    if unknown:
        raise ValueError(f"Expected losses of {', '.join(losses)}. Received: {', '.join(unknown)}.")
    rates = options.learning_rates
    if rates and len(rates) != len(options.losses):
        raise ValueError(
            f"Expected a learning rate for each of {len(options.losses)} losses, "
            f"{', '.join(options.losses)}. Received: {len(rates)}."
        )
    found = {name: dict(losses[name]) for name in options.losses}
    for name, rate in zip(options.losses, rates, strict=False):
        found[name]["learning_rate"] = rate
    return found
