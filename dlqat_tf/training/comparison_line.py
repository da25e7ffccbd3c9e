"""What ``dlqat table`` does once its arguments are read: train cells, or report on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from dlqat_command.comparison_options import LossOptions, MethodOptions, Options
from dlqat_tf import methods
from dlqat_tf._host import check_folder
from dlqat_tf._script import ending
from dlqat_tf.training.command_line import MENDABLE, print_shortening
from dlqat_tf.training.comparison import Comparison
from dlqat_tf.training.comparison_report import ComparisonReport, PaperFigures
from dlqat_tf.training.methods_comparison import MethodComparison
from dlqat_tf.training.methods_report import MethodsReport
from dlqat_tf.training.recipe import Recipe

_console = Console()
_METHOD_ACTIVATIONS = (32, 2)
# Fields of a recipe that a comparison decides, cell by cell.
_DECIDED = (
    *("head", "weight_bits", "activation_bits", "learning_rate"),
    *("quantized_learning_rate", "seed", "float_stage", "restart"),
)


def of_losses(
    options: LossOptions,
    *,
    defaults: Recipe,
    changes: dict,
    losses: dict[str, dict],
    figures: PaperFigures,
) -> None:
    """Train the cells of a comparison of losses, or report on those that are finished.

    Args:
        options: What was asked for.
        defaults: The recipe before the command line changed it.
        changes: What its budget changed of the paper's settings.
        losses: As for :func:`dlqat_command.comparison.of_losses`.
        figures: Likewise.
    """

    def comparison() -> Comparison:
        _refuse(options, defaults, (*_DECIDED, "validation_size"), "--cells, --seeds and --rates")
        return Comparison(
            base=options.recipe,
            widths=_widths_of_table(figures, options.recipe.dataset),
            losses=losses,
            seeds=options.seeds,
            rates=options.rates,
            rate_epochs=options.rate_epochs,
            held_out=options.held_out,
        )

    _run(
        options,
        changes,
        comparison,
        lambda folders: ComparisonReport(folders, figures, tuple(losses)),
    )


def of_methods(
    options: MethodOptions,
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
        losses: As for :func:`dlqat_command.comparison.of_methods`.
        as_in_papers: Likewise.
    """

    def comparison() -> MethodComparison:
        instead = "--methods, --losses, --learning-rates, --seeds and --cells"
        _refuse(options, defaults, (*_DECIDED, "method", "stages"), instead)
        return MethodComparison(
            base=options.recipe,
            widths=_widths_of_methods(options.methods, as_in_papers),
            losses=_losses(options, losses),
            seeds=options.seeds,
            as_in_papers=as_in_papers,
            settled=frozenset(changes) | _changed(options.recipe, defaults),
        )

    _run(options, changes, comparison, lambda folders: MethodsReport(folders, options.step_times))


def _run(
    options: Options,
    changes: dict,
    comparison: Callable[[], Comparison | MethodComparison],
    report: Callable[[list[Path]], ComparisonReport | MethodsReport],
) -> None:
    """Report, or train; what a user can mend ends in one sentence."""
    recipe = options.recipe
    interrupted = f"interrupted; the same command goes on with what is in {recipe.output}"
    with ending(ValueError, *MENDABLE, interrupted=interrupted):
        if options.report is not None:
            check_folder(options.report)
            found = report([folder for folder in (recipe.output, options.archive) if folder])
            _console.print(Markdown(found.markdown()))
            _console.print("\n".join(map(str, found.write(options.report))))
            return
        cells = comparison()
        print_shortening(recipe, changes)
        cells.train(recipe.output, options.archive, options.cells)


def _changed(recipe: Recipe, defaults: Recipe) -> set[str]:
    names = (field.name for field in dataclasses.fields(Recipe))
    return {name for name in names if getattr(recipe, name) != getattr(defaults, name)}


def _refuse(options: Options, defaults: Recipe, decided: tuple[str, ...], instead: str) -> None:
    """Refuse flags that a comparison decides itself.

    Raises:
        ValueError: One of them was given; the message says what to choose with ``instead``.
    """
    changed = _changed(options.recipe, defaults)
    given = [name for name in decided if name in changed]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"Expected flags that are the same for all cells. Received: {flags}, which the "
            f"comparison decides cell by cell: choose with {instead}."
        )


def _widths_of_table(figures: PaperFigures, dataset: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the widths of each dataset."""
    found: dict[str, dict[tuple[int, int], None]] = {}
    for name, widths, _ in figures:
        found.setdefault(name, {})[widths] = None
    if dataset not in found:
        found = {dataset: max(found.values(), key=len)}
    return {name: tuple(widths) for name, widths in found.items()}


def _widths_of_methods(
    names: tuple[str, ...], as_in_papers: bool
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the widths of each method: of its paper's rows, or its lowest bits with A32 and A2.

    Args:
        names: Of the methods; none for all that have rows where those are asked for.
        as_in_papers: Whether they are.

    Raises:
        ValueError: A method is unknown, or has no rows.
    """
    chosen = [methods.get(name) for name in names or methods.names()]
    if not as_in_papers:
        return {
            each.name: tuple((each.lowest_bits, bits) for bits in _METHOD_ACTIVATIONS)
            for each in chosen
        }
    without = [each.name for each in chosen if not each.rows]
    if names and without:
        known = [name for name in methods.names() if methods.get(name).rows]
        raise ValueError(
            "Expected methods with rows in the paper's tables. Received: "
            f"{', '.join(without)}. Those with rows: {', '.join(known)}. "
            "`dlqat table methods` takes all."
        )
    return {
        each.name: tuple((row.weight_bits, row.activation_bits) for row in each.rows)
        for each in chosen
        if each.rows
    }


def _losses(options: MethodOptions, losses: dict[str, dict]) -> dict[str, dict]:
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
