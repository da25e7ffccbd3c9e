"""What export raises."""

from __future__ import annotations


class ExportError(ValueError):
    """The model or the file cannot be exported or read as asked; the message says what to do."""
