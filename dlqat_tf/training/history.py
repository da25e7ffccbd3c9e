"""The epochs of a stage: what ``history.csv`` says of them, and what the checkpoint does."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from dlqat_tf._host import write_whole

_NEEDED = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"}


def read_history(path: Path) -> list[dict[str, float]]:
    """Return one row per epoch, in order; the last one where a kill made an epoch run twice.

    Lines that were cut short are passed over, so there may be fewer rows than epochs.
    """
    return [values for _, values in _whole_lines(path)[1]]


def _whole_lines(path: Path) -> tuple[str, list[tuple[str, dict[str, float]]]]:
    """Return the header, and each epoch's line with its values."""
    if not path.is_file():
        return "", []
    text = path.read_bytes().decode("utf-8-sig", errors="replace")  # as spreadsheets write it
    # Of a line without an end, the last number may be cut and still be one.
    header, *lines = text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
    names = header.strip().split(",")
    if not {*names} >= _NEEDED:
        return "", []
    rows = {}
    for line in lines:
        try:
            values = [float(value) for value in next(csv.reader([line]))]
            row = dict(zip(names, values, strict=True))
            rows[int(row["epoch"])] = line, row
        except (ValueError, StopIteration, csv.Error):
            continue
    return header, [rows[epoch] for epoch in sorted(rows)]


def mend_history(path: Path, done: int) -> list[int]:
    """Leave the whole rows of finished epochs in a history, so that the next one can follow.

    Args:
        path: ``history.csv``.
        done: How many epochs the checkpoint has.

    Returns:
        The finished epochs, counted from 0, that it has no row of.

    Raises:
        ValueError: There are rows of epochs that the checkpoint does not have.
    """
    header, lines = _whole_lines(path)
    epochs = [int(row["epoch"]) for _, row in lines]
    if any(epoch > done for epoch in epochs):  # that one itself: killed before its checkpoint
        raise ValueError(
            f"{path} has {epochs[-1] + 1} epochs, the checkpoint in {path.parent / 'backup'} only "
            f"{done}: put the right backup/ back, or delete {path.parent} to train the stage anew."
        )
    kept = header + "".join(
        line for epoch, (line, _) in zip(epochs, lines, strict=True) if epoch < done
    )
    if path.is_file() and path.read_bytes() != kept.encode():
        if not header and path.stat().st_size:
            os.replace(path, path.with_suffix(".damaged"))
        write_whole(path, kept)
    return sorted({*range(done)} - {*epochs})
