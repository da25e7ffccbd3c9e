"""What all reports have in common: a value to keep, a table to read, JSON to store."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from dlqat_tf._host import check_name


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


def check_target(path: str | Path, *, force: bool) -> None:
    """Say before the long work starts that a report cannot be written.

    Raises:
        FileExistsError: There is a file already, and ``force`` is off.
        FileNotFoundError: The folder does not exist.
        PermissionError: The folder cannot be written to.
        OSError: The name is not UTF-8.
    """
    path = Path(path)
    check_name(path)
    if path.exists() and not force:
        raise FileExistsError(f"Expected a new file, found {path}: give --force to overwrite it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder, found none at {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"Expected a folder that can be written to, received {path.parent}.")
