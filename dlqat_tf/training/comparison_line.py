"""What ``dlqat table`` does once its arguments are read: train cells, or report on them."""

from __future__ import annotations

from rich.console import Console
from rich.markdown import Markdown

from dlqat_command.comparison import Options
from dlqat_tf._script import ending
from dlqat_tf.training.command_line import MENDABLE, print_shortening
from dlqat_tf.training.comparison import Comparison
from dlqat_tf.training.comparison_report import ComparisonReport, PaperFigures
from dlqat_tf.training.recipe import Recipe

_console = Console()
_DECIDED = (
    *("head", "weight_bits", "activation_bits", "learning_rate"),
    *("quantized_learning_rate", "seed", "float_stage", "validation_size", "restart"),
)
"""Fields of a recipe that the comparison decides, cell by cell."""


def compare(
    options: Options,
    *,
    defaults: Recipe,
    changes: dict,
    losses: dict[str, dict],
    figures: PaperFigures,
) -> None:
    """Train the cells of a comparison, or report on those that are finished.

    Args:
        options: What was asked for.
        defaults: The recipe before the command line changed it.
        changes: What its budget changed of the paper's settings.
        losses: As for :func:`dlqat_command.comparison.command`.
        figures: Likewise.
    """
    recipe = options.recipe
    interrupted = f"interrupted; the same command goes on with what is in {recipe.output}"
    with ending(ValueError, *MENDABLE, interrupted=interrupted):
        if options.report is not None:
            folders = [folder for folder in (recipe.output, options.archive) if folder]
            report = ComparisonReport(folders, figures, tuple(losses))
            _console.print(Markdown(report.markdown()))
            _console.print("\n".join(map(str, report.write(options.report))))
            return
        refuse_decided(recipe, defaults, _DECIDED, "--cells, --seeds and --rates")
        print_shortening(recipe, changes)
        comparison = Comparison(
            base=recipe,
            widths=_widths(figures, recipe.dataset),
            losses=losses,
            seeds=options.seeds,
            rates=options.rates,
            rate_epochs=options.rate_epochs,
            held_out=options.held_out,
        )
        comparison.train(recipe.output, options.archive, options.cells)


def _widths(figures: PaperFigures, dataset: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the widths of each dataset."""
    found: dict[str, dict[tuple[int, int], None]] = {}
    for name, widths, _ in figures:
        found.setdefault(name, {})[widths] = None
    if dataset not in found:
        found = {dataset: max(found.values(), key=len)}
    return {name: tuple(widths) for name, widths in found.items()}


def refuse_decided(
    recipe: Recipe, defaults: Recipe, decided: tuple[str, ...], instead: str
) -> None:
    """Refuse flags that a comparison decides itself.

    Args:
        recipe: What was asked for.
        defaults: The recipe before the command line changed it.
        decided: The fields that the comparison decides.
        instead: What to choose with.

    Raises:
        ValueError: One of them was changed.
    """
    given = [name for name in decided if getattr(recipe, name) != getattr(defaults, name)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"Expected flags that are the same for all cells. Received: {flags}, which the "
            f"comparison decides cell by cell: choose with {instead}."
        )
