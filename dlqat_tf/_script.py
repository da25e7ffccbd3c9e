"""How a script ends: what its user can mend is one sentence, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator

from dlqat_tf._host import reason_of
from dlqat_tf._stderr import without_notes

import tensorflow as tf  # isort: skip

MENDABLE = 2  # exit status of what the user can mend
INTERRUPTED = 130  # and of Ctrl-C, as shells have it


class Stopped(KeyboardInterrupt):
    """Long work was told to stop by a signal, and has saved where it was; the message says where.

    Attributes:
        status: What the process should end with: 128 and the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def ending(
    *mendable: type[Exception], interrupted: str = "interrupted, nothing was written"
) -> Iterator[None]:
    """Run a script's work; end the process with one line where it fails as its user can mend.

    Args:
        mendable: Exceptions that their message explains; an ``OSError`` is one always.
        interrupted: What to say after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # and no stream of a notebook
        # A name that the terminal cannot show shall not end what took hours.
        sys.stdout.reconfigure(errors="backslashreplace")
    with without_notes():
        tf.config.list_physical_devices()  # looks for GPUs, and would complain of none later
    understood: tuple[type[Exception], ...] = (OSError, *mendable)
    try:
        yield
    except Stopped as stopped:
        _end(f"{stopped}; the same command goes on from there", stopped.status)
    except KeyboardInterrupt:
        _end(interrupted, INTERRUPTED)
    except understood as error:
        message = str(error).strip() or type(error).__name__
        if type(error).__module__.startswith("tensorflow"):
            message = reason_of(error)  # the other lines are about its own source
        _end(" ".join(message.split()), MENDABLE)


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
