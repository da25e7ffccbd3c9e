"""What a comparison of methods found: Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable
from pathlib import Path

from dlqat_tf import methods
from dlqat_tf._host import read_object, replacing
from dlqat_tf.training.comparison import FLOAT, label
from dlqat_tf.training.comparison_report import (
    TableReport,
    no_cells,
    read_results,
    settings_of,
    spread,
    table,
)
from dlqat_tf.training.methods_comparison import SIZES, Key, is_clamped

_TARGETS = ("int8", "int4", "lce")
_Row = tuple[str, str, tuple[int, int], str]  # dataset, method, widths, loss


class MethodsReport(TableReport):
    """The finished cells of a comparison of methods.

    Args:
        folders: Where runs and archived results are; the first folder that has a cell counts.
        step_times: What ``benchmarks/step_time.py --method all --output FILE`` wrote, or None.

    Raises:
        ValueError: No folder has a finished cell of a registered method beside float networks.
    """

    def __init__(self, folders: Iterable[Path], step_times: Path | None = None):
        folders = list(folders)
        self.results = {
            key: result
            for key, result in (
                (Key.parse(name), result) for name, result in read_results(folders).items()
            )
            if key is not None
        }
        if not self.results:
            raise no_cells(folders)
        if not self.rows:
            raise ValueError(
                "Expected finished cells of networks that are quantized by registered methods in "
                f"{', '.join(map(str, folders))}, found {len(self.results)} others only: "
                f"{', '.join(key.name for key in sorted(self.results))}."
            )
        self.sizes = {key: _sizes(folders, key) for key in self.results}
        self.step_times = {} if step_times is None else _step_times(step_times)

    @property
    def rows(self) -> list[_Row]:
        """What has a result beside float networks, in the order of the registry."""
        order = methods.names()
        found = {
            (key.dataset, key.method, key.widths, key.loss)
            for key in self.results
            if key.widths != FLOAT and key.method in order
        }
        return sorted(found, key=lambda row: (row[0], order.index(row[1]), *row[2:]))

    def accuracies(self, dataset, method, widths, loss) -> dict[int, float]:
        """Return top-1 in percent by seed, without what diverged."""
        return {
            key.seed: 100 * result["accuracy"]
            for key, result in sorted(self.results.items())
            if key[:4] == (dataset, method, loss, widths) and result["accuracy"] is not None
        }

    def twin(self, dataset, method, widths, loss) -> dict[int, float]:
        """Return top-1 in percent by seed of the float networks that a row is compared with."""
        found: dict[int, float] = {}
        sources = [method]
        if method in methods.names():
            clamped = is_clamped(method)
            sources += [name for name in methods.names() if is_clamped(name) == clamped]
        for source in sources:
            found = self.accuracies(dataset, source, FLOAT, loss) | found
        return found

    def drops(self, *row) -> list[float]:
        """Return how far a row is below its float network, in points, seed by seed."""
        floats, quantized = self.twin(*row), self.accuracies(*row)
        return [floats[seed] - quantized[seed] for seed in quantized if seed in floats]

    def bytes(self, *row) -> dict[str, int | str]:
        """Return the bytes of each file, or why there is none."""
        dataset, method, widths, loss = row
        for key, sizes in self.sizes.items():
            if key[:4] == (dataset, method, loss, widths) and sizes:
                return sizes
        return {}

    def step_time(self, method: str, widths: tuple[int, int]) -> float | None:
        """Return the median time of a training step over that of plain Keras."""
        return self.step_times.get(f"{method}:{label(widths)}")

    def diverged(self) -> list[str]:
        """Return the names of the cells whose training diverged."""
        return [key.name for key, result in self.results.items() if result["accuracy"] is None]

    def markdown(self) -> str:
        """Return the report as Markdown."""
        parts = [settings_of(list(self.results.values())), self._table(), self._reasons()]
        if diverged := self.diverged():
            parts.append("Diverged, and left out of the means: " + ", ".join(diverged) + ".")
        return "\n\n".join(part for part in parts if part) + "\n"

    def _table(self) -> str:
        heads = ["dataset", "method", "widths", "loss", "top-1", "float", "drop", "step time"]
        heads += [f"{target}, kB" for target in _TARGETS]
        heads += ["paper's top-1, ImageNet", "on"]
        lines = []
        for row in self.rows:
            dataset, method, widths, loss = row
            sizes, step = self.bytes(*row), self.step_time(method, widths)
            paper = _of_paper(method, widths)
            lines.append(
                [
                    *(dataset, method, label(widths), loss),
                    spread(self.accuracies(*row).values()),
                    spread(self.twin(*row).values()),
                    spread(self.drops(*row)),
                    "" if step is None else f"{step:.2f}",
                    *(_kilobytes(sizes.get(target)) for target in _TARGETS),
                    "" if paper is None else f"{paper:.1f}",
                    "" if paper is None else methods.get(method).network,
                ]
            )
        note = (
            "`drop`: points below the float network of the same head and seed; `step time`: of a "
            "training step over plain Keras's float step, paired (`benchmarks/step_time.py "
            "--method all`), empty where not measured. The papers' figures are those that DL-QAT's "
            "Tables 2 and 3 give, of ImageNet and other recipes: not to be compared with the rest."
        )
        return table(heads, lines) + "\n\n" + note

    def _reasons(self) -> str:
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for target, size in self.bytes(*row).items():
                if isinstance(size, str):
                    what = f"{row[1]} {label(row[2])} {target}"
                    names = found.setdefault(size, [])
                    names += [what] if what not in names else []
        return "\n".join(
            f"- no file of {', '.join(names)}: {each}" for each, names in found.items()
        )

    def csv(self) -> str:
        """Return one line for each cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = ("dataset", "method", "loss", "weight_bits", "activation_bits", "seed", "top1")
        more = ("drop", "paper_imagenet_top1", "step_time", "float_epochs", "epochs", "stages")
        writer.writerow([*names, *more, *(f"{each}_bytes" for each in _TARGETS), "commit"])
        for key, result in sorted(self.results.items()):
            recipe = result["recipe"]
            row = key.dataset, key.method, key.widths, key.loss
            top1, source = self.accuracies(*row).get(key.seed), self.twin(*row).get(key.seed)
            is_float = key.widths == FLOAT
            drop = ""
            if not is_float and source is not None and top1 is not None:
                drop = f"{source - top1:.2f}"
            sizes, step = self.sizes[key], self.step_time(key.method, key.widths)
            paper = None if is_float else _of_paper(key.method, key.widths)
            writer.writerow(
                [
                    *(key.dataset, key.method, key.loss, *key.widths, key.seed),
                    "diverged" if top1 is None else f"{top1:.2f}",
                    drop,
                    "" if paper is None else paper,
                    "" if step is None else f"{step:.3f}",
                    *(recipe["float_epochs"], recipe["epochs"], recipe["stages"]),
                    *(
                        size if isinstance(size := sizes.get(each), int) else ""
                        for each in _TARGETS
                    ),
                    result["environment"]["commit"],
                ]
            )
        return text.getvalue()

    def draw(self, path: Path) -> None:
        """Draw the top-1 of each method and width, losses beside each other, floats as lines."""
        from matplotlib.figure import Figure

        datasets = list(dict.fromkeys(row[0] for row in self.rows))
        losses = list(dict.fromkeys(row[3] for row in self.rows))
        most = max(len({row[1:3] for row in self.rows if row[0] == each}) for each in datasets)
        size = (max(5.0, 1.5 + 0.35 * most), 5.0 * len(datasets))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(datasets), 1, squeeze=False)[:, 0]
        for axes, dataset in zip(panels, datasets, strict=True):
            entries = list(dict.fromkeys(row[1:3] for row in self.rows if row[0] == dataset))
            for number, loss in enumerate(losses):
                color, shift = f"C{number}", 0.18 * (number - (len(losses) - 1) / 2)
                floats: set[float] = set()
                for position, (method, widths) in enumerate(entries):
                    values = list(self.accuracies(dataset, method, widths, loss).values())
                    twin = list(self.twin(dataset, method, widths, loss).values())
                    floats |= {statistics.mean(twin)} if values and twin else set()
                    if values:
                        error = statistics.stdev(values) if len(values) > 1 else 0.0
                        mean = statistics.mean(values)
                        axes.errorbar(
                            position + shift, mean, error, fmt="o", color=color, capsize=3
                        )
                for each in floats:
                    axes.axhline(each, color=color, linestyle="--", linewidth=1, alpha=0.6)
                axes.plot([], [], "o", color=color, label=f"{loss}, dashed: float")
            names = [f"{method} {label(widths)}" for method, widths in entries]
            axes.set_xticks(range(len(names)), names, fontsize=8, rotation=60, ha="right")
            axes.set(title=dataset, ylabel="test top-1, %")
            axes.grid(alpha=0.3, axis="y")
        panels[0].legend(fontsize="small", loc="lower left")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)


def _of_paper(method: str, widths: tuple[int, int]) -> float | None:
    rows = methods.get(method).rows if method in methods.names() else ()
    found = [row.accuracy for row in rows if (row.weight_bits, row.activation_bits) == widths]
    return found[0] if found else None


def _kilobytes(size: int | str | None) -> str:
    return f"{size / 1000:.0f}" if isinstance(size, int) else ("-" if size else "")


def _step_times(file: Path) -> dict[str, float]:
    """Return the median time of a training step over that of plain Keras, by method and widths."""
    advice = "expected what benchmarks/step_time.py --output wrote"
    times = read_object(file, advice)
    try:
        return {name: float(each["time_ratio"][1]) for name, each in times.items()}
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{file} is damaged: {advice}.") from None


def _sizes(folders: list[Path], key: Key) -> dict[str, int | str]:
    for folder in folders:
        file = folder / key.name / SIZES
        if file.is_file():
            return read_object(file, "delete it, and training measures the files again")
    return {}
