"""Many recipes as one job that can be killed, resumed and shared.

A grid is a folder with a run in it for each cell. Finished cells are skipped, killed ones resume,
a cell that diverges is a result like any other, and several processes, on one machine or on several
that share the folder, may work on one grid: each takes cells that no other holds.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dlqat_tf._host import read_object, write_whole
from dlqat_tf.report import counted
from dlqat_tf.training.callbacks import TrainingDiverged
from dlqat_tf.training.folder import different_settings
from dlqat_tf.training.lock import FolderInUse
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import environment
from dlqat_tf.training.stages import run

_console = Console()
_POLL_SECONDS = 20.0
RESULT, DIVERGED = "result.json", "diverged.json"  # what a cell ends with, in its folder
# The result last: a cell whose result is in the archive is finished.
_KEPT = ("float/history.csv", "quantized/history.csv", RESULT, DIVERGED)
_OF_STAGE = {"name", "epochs", "seconds", "final_accuracy"}


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: The run's folder, below the grid's.
        recipe: Its settings; the grid decides ``output`` and ``float_stage``.
        starts_from: Name of the cell whose float stage it starts from; None trains its own.
    """

    name: str
    recipe: Recipe
    starts_from: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a cell ended with.

    Attributes:
        cell: The cell.
        accuracy: Top-1 after the last epoch, 0 to 1; None where training diverged.
        result: The content of ``result.json``, or of ``diverged.json``.
    """

    cell: Cell
    accuracy: float | None
    result: dict

    @property
    def seconds_per_epoch(self) -> dict[str, float]:
        """Seconds of an epoch, by stage, of those whose history is whole."""
        return {
            stage["name"]: stage["seconds"] / stage["epochs"]
            for stage in self.result.get("stages", [])
            if stage["seconds"] is not None
        }


def read_result(file: Path) -> dict:
    """Return what a cell ended with, from its folder or an archive.

    Raises:
        ValueError: The file is damaged.
    """
    advice = "put the right one back, or delete it, and training writes it again"
    result = read_object(file, advice, "accuracy", "recipe", "environment")
    stages = result.get("stages", [])  # where training diverged there are none
    parts = [(result["recipe"], set()), (result["environment"], {"commit", "device"})]
    parts += [(each, _OF_STAGE) for each in stages] if isinstance(stages, list) else [(None, set())]
    accuracy = result["accuracy"]
    is_share = isinstance(accuracy, int | float) and 0 <= accuracy <= 1
    if not (is_share or accuracy is None) or not all(
        isinstance(part, dict) and part.keys() >= keys for part, keys in parts
    ):
        raise ValueError(f"{file} is damaged: {advice}.")
    return result


class Grid:
    """Cells in a folder.

    Args:
        cells: What is to be trained, in this order where nothing else decides.
        folder: Where the runs are, shared by all who work on the grid.
        archive: A folder that receives the small files of every finished cell (result and
            histories), to be kept where checkpoints are not. A cell that is in it is finished.

    Raises:
        ValueError: There is a file where a folder should be, two cells have one name, a cell starts
            from one that there is not, needs several processes at once, or cannot be trained and
            has not been; or the result of one is damaged.
    """

    def __init__(self, cells: Sequence[Cell], folder: Path, archive: Path | None = None):
        self.cells = {cell.name: cell for cell in cells}
        self.folder, self.archive = Path(folder), archive and Path(archive)
        if len(self.cells) < len(cells):
            names = [cell.name for cell in cells]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Expected cells of different names. Received twice: {twice}.")
        for kept in filter(None, (self.folder, self.archive)):
            taken = next((each for each in (kept, *kept.parents) if each.is_file()), None)
            if taken:
                raise ValueError(
                    f"Expected folders for runs and archive, found the file {taken}: choose others."
                )
        for cell in cells:
            if cell.starts_from is not None and cell.starts_from not in self.cells:
                raise ValueError(
                    f"Expected {cell.name} to start from a cell of the grid. "
                    f"Received: starts_from={cell.starts_from!r}."
                )
            if cell.recipe.strategy == "multiworker":
                raise ValueError(
                    "Expected cells that one process trains each: several processes share a grid "
                    "cell by cell, without TF_CONFIG. Received: strategy=multiworker. Choose "
                    "another --strategy."
                )
            if self._is_needed(cell.name):  # of a finished one even its teacher may be gone
                self._validate(cell)

    def outcome(self, name: str) -> Outcome | None:
        """Return what a cell ended with, or None while it has not."""
        for folder in filter(None, (self.folder, self.archive)):
            for file in (folder / name / RESULT, folder / name / DIVERGED):
                if file.is_file():
                    result = read_result(file)
                    return Outcome(self.cells[name], result["accuracy"], result)
        return None

    def _validate(self, cell: Cell) -> None:
        try:
            cell.recipe.validate()
        except ValueError as error:
            raise ValueError(f"Cell {cell.name!r} cannot be trained. {error}") from None

    def outcomes(self) -> dict[str, Outcome]:
        """Return what all finished cells ended with, by name."""
        found = {name: self.outcome(name) for name in self.cells}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def run(self) -> dict[str, Outcome]:
        """Train every cell that nobody has trained, and return all outcomes.

        Raises:
            ValueError: A cell cannot be trained, or its result is damaged; the others stay as they
                are.
        """
        for name, outcome in self.outcomes().items():
            self._keep(name)  # a kill may have come before that
            self._compare(outcome)
        held: set[str] = set()
        while waiting := [name for name in self.cells if self._is_needed(name)]:
            ready = [name for name in waiting if self._can_start(name)]
            fresh = [name for name in ready if name not in held] or ready
            if not fresh:
                raise ValueError(f"Cells wait for each other's float stage: {waiting}.")
            name = fresh[0]
            self._print_progress(name, len(held))
            try:
                self._train(self.cells[name])
                held.clear()
            except FolderInUse:
                held.add(name)  # another process trains it: look at the rest, then again
                if held >= set(ready):
                    time.sleep(_POLL_SECONDS)
                    held.clear()
        return self.outcomes()

    def progress(self) -> str:
        """Return one line: what is done, what is left, and how long that takes at this pace."""
        outcomes = self.outcomes()
        diverged = sum(outcome.accuracy is None for outcome in outcomes.values())
        line = f"{len(outcomes)} of {counted(len(self.cells), 'cell')} done"
        if diverged:
            line += f" ({diverged} diverged)"
        left = [self.cells[name] for name in self.cells if self._is_needed(name)]
        if not left:
            return line
        line += f", {len(left)} to train"
        seconds = _expected_seconds(left, list(outcomes.values()))
        if seconds is not None:
            hours, minutes = divmod(round(seconds / 60), 60)
            line += f", about {hours} h {minutes:02d} min in one process"
        return line

    def _is_needed(self, name: str) -> bool:
        """Whether a cell has no outcome, or others still need its checkpoint, which is lost."""
        outcome = self.outcome(name)
        if outcome is None:
            return True
        return (
            outcome.accuracy is not None
            and not self._has_float_stage(name)
            and any(
                cell.starts_from == name and self.outcome(cell.name) is None
                for cell in self.cells.values()
            )
        )

    def _has_float_stage(self, name: str) -> bool:
        return (self.folder / name / "float" / "last.keras").is_file()

    def _can_start(self, name: str) -> bool:
        source = self.cells[name].starts_from
        if source is None:
            return True
        outcome = self.outcome(source)
        return outcome is not None and (outcome.accuracy is None or self._has_float_stage(source))

    def _train(self, cell: Cell) -> None:
        folder = self.folder / cell.name
        changes: dict[str, Any] = {"output": folder}
        if cell.starts_from is not None:
            source = self.outcome(cell.starts_from)
            if source is None or source.accuracy is None:
                self._record_divergence(cell, f"Its float stage {cell.starts_from} diverged.")
                return
            changes["float_stage"] = self.folder / cell.starts_from / "float"
        try:
            run(dataclasses.replace(cell.recipe, **changes))
        except TrainingDiverged as error:
            self._record_divergence(cell, str(error))
        else:
            self._keep(cell.name)

    def _record_divergence(self, cell: Cell, reason: str) -> None:
        folder = self.folder / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "accuracy": None,
            "reason": reason,
            "recipe": cell.recipe.plain(),
            "environment": environment(),
        }
        write_whole(folder / DIVERGED, json.dumps(content, indent=2) + "\n")
        self._keep(cell.name)

    def _keep(self, name: str) -> None:
        """Copy the small files of a finished cell to the archive."""
        ended = any((self.folder / name / file).is_file() for file in (RESULT, DIVERGED))
        if self.archive is None or not ended:  # one that is trained again for its checkpoint
            return
        for file in _KEPT:
            source, target = self.folder / name / file, self.archive / name / file
            if not source.is_file():
                continue
            content = source.read_bytes()
            if not target.is_file() or target.read_bytes() != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_whole(target, content)

    def _compare(self, outcome: Outcome) -> None:
        """Say where a cell is finished under other settings than those asked for."""
        # The grid decides where a run and its float stage lie.
        output = self.folder / outcome.cell.name
        recipe = dataclasses.replace(outcome.cell.recipe, output=output, float_stage=None)
        different = different_settings(recipe, {**outcome.result["recipe"], "float_stage": None})
        if different:
            _console.print(
                f"[yellow]{outcome.cell.name} was trained with other settings and is not trained "
                f"again: {', '.join(different)}.[/yellow]"
            )

    def _print_progress(self, name: str, held: int) -> None:
        elsewhere = f", {held} in other processes" if held else ""
        _console.print(f"[bold]{self.folder}[/bold]: {self.progress()}{elsewhere}; now {name}")


def _expected_seconds(left: list[Cell], done: list[Outcome]) -> float | None:
    """Return how long cells take at the mean pace of the finished ones, None without any."""
    pace: dict[str, list[float]] = {}
    for outcome in done:
        for stage, seconds in outcome.seconds_per_epoch.items():
            pace.setdefault(stage, []).append(seconds)
    if not pace:
        return None
    mean = {stage: sum(each) / len(each) for stage, each in pace.items()}
    slowest = max(mean.values())
    total = 0.0
    for cell in left:
        recipe = cell.recipe
        if not recipe.is_quantized or (recipe.stages == 2 and cell.starts_from is None):
            total += recipe.float_epochs * mean.get("float", slowest)
        if recipe.is_quantized:
            total += recipe.epochs * mean.get("quantized", slowest)
    return total
