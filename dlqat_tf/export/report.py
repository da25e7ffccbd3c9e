"""What all reports have in common: a value to keep, a table to read, JSON to store."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console


class Report:
    """Base of the reports, which are dataclasses with a :meth:`table`."""

    def tables(self) -> list[Any]:
        """Return what :meth:`print` shows: rich tables and lines of text."""
        raise NotImplementedError

    def print(self) -> None:
        """Print the report to the terminal."""
        console = Console()
        for part in self.tables():
            console.print(part, highlight=False)

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)
