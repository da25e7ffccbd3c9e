"""What all reports have in common: a value to keep, a table to read, JSON to store."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from dlqat_tf._host import check_name, check_regular, target_of


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Report:
    """Base of the reports, which are frozen dataclasses with :meth:`tables`."""

    def tables(self) -> list[Any]:
        """Return what :meth:`print` shows: rich tables and lines of text."""
        raise NotImplementedError

    def print(self) -> None:
        """Print the report to the terminal."""
        console = Console()
        for part in self.tables():
            console.print(part, highlight=False, markup=False)  # text has [brackets]

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as "1 epoch" and "2,000 epochs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def check_target(
    path: str | Path, *, force: bool, beside: Iterable[str | Path | None] = ()
) -> None:
    """Say before the long work starts that a report cannot be written.

    Args:
        path: The report.
        force: Overwrite a file that is there.
        beside: Files that the same work reads or writes; None stands for none.

    Raises:
        FileExistsError: There is a file already, and ``force`` is off, or it is one of ``beside``.
        IsADirectoryError: There is a folder.
        FileNotFoundError: The folder does not exist.
        PermissionError: The folder cannot be written to.
        OSError: The name is not UTF-8, or that of no regular file.
    """
    path = Path(path)
    check_name(path)
    if any(each is not None and target_of(path) == target_of(each) for each in beside):
        raise FileExistsError(
            f"Expected a file of its own for the report, received {path}, which the same command "
            "reads or writes: choose another name."
        )
    check_regular(path)
    if path.exists() and not force:
        raise FileExistsError(f"Expected a new file, found {path}: give --force to overwrite it.")
    folder = target_of(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected an existing folder, found none at {folder}.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"Expected a folder that can be written to, received {folder}.")
