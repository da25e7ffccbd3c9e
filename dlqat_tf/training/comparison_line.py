"""The command line of the scripts that compare losses: ``recipes/table1.py`` and its like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markdown import Markdown

from dlqat_tf._script import ending
from dlqat_tf.training.command_line import MENDABLE, defaults_of, print_shortening
from dlqat_tf.training.comparison import Comparison
from dlqat_tf.training.comparison_report import ComparisonReport, PaperFigures
from dlqat_tf.training.recipe import Recipe

_console = Console()
_DECIDED = (
    *("head", "weight_bits", "activation_bits", "learning_rate"),
    *("quantized_learning_rate", "seed", "float_stage", "validation_size", "restart"),
)
"""Fields of a recipe that the comparison decides, cell by cell."""


@dataclass(frozen=True)
class Options:
    """What a comparison takes beside a recipe's flags."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    """What all cells have in common; --output is the folder of the comparison."""
    cells: tuple[str, ...] = ("*",)
    """Train these cells only, by name; * and ? stand for other characters."""
    seeds: tuple[int, ...] = (0,)
    """Each cell is trained once with each."""
    rates: tuple[float, ...] = ()
    """Learning rates, at reference_batch, to find each loss's own best on training images held out;
    every cell is then trained at that one too, beside the paper's."""
    rate_epochs: tuple[int, int] = (6, 3)
    """Epochs of the float and of the quantized stage while learning rates are compared."""
    held_out: int = 5000
    """Training images that learning rates are measured on."""
    archive: Path | None = None
    """Folder for results and histories of finished cells; what it holds is not trained again."""
    report: Path | None = None
    """Train nothing: write table.md, table.csv and table.png of what is finished to this folder."""


def main(
    paper: Recipe,
    *,
    short: dict,
    losses: dict[str, dict],
    figures: PaperFigures,
    description: str,
    arguments: list[str] | None = None,
) -> None:
    """Run a script that compares losses: parse its command line, train or report.

    Args:
        paper: What all cells have in common at the paper's settings.
        short: As for :func:`dlqat_tf.training.command_line.main`.
        losses: By name, worst first as the paper claims, what a loss changes in the recipe.
        figures: The paper's figures, which name the datasets and the widths of each. Another
            dataset, given by ``--dataset``, takes the place of all, with the most widths.
        description: The script's docstring, shown by ``--help``.
        arguments: Command line without the program's name; ``sys.argv`` by default.
    """
    defaults, changes = defaults_of(paper, short, arguments)
    options = tyro.cli(
        Options, default=Options(recipe=defaults), description=description, args=arguments
    )
    recipe = options.recipe
    interrupted = f"interrupted; the same command goes on with what is in {recipe.output}"
    with ending(ValueError, *MENDABLE, interrupted=interrupted):
        if options.report is not None:
            folders = [folder for folder in (recipe.output, options.archive) if folder]
            report = ComparisonReport(folders, figures, tuple(losses))
            _console.print(Markdown(report.markdown()))
            _console.print("\n".join(map(str, report.write(options.report))))
            return
        _refuse_decided(recipe, defaults)
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


def _refuse_decided(recipe: Recipe, defaults: Recipe) -> None:
    given = [name for name in _DECIDED if getattr(recipe, name) != getattr(defaults, name)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"Expected flags that are the same for all cells. Received: {flags}, which the "
            "comparison decides cell by cell: choose with --cells, --seeds and --rates."
        )
