"""A line on the terminal that says what a long call is at, and leaves nothing behind.

It is shown on standard error while a function that is marked with :func:`progress` runs; not where
that is no terminal, nor after ``tf.keras.utils.disable_interactive_logging()``, Keras's own switch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import tensorflow as tf
from rich.console import Console
from rich.markup import escape
from rich.status import Status

_Item = TypeVar("_Item")
# Of the outermost call: one terminal has one such line, and what runs deep inside is on it too.
_line: ContextVar[tuple[Status, str] | None] = ContextVar("line", default=None)


@contextlib.contextmanager
def progress(task: str) -> Iterator[None]:
    """Show a line while a block or a decorated function runs; within another, that one's line.

    Args:
        task: What the line begins with.
    """
    console = Console(stderr=True)
    shows = console.is_terminal and tf.keras.utils.is_interactive_logging_enabled()
    if _line.get() or not shows:
        yield
        return
    with console.status(escape(task)) as status:
        token = _line.set((status, task))
        try:
            yield
        finally:
            _line.reset(token)


def say(step: str) -> None:
    """Put a step on the line, where one is shown."""
    line = _line.get()
    if line:
        status, task = line
        status.update(escape(f"{task}: {step}"))


def steps(step: str, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items, and put on the line which of how many it is."""
    items = list(items)
    for i, item in enumerate(items, 1):
        say(f"{step} {i} of {len(items)}")
        yield item
