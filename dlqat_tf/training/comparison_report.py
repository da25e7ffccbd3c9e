"""What a comparison found: Markdown, CSV, a picture, and whether the losses are ordered."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlqat_tf._host import check_folder, check_regular, replacing, write_whole
from dlqat_tf.analysis import delta_p
from dlqat_tf.report import counted
from dlqat_tf.training.comparison import FLOAT, PAPER_RATE, TUNED_RATE, Key, Swept, label
from dlqat_tf.training.grid import DIVERGED, RESULT, read_result

PaperFigures = dict[tuple[str, tuple[int, int], str], float]
"""Top-1 in percent by dataset, widths and loss."""

_BUDGET = (
    *("stem", "width", "float_epochs", "epochs", "batch_size", "precision", "augment"),
    *("train_size", "validation_size", "images_per_epoch", "image_size", "stages"),
)
_COLUMNS = (
    *("dataset", "loss", "weight_bits", "activation_bits", "rate", "seed", "learning_rate"),
    *("top1", "delta_p", "paper_top1", "float_epochs", "epochs", "images", "seconds", "commit"),
)


@dataclass(frozen=True)
class Order:
    """Whether accuracies rise from loss to loss, in the order given.

    Attributes:
        held: Seeds for which every loss is better than the one before it.
        seeds: Seeds for which every loss has a result.
        p_value: Of Page's trend test (Page 1963, one-sided, seeds are the blocks): how probable so
            much of a trend is where the losses do not differ. None below two seeds or three losses,
            for which there is no test.
    """

    held: int
    seeds: int
    p_value: float | None


def order_of(accuracies: list[list[float]]) -> Order:
    """Test whether accuracies are ordered.

    Args:
        accuracies: For each seed those of the losses, in the order that is claimed.
    """
    from scipy.stats import page_trend_test

    held = sum(all(a < b for a, b in itertools.pairwise(row)) for row in accuracies)
    p_value = None
    if len(accuracies) >= 2 and len(accuracies[0]) >= 3:
        p_value = float(page_trend_test(accuracies).pvalue)
    return Order(held, len(accuracies), p_value)


class TableReport:
    """What the reports on comparisons have in common: three files, and finished cells."""

    def markdown(self) -> str:
        """Return the report as Markdown."""
        raise NotImplementedError

    def csv(self) -> str:
        """Return one line for each cell."""
        raise NotImplementedError

    def draw(self, path: Path) -> None:
        """Draw the report."""
        raise NotImplementedError

    def write(self, folder: Path) -> list[Path]:
        """Write ``table.md``, ``table.csv`` and ``table.png`` to a folder, and return the paths.

        Raises:
            OSError: The folder cannot be written to, or holds a folder of one of these names.
        """
        check_folder(folder)
        markdown, lines, picture = (folder / f"table.{kind}" for kind in ("md", "csv", "png"))
        for each in (markdown, lines, picture):
            check_regular(each)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(markdown, self.markdown())
        write_whole(lines, self.csv())
        self.draw(picture)
        return [markdown, lines, picture]


def no_cells(folders: Iterable[Path]) -> ValueError:
    """Return what to say of folders without a finished cell."""
    shown = ", ".join(map(str, folders))
    return ValueError(f"Expected finished cells of this comparison in {shown}, found none.")


class ComparisonReport(TableReport):
    """The finished cells of a comparison of losses.

    Args:
        folders: Where runs and archived results are; the first folder that has a cell counts.
        paper: The paper's figures.
        losses: In the order that the paper claims, worst first.

    Raises:
        ValueError: No folder has a finished cell.
    """

    def __init__(self, folders: Iterable[Path], paper: PaperFigures, losses: tuple[str, ...]):
        folders = list(folders)
        self.paper, self.losses = paper, losses
        self.results: dict[Key, dict] = {}
        self.swept: dict[Swept, dict] = {}
        for name, result in read_results(folders).items():
            if key := Key.parse(name):
                self.results[key] = result
            elif swept := Swept.parse(name):
                self.swept[swept] = result
        if not self.results:
            raise no_cells(folders)

    def _rates(self) -> list[str]:
        """Return the rates that have a result, the tuned one and the paper's first."""
        rates = {key.rate for key in self.results}
        first = [rate for rate in (TUNED_RATE, PAPER_RATE) if rate in rates]
        return first + sorted(rates - set(first))

    @property
    def rows(self) -> list[tuple[str, tuple[int, int]]]:
        """Datasets and widths that have a result, in the order of the paper's table."""
        found = {(key.dataset, key.widths) for key in self.results}
        papers = dict.fromkeys((dataset, widths) for dataset, widths, _ in self.paper)
        others = sorted(found - set(papers), key=lambda row: (row[0], -row[1][0], -row[1][1]))
        return [row for row in papers if row in found] + others

    def accuracies(self, dataset, widths, loss, rate) -> dict[int, float]:
        """Return top-1 in percent by seed, without what diverged."""
        return {
            key.seed: 100 * result["accuracy"]
            for key, result in sorted(self.results.items())
            if key[:4] == (dataset, loss, widths, rate) and result["accuracy"] is not None
        }

    def drops(self, dataset, widths, loss, rate) -> list[float]:
        """Return Delta P (DL-QAT eq. 6) in points, for each seed that has both networks."""
        floats = self.accuracies(dataset, FLOAT, loss, rate)
        quantized = self.accuracies(dataset, widths, loss, rate)
        return [delta_p(floats[seed], quantized[seed]) for seed in quantized if seed in floats]

    def order(self, dataset, widths, rate) -> Order:
        """Return whether the losses are ordered as the paper claims, at these widths."""
        by_loss = [self.accuracies(dataset, widths, loss, rate) for loss in self.losses]
        seeds = sorted(set.intersection(*map(set, by_loss)))
        return order_of([[each[seed] for each in by_loss] for seed in seeds])

    def diverged(self) -> list[str]:
        """Return the names of the cells whose training diverged."""
        results: dict[Any, dict] = {**self.results, **self.swept}
        return [key.name for key, result in results.items() if result["accuracy"] is None]

    def budgets(self) -> list[dict]:
        """Return the settings that decide what training costs; one where all cells share them."""
        return budgets_of(list(self.results.values()))

    def markdown(self) -> str:
        """Return the report as Markdown."""
        rates = self._rates()
        parts = [
            settings_of(list(self.results.values())),
            "## Top-1, and what quantization costs (Delta P)",
        ]
        parts += [self._accuracy_table(rates)]
        parts += [f"## Is {' < '.join(self.losses)}?", self._order_table(rates)]
        if self.swept:
            parts += ["## Learning rates", self._rate_table()]
        if diverged := self.diverged():
            parts.append("Diverged, and left out of the means: " + ", ".join(diverged) + ".")
        return "\n\n".join(parts) + "\n"

    def _accuracy_table(self, rates: list[str]) -> str:
        columns = ("paper", *_shown(rates))
        heads = ["dataset", "widths", "loss", *columns, *(f"Delta P, {each}" for each in columns)]
        lines = []
        for (dataset, widths), loss in itertools.product(self.rows, self.losses):
            source, top1 = (self.paper.get((dataset, each, loss)) for each in (FLOAT, widths))
            line = [dataset, _width_name(widths), loss]
            line.append("" if top1 is None else f"{top1:.1f}")
            line += [
                spread(self.accuracies(dataset, widths, loss, rate).values()) for rate in rates
            ]
            if widths == FLOAT:
                line += [""] * len(columns)
            else:
                line.append(_cost(source, top1, digits=1))
                line += [spread(self.drops(dataset, widths, loss, rate)) for rate in rates]
            lines.append(line)
        return table(heads, lines)

    def _order_table(self, rates: list[str]) -> str:
        heads = ["dataset", "widths", "rate", "seeds in this order", "p, Page's trend test"]
        lines = []
        for dataset, widths in self.rows:
            for rate in rates:
                order = self.order(dataset, widths, rate)
                if order.seeds:
                    p_value = "-" if order.p_value is None else f"{order.p_value:.3f}"
                    held = f"{order.held} of {order.seeds}"
                    lines.append([dataset, _width_name(widths), rate, held, p_value])
        note = (
            "One-sided, seeds are the blocks; `-`: fewer than two seeds or three losses, no test. "
            "With three seeds the smallest possible p is 0.005."
        )
        return table(heads, lines) + "\n\n" + note

    def _rate_table(self) -> str:
        rates = sorted({key.learning_rate for key in self.swept})
        heads = ["dataset", "loss", *(f"{rate:g}" for rate in rates)]
        pairs = list(dict.fromkeys((key.dataset, key.loss) for key in self.swept))
        lines = []
        for dataset, loss in pairs:
            line = [dataset, loss]
            for rate in rates:
                result = self.swept.get(Swept(dataset, loss, rate))
                line.append("" if result is None else _stages_of(result))
            lines.append(line)
        recipe = next(iter(self.swept.values()))["recipe"]
        note = (
            f"Top-1 in percent of {recipe['validation_size']:,} training images held out, float / "
            f"{label((recipe['weight_bits'], recipe['activation_bits']))}, after "
            f"{recipe['float_epochs']} and {counted(recipe['epochs'], 'epoch')}, one seed; rates "
            f"are for batch {recipe['reference_batch']}, the run's batch is {recipe['batch_size']}."
        )
        return table(heads, lines) + "\n\n" + note

    def csv(self) -> str:
        """Return one line for each cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for key, result in sorted(self.results.items()):
            recipe = result["recipe"]
            top1 = self.accuracies(*_group(key)).get(key.seed)
            source = self.accuracies(key.dataset, FLOAT, key.loss, key.rate).get(key.seed)
            writer.writerow(
                [
                    *(key.dataset, key.loss, *key.widths, key.rate, key.seed),
                    recipe["learning_rate"],
                    "diverged" if top1 is None else f"{top1:.2f}",
                    "" if key.widths == FLOAT else _cost(source, top1, digits=2),
                    self.paper.get((key.dataset, key.widths, key.loss), ""),
                    *(recipe["float_epochs"], recipe["epochs"]),
                    recipe["train_size"] or "all",
                    "" if result.get("seconds") is None else round(result["seconds"]),
                    result["environment"]["commit"],
                ]
            )
        return text.getvalue()

    def draw(self, path: Path) -> None:
        """Draw top-1 by widths for each loss: the paper's, and ours beside it."""
        from matplotlib.figure import Figure

        rates = self._rates()
        datasets = list(dict.fromkeys(dataset for dataset, _ in self.rows))
        panels = ["the paper", *(f"ours, {each}" for each in _shown(rates))]
        figure = Figure(figsize=(4.4 * len(panels), 3.8 * len(datasets)), layout="constrained")
        grid = figure.subplots(len(datasets), len(panels), squeeze=False, sharey="row")
        for axes_row, dataset in zip(grid, datasets, strict=True):
            widths = [each for name, each in self.rows if name == dataset]
            for axes, panel, rate in zip(axes_row, panels, (None, *rates), strict=True):
                for loss in self.losses:
                    self._draw_loss(axes, dataset, widths, loss, rate)
                names = [_width_name(each) for each in widths]
                axes.set_xticks(range(len(widths)), names, rotation=45 if len(widths) > 5 else 0)
                axes.set_title(f"{dataset}: {panel}")
                axes.grid(alpha=0.3)
            axes_row[0].set_ylabel("test top-1, %")
        grid[0][0].legend(loc="lower left")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)

    def _draw_loss(self, axes, dataset, widths, loss, rate) -> None:
        points = []
        for position, each in enumerate(widths):
            if rate is None:
                figure = self.paper.get((dataset, each, loss))
                values = [] if figure is None else [figure]
            else:
                values = list(self.accuracies(dataset, each, loss, rate).values())
            if values:
                error = statistics.stdev(values) if len(values) > 1 else 0.0
                points.append((position, statistics.mean(values), error))
        color = f"C{self.losses.index(loss)}"
        if points:
            x, y, errors = zip(*points, strict=True)
            axes.errorbar(x, y, errors, fmt="o-", color=color, label=loss, capsize=3)
        else:
            axes.plot([], [], "o-", color=color, label=loss)


def budgets_of(results: list[dict]) -> list[dict]:
    """Return the settings of results that decide what training costs, each once."""
    found = []
    for result in results:
        budget = {name: result["recipe"].get(name) for name in _BUDGET}
        if budget not in found:
            found.append(budget)
    return found


def settings_of(results: list[dict]) -> str:
    """Return what a reader needs to place results, as a list in Markdown."""
    lines = []
    budgets = budgets_of(results)
    if len(budgets) > 1:
        lines.append(f"**Not one budget**: the cells were trained under {len(budgets)}.")
    for budget in budgets:
        given = (f"{name} {value}" for name, value in budget.items() if value is not None)
        lines.append("- " + ", ".join(given))
    commits = sorted({str(result["environment"]["commit"]) for result in results})
    devices = sorted({result["environment"]["device"] for result in results})
    seconds = sum(result.get("seconds") or 0.0 for result in results)
    lines.append(
        f"- {counted(len(results), 'cell')}, {seconds / 3600:.1f} hours (a float stage counts for "
        f"each that starts from it), on {'; '.join(devices)}; commits {', '.join(commits)}"
    )
    lines.append(
        "- top-1 in percent after the last epoch, whole test set; mean ± sample "
        "standard deviation (number of seeds)"
    )
    return "\n".join(lines)


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: Iterable[float]) -> str:
    """Return mean and sample standard deviation, with the number of values; "" for none."""
    values = list(values)
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f} (1)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def read_results(folders: Iterable[Path]) -> dict[str, dict]:
    """Return the results in folders by the name of their cell."""
    found: dict[str, dict] = {}
    for folder in folders:
        for file in (RESULT, DIVERGED):
            for path in sorted(Path(folder).glob(f"*/{file}")):
                found.setdefault(path.parent.name, read_result(path))
    return found


def _group(key: Key) -> tuple:
    return key.dataset, key.widths, key.loss, key.rate


def _shown(rates: list[str]) -> list[str]:
    names = {PAPER_RATE: "paper's rate", TUNED_RATE: "own best rate"}
    return [names[rate] for rate in rates]


def _width_name(widths: tuple[int, int]) -> str:
    return "float" if widths == FLOAT else label(widths)


def _stages_of(result: dict) -> str:
    """Return the accuracy after each stage in percent."""
    if result["accuracy"] is None:
        return "diverged"
    return " / ".join(f"{100 * stage['final_accuracy']:.1f}" for stage in result["stages"])


def _cost(source: float | None, top1: float | None, *, digits: int) -> str:
    """Return Delta P as it is written, nothing where one of both is not known."""
    return "" if source is None or top1 is None else f"{delta_p(source, top1):.{digits}f}"
