"""Losses against each other, width by width: what the grids of the paper's tables are made of."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from dlqat_tf.training.grid import Cell, Grid, Outcome
from dlqat_tf.training.recipe import Recipe

PAPER_RATE, TUNED_RATE = "paper", "tuned"
QUANTIZED_SHARE = 0.4
"""Learning rate of a quantized stage over that of its float stage, the same for every loss: at the
float stage's own, accuracy fell from epoch to epoch (see dlqat_command/recipes/cifar100_gml.py)."""
FLOAT = (32, 32)
_NAME = re.compile(
    r"(?P<dataset>\w+)-(?P<loss>\w+)-(?P<widths>W\d+A\d+)-(?P<rate>\w+)-s(?P<seed>\d+)"
)
_SWEPT = re.compile(r"rates-(?P<dataset>\w+)-(?P<loss>\w+)-(?P<learning_rate>[\d.e-]+)")


class Key(NamedTuple):
    """What a cell of a comparison is about.

    Attributes:
        dataset: As in a recipe.
        loss: "CEL", "AMS" or "GML".
        widths: Bits of weights and activations; 32 and 32 is the float network.
        rate: "paper" for the paper's learning rate, "tuned" for the loss's own best.
        seed: As in a recipe.
    """

    dataset: str
    loss: str
    widths: tuple[int, int]
    rate: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"{self.dataset}-{self.loss}-{label(self.widths)}-{self.rate}-s{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Key | None:
        """Return the key of a cell's name, None where it is no name of a cell."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        weights, activations = map(int, re.findall(r"\d+", found["widths"]))
        widths = (weights, activations)
        return cls(found["dataset"], found["loss"], widths, found["rate"], int(found["seed"]))


class Swept(NamedTuple):
    """What a cell of a sweep of learning rates is about; the fields are as those of a :class:`Key`.

    Attributes:
        learning_rate: Of the float stage, for the recipe's reference batch.
    """

    dataset: str
    loss: str
    learning_rate: float

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"rates-{self.dataset}-{self.loss}-{self.learning_rate:g}"

    @classmethod
    def parse(cls, name: str) -> Swept | None:
        """Return the key of a cell's name, None where it is no name of a cell."""
        found = _SWEPT.fullmatch(name)
        return found and cls(found["dataset"], found["loss"], float(found["learning_rate"]))


def label(widths: tuple[int, int]) -> str:
    """Return widths as they are written, for example "W1A2"."""
    return f"W{widths[0]}A{widths[1]}"


@dataclass(frozen=True)
class Comparison:
    """Every loss at every width on every dataset, under one budget.

    Attributes:
        base: What all cells have in common: network, epochs, batch, precision.
        widths: By dataset, bits of weights and activations; a float network belongs to each.
        losses: By name, what a loss changes in the recipe: its head and the paper's learning rate.
        seeds: As in a recipe.
        rates: Learning rates to choose each loss's own best from; none for the paper's only.
        rate_epochs: Epochs of the float and of the quantized stage while rates are compared.
        rate_widths: Widths of that quantized stage.
        held_out: Training images that rates are measured on instead of the test set.
    """

    base: Recipe
    widths: dict[str, tuple[tuple[int, int], ...]]
    losses: dict[str, dict]
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = ()
    rate_epochs: tuple[int, int] = (6, 3)
    rate_widths: tuple[int, int] = (1, 2)
    held_out: int = 5000

    def sweep(self) -> dict[Swept, Cell]:
        """Return the cells that choose learning rates.

        Each is two short stages of the first seed, measured on training images held out.
        """
        cells = {}
        for dataset in self.widths:
            for loss, changes in self.losses.items():
                for rate, seed in itertools.product(self.rates, self.seeds[:1]):
                    key = Swept(dataset, loss, rate)
                    epochs, quantized_epochs = self.rate_epochs
                    recipe = self._recipe(
                        dataset,
                        changes | {"learning_rate": rate},
                        self.rate_widths,
                        seed,
                        validation_size=self.held_out,
                        float_epochs=epochs,
                        epochs=quantized_epochs,
                    )
                    cells[key] = Cell(key.name, recipe)
        return cells

    def cells(self, tuned: dict[tuple[str, str], float]) -> dict[Key, Cell]:
        """Return the cells of the table, float ones before those that start from them.

        Args:
            tuned: Learning rate by dataset and loss, what :func:`best_rates` returns; without one
                there are no cells at tuned rates.
        """
        cells = {}
        for dataset, quantized in self.widths.items():
            for seed in self.seeds:
                for widths in dict.fromkeys((FLOAT, *quantized)):
                    for loss, changes in self.losses.items():
                        rates = {PAPER_RATE: changes["learning_rate"]}
                        if (dataset, loss) in tuned:
                            rates = {TUNED_RATE: tuned[dataset, loss], **rates}
                        for name, rate in rates.items():
                            key = Key(dataset, loss, widths, name, seed)
                            source = key._replace(widths=FLOAT)
                            recipe = self._recipe(
                                dataset, changes | {"learning_rate": rate}, widths, seed
                            )
                            has_source = widths != FLOAT and recipe.stages == 2
                            starts_from = source.name if has_source else None
                            cells[key] = Cell(key.name, recipe, starts_from)
        return cells

    def _recipe(self, dataset: Any, changes: dict, widths, seed: int, **more) -> Recipe:
        rounded = self.base.residual_bits
        recipe = dataclasses.replace(
            self.base,
            dataset=dataset,
            weight_bits=widths[0],
            activation_bits=widths[1],
            residual_bits=32 if rounded and widths == FLOAT else rounded,
            seed=seed,
            quantized_learning_rate=QUANTIZED_SHARE * changes["learning_rate"],
            **changes | more,
        )
        if recipe.stages == 1 and widths != FLOAT:
            recipe = from_scratch(recipe)
        return fitting(recipe, self.losses)

    def train(
        self, folder: Path, archive: Path | None = None, patterns: Sequence[str] = ("*",)
    ) -> dict[Key, Outcome]:
        """Train what is not trained yet, and return the outcomes of the chosen cells.

        Args:
            folder: As for :class:`dlqat_tf.training.grid.Grid`.
            archive: As for :class:`dlqat_tf.training.grid.Grid`.
            patterns: Names of cells to train, with ``*`` and ``?``; a float cell that one of them
                starts from is trained too.

        Raises:
            ValueError: A pattern fits no cell, or a cell cannot be trained.
        """
        swept = self.sweep()
        # Learning rates are not known yet, and names do not depend on them.
        guess = {(key.dataset, key.loss): key.learning_rate for key in swept}
        names = chosen([key.name for key in self.cells(guess)], patterns)
        keys = [key for key in map(Key.parse, names) if key and key.rate == TUNED_RATE]
        needed = {(key.dataset, key.loss) for key in keys}
        swept = {key: cell for key, cell in swept.items() if (key.dataset, key.loss) in needed}
        outcomes = Grid(list(swept.values()), folder, archive).run()
        tuned = best_rates({key: outcomes[cell.name] for key, cell in swept.items()})
        cells = {cell.name: cell for cell in self.cells(tuned).values()}
        # In the order of the patterns. Without any good learning rate there is no cell.
        ordered: dict[str, Cell] = {}
        for cell in (cells[name] for name in names if name in cells):
            if cell.starts_from is not None:
                ordered[cell.starts_from] = cells[cell.starts_from]
            ordered[cell.name] = cell
        outcomes = Grid(list(ordered.values()), folder, archive).run()
        return {key: outcomes[key.name] for key in map(Key.parse, ordered) if key}


def from_scratch(recipe: Recipe) -> Recipe:
    """Return a recipe of one stage, as long as both of those that it is compared with."""
    return dataclasses.replace(recipe, stages=1, epochs=recipe.float_epochs + recipe.epochs)


def fitting(recipe: Recipe, losses: dict[str, dict]) -> Recipe:
    """Return the recipe of a cell without what is asked for all cells and only others have.

    Args:
        recipe: Of the cell.
        losses: As in a comparison.
    """
    if not recipe.is_quantized:
        recipe = dataclasses.replace(recipe, teacher=None)
    if recipe.head != "gml" and any(changes["head"] == "gml" for changes in losses.values()):
        monitor = tuple(each for each in recipe.monitor if each != "mixture")
        recipe = dataclasses.replace(recipe, monitor=monitor)
    return recipe


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that a pattern fits, pattern by pattern.

    Raises:
        ValueError: A pattern fits none, or there are no names.
    """
    names = list(names)
    if not names:
        raise ValueError(
            "Expected a comparison of one cell at least. Received: none: name a loss and a seed."
        )
    found: dict[str, None] = {}
    for pattern in patterns:
        fits = [name for name in names if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(
                f"Expected names of cells, or patterns that fit some. Received: {pattern!r}, which "
                f"fits none of {len(names)}, from {names[0]!r} to {names[-1]!r}."
            )
        found |= dict.fromkeys(fits)
    return list(found)


def best_rates(outcomes: dict[Swept, Outcome]) -> dict[tuple[str, str], float]:
    """Return each loss's best learning rate by dataset and loss; of equal ones the lowest.

    A rate at which training diverged is worse than any other. Where all of a loss's diverge, it has
    none.
    """
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for (dataset, loss, rate), outcome in sorted(outcomes.items()):
        accuracy = outcome.accuracy
        if accuracy is not None and accuracy > best.get((dataset, loss), (-1.0, 0.0))[0]:
            best[dataset, loss] = (accuracy, rate)
    return {key: rate for key, (_, rate) in best.items()}
