"""Methods against each other, width by width: what the grids of Tables 2 and 3 are made of."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlqat_tf import methods
from dlqat_tf._host import write_whole
from dlqat_tf.loading import load_model
from dlqat_tf.summary import predict
from dlqat_tf.training.comparison import (
    FLOAT,
    QUANTIZED_SHARE,
    chosen,
    fitting,
    from_scratch,
    label,
)
from dlqat_tf.training.grid import Cell, Grid, Outcome
from dlqat_tf.training.recipe import Recipe

SIZES = "sizes.json"  # in the folder of a finished cell
_NAME = re.compile(
    r"(?P<dataset>[^-]+)-(?P<method>\w+)-(?P<loss>[^-]+)-W(?P<weights>\d+)A(?P<activations>\d+)"
    r"-s(?P<seed>\d+)"
)


class Key(NamedTuple):
    """What a cell is about.

    Attributes:
        dataset: As in a recipe.
        method: A name in :mod:`dlqat_tf.methods`.
        loss: "CEL", "AMS" or "GML".
        widths: Bits of weights and activations; 32 and 32 is the float network.
        seed: As in a recipe.
    """

    dataset: str
    method: str
    loss: str
    widths: tuple[int, int]
    seed: int

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"{self.dataset}-{self.method}-{self.loss}-{label(self.widths)}-s{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Key | None:
        """Return the key of a cell's name, None where it is no name of a cell."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        widths = (int(found["weights"]), int(found["activations"]))
        return cls(found["dataset"], found["method"], found["loss"], widths, int(found["seed"]))


@dataclass(frozen=True)
class MethodComparison:
    """Every method at its widths with every loss.

    Attributes:
        base: What all cells have in common.
        widths: By method, bits of weights and activations; a float network belongs to each, and
            methods whose float kernels are the same share one.
        losses: By name, what a loss changes in the recipe: its head and its learning rate.
        seeds: As in a recipe.
        as_in_papers: Each method with the network and the training of its own paper, instead of
            those of ``base`` for all.
        settled: Fields of the recipe that ``base`` decides, whatever the papers say.
    """

    base: Recipe
    widths: dict[str, tuple[tuple[int, int], ...]]
    losses: dict[str, dict]
    seeds: tuple[int, ...] = (0,)
    as_in_papers: bool = False
    settled: frozenset[str] = frozenset()

    def twin(self, method: str) -> str:
        """Return the method whose float network a method is compared with and starts from."""
        if self.as_in_papers:
            return method
        clamped = is_clamped(method)
        return next(each for each in self.widths if is_clamped(each) == clamped)

    def cells(self) -> dict[Key, Cell]:
        """Return the cells, float ones before those that start from them."""
        cells: dict[Key, Cell] = {}
        for seed in self.seeds:
            for loss in self.losses:
                for method, widths in self.widths.items():
                    source = Key(self.base.dataset, self.twin(method), loss, FLOAT, seed)
                    cells.setdefault(source, Cell(source.name, self._recipe(source)))
                    for each in widths:
                        key = source._replace(method=method, widths=each)
                        recipe = self._recipe(key)
                        starts_from = source.name if recipe.stages == 2 else None
                        cells[key] = Cell(key.name, recipe, starts_from)
        return cells

    def _recipe(self, key: Key) -> Recipe:
        recipe = dataclasses.replace(self.base, **self.losses[key.loss])
        own = methods.get(key.method).recipe
        recipe = dataclasses.replace(recipe, method=key.method)
        if self.as_in_papers:
            brought = {name: each for name, each in own.items() if name not in self.settled}
            recipe = dataclasses.replace(recipe, **brought)
        else:
            recipe = dataclasses.replace(
                recipe,
                quantized_learning_rate=QUANTIZED_SHARE * recipe.learning_rate,
            )
            if own.get("stages") == 1 and key.widths != FLOAT:
                recipe = from_scratch(recipe)
        if recipe.stages == 1 and recipe.teacher == "float":
            recipe = dataclasses.replace(recipe, teacher=None)  # there is no float stage
        weight_bits, activation_bits = key.widths
        is_float = activation_bits == 32
        recipe = dataclasses.replace(
            recipe,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            residual_bits=32 if recipe.residual_bits and is_float else recipe.residual_bits,
            stages=2 if key.widths == FLOAT else recipe.stages,
            seed=key.seed,
        )
        return fitting(recipe, self.losses)

    def train(
        self, folder: Path, archive: Path | None = None, patterns: Sequence[str] = ("*",)
    ) -> dict[Key, Outcome]:
        """Train what is not trained yet, measure its files, and return the outcomes.

        Args:
            folder: As for :class:`dlqat_tf.training.grid.Grid`.
            archive: As for :class:`dlqat_tf.training.grid.Grid`.
            patterns: Names of cells to train, with ``*`` and ``?``; the float cell that one of them
                is compared with is trained too.

        Raises:
            ValueError: A pattern fits no cell, or a cell cannot be trained.
        """
        cells = {cell.name: (key, cell) for key, cell in self.cells().items()}
        ordered: dict[str, Cell] = {}
        for name in chosen(cells, patterns):
            key, cell = cells[name]
            source = key._replace(method=self.twin(key.method), widths=FLOAT).name
            ordered[source] = cells[source][1]
            ordered[name] = cell
        outcomes = Grid(list(ordered.values()), folder, archive).run()
        for name, outcome in outcomes.items():
            if outcome.accuracy is not None:
                _measure_files(folder / name, archive and archive / name)
        return {cells[name][0]: outcome for name, outcome in outcomes.items()}


def is_clamped(method: str) -> bool:
    """Return whether the float kernels of a method pass a tanh clamp."""
    return methods.clamps(methods.get(method).weights(32))


def _measure_files(run: Path, kept: Path | None) -> None:
    """Write the bytes of each file of a finished run, or why there is none, unless it is known."""
    known = [folder / SIZES for folder in (run, kept) if folder and (folder / SIZES).is_file()]
    if not known:
        model = run / "model.keras"
        if not model.is_file():  # trained elsewhere, and only its results are kept
            return
        sizes = {
            way.name: way.file_bytes or way.reason
            for way in predict(load_model(model)).storage
            if way.file_bytes or way.reason
        }
        write_whole(run / SIZES, json.dumps(sizes, indent=2) + "\n")
        known = [run / SIZES]
    if kept is not None and kept.is_dir() and not (kept / SIZES).is_file():
        write_whole(kept / SIZES, known[0].read_text())
