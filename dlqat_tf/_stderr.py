"""What others write to the process's standard error: held back, sifted, or silenced."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_NOTES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I0000 "
    rb"|To enable the following instructions|E0000 .*failed call to cuInit"
    rb"|INFO: Created TensorFlow Lite \w+ delegate"
)
_DIVERTING = threading.RLock()


def without_notes() -> contextlib.AbstractContextManager[None]:
    """Leave out what TensorFlow writes about its own start.

    Its log level does not reach what its libraries say while they are loaded, nor can it tell that
    a missing GPU is no error. Whatever else is written to the standard error is passed on, and with
    ``TF_CPP_MIN_LOG_LEVEL=0`` in the environment all of it.
    """
    return _sifted(tempfile.TemporaryFile)


def silenced() -> contextlib.AbstractContextManager[None]:
    """Leave out what is written to the standard error: TensorFlow's converter writes at length.

    With ``TF_CPP_MIN_LOG_LEVEL=0`` in the environment all of it is passed on.
    """
    return _sifted(lambda: open(os.devnull, "r+b", buffering=0))


@contextlib.contextmanager
def _sifted(opened: Callable[[], IO[bytes]]) -> Iterator[None]:
    """Divert the standard error; pass on what the file holds in the end, without notes."""
    if os.environ.get(_LEVEL) == "0":
        yield
        return
    text = b""
    try:
        with diverted(opened) as held:
            try:
                yield
            finally:
                text = held()
    finally:
        for line in text.splitlines(keepends=True):
            if not _NOTES.match(line):
                os.write(2, line)


@contextlib.contextmanager
def diverted(
    opened: Callable[[], IO[bytes]] = tempfile.TemporaryFile,
) -> Iterator[Callable[[], bytes]]:
    """Write the process's standard error into a file, and give a function that returns what it has.

    A process has one standard error, so other threads wait. One that is closed stays so.
    """
    with _DIVERTING:
        try:
            shown = os.dup(2)
        except OSError:  # closed
            shown = None
        if shown is None:
            yield lambda: b""
            return
        with opened() as held:

            def text() -> bytes:
                held.seek(0)
                return held.read()

            os.dup2(held.fileno(), 2)
            try:
                yield text
            finally:
                os.dup2(shown, 2)
                os.close(shown)
