"""Arguments that a layer does not have."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator


@contextlib.contextmanager
def known_to(layer: type) -> Iterator[None]:
    """Say of a keyword that Keras refuses which layer has none such, and which one is meant."""
    try:
        yield
    except TypeError as error:
        if error.args[:1] != ("Keyword argument not understood:",):
            raise
        received = error.args[1]
        names = [name for base in layer.__mro__ for name in inspect.signature(base).parameters]
        close = difflib.get_close_matches(received, names, n=1)
        raise TypeError(
            f"{layer.__name__} has no argument {received!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
        ) from None
