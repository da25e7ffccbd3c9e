"""Checkpoints between and inside epochs, and an orderly end when a process is told to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from dlqat_tf._host import UNPARSED, reason_of, write_whole
from dlqat_tf._script import Stopped
from dlqat_tf.training.distribution import LOST, current
from dlqat_tf.training.lock import check_held

SECONDS = 600.0  # between checkpoints, where nothing else is asked for
_PARTIAL_EPOCH = "partial_epoch.json"  # in the backup folder
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What saving raises on a full disk, in a folder that is gone, or in one that is not writable.
_UNWRITTEN = (tf.errors.OpError, OSError)


class Position(NamedTuple):
    """How far training is: whole epochs, and steps of the one that comes next."""

    epochs: int
    steps: int

    def __str__(self):
        inside = f", step {self.steps}" if self.steps else ""
        return f"epoch {self.epochs}{inside}"


class CheckpointFailed(OSError):
    """A checkpoint cannot be written; the message says why and what the last good one is."""


class Backup(tf.keras.callbacks.BackupAndRestore):
    """Keras's own backup, also inside an epoch, every so many steps or seconds.

    A resumed epoch goes on at the step after the checkpoint, with the metrics and the time that it
    had. Whenever one is written, and before validation, replicas agree on their averages, so that a
    resumed run and the saved network have the same ones. The checkpoint of an epoch's last step is
    written when its validation is done: there is no whole epoch without its row in the history.

    Ctrl-C or SIGTERM ends training after the step that runs, with a checkpoint; while validation
    runs, with the last one. A second signal ends the process as ever.

    Args:
        folder: Of the checkpoints.
        steps_per_epoch: Optimizer steps of an epoch.
        every: Steps from one checkpoint to the next inside an epoch; None: ten minutes.

    Raises:
        CheckpointFailed: In training; the last good checkpoint is kept.
        FolderLost: In training, where the folder of the run is gone or another process's.
        Stopped: After a signal.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, every: int | None = None):
        # Keras saves after `save_freq` steps; this class decides itself when.
        super().__init__(str(folder), save_freq=2**62, delete_checkpoint=False)
        self.folder, self.steps_per_epoch, self.every = Path(folder), steps_per_epoch, every
        self.seconds = 0.0  # that this epoch took before it was resumed
        self._stopped_by: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._since, self._saved_at = 0, time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        reached = position(self.folder, self.steps_per_epoch)
        self._restored = _partial_epoch(self.folder, reached)
        self._noted = {str(reached): self._restored} if self._restored else {}
        # Handlers can be set by the main thread only; elsewhere signals are the caller's.
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._note) for each in _SIGNALS}

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.release()

    def release(self) -> None:
        """Give signals back to who had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number, frame):
        self._stopped_by = number
        self.release()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._epoch_began, self.seconds = time.perf_counter(), 0.0
        if self._restored:
            self.seconds = self._restored["seconds"]

    def on_train_batch_end(self, batch, logs=None):
        self._since += 1
        if self._restored:  # metrics are made by the first step
            _add_to_metrics(self.model, self._restored["metrics"])
            self._restored = None
        if batch == self.steps_per_epoch - 1:  # on_epoch_end saves it
            return
        due = self._since >= self.every if self.every else self._elapsed() >= SECONDS
        is_stopped = self._is_stopped()  # now: a signal may come while it saves
        if is_stopped or current().any(due):
            self._save(Position(self._current_epoch, batch + 1))
        if is_stopped:
            self._stop_at(Position(self._current_epoch, batch + 1))

    def on_test_begin(self, logs=None):
        current().agree(self.model)  # what is measured is what is saved

    def on_test_batch_end(self, batch, logs=None):
        # Several workers would have to agree; they stop after the epoch.
        if self._stopped_by and not current().are_workers:
            self._stop_at(position(self.folder, self.steps_per_epoch))

    def on_epoch_end(self, epoch, logs=None):
        self._save(Position(epoch + 1, 0))
        if self._is_stopped():
            self._stop_at(Position(epoch + 1, 0))

    def _is_stopped(self) -> bool:
        return current().any(self._stopped_by is not None)

    def _elapsed(self) -> float:
        return time.monotonic() - self._saved_at

    def _save(self, reached: Position) -> None:
        check_held(self.folder)  # a checkpoint would make a folder that is gone anew
        try:
            if reached.steps:
                self._note_epoch(reached)  # first: a kill may come between the two
            self._backup(epoch=reached.epochs)
            current().agree(self.model)
        except LOST:  # all workers save together
            raise
        except _UNWRITTEN as error:
            try:
                done = position(self.folder, self.steps_per_epoch)
                kept = f"that of {done} is kept" if any(done) else "there was none before"
            except ValueError:
                kept = "and none can be read there now"
            raise CheckpointFailed(
                f"The checkpoint of {reached} cannot be written to {self.folder} "
                f"({reason_of(error)}): {kept}. Make room or mend the folder, and give the same "
                "command again."
            ) from error
        self._since, self._saved_at = 0, time.monotonic()

    def _note_epoch(self, reached: Position) -> None:
        """Write what the epoch has so far, beside what it had at the checkpoint before."""
        metrics = {
            metric.name: [variable.numpy().tolist() for variable in metric.variables]
            for metric in self.model.metrics
        }
        seconds = self.seconds + time.perf_counter() - self._epoch_began
        noted = {**self._noted, str(reached): {"seconds": seconds, "metrics": metrics}}
        if current().is_chief:
            write_whole(self.folder / _PARTIAL_EPOCH, json.dumps(noted))
        self._noted = {str(reached): noted[str(reached)]}

    def _stop_at(self, saved: Position) -> None:
        """End training, here because another worker's signal asked for it, or an own one."""
        number = self._stopped_by or signal.SIGTERM
        raise Stopped(
            f"{signal.Signals(number).name}: {saved} is saved in {self.folder}",
            status=128 + number,
        )


def position(folder: Path, steps_per_epoch: int | None = None) -> Position:
    """Return how far the checkpoint in a backup folder is, after reading all of it.

    Args:
        folder: Of the checkpoints; there may be none.
        steps_per_epoch: Optimizer steps of an epoch; None where training there has ended, so that
            all epochs are whole.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    try:
        checkpoint = _latest(folder / "chief")
        if checkpoint is None:
            return Position(0, 0)
        reader = tf.train.load_checkpoint(checkpoint)
        values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        epoch, batch = (
            int(values[f"ckpt_saved_{name}/.ATTRIBUTES/VARIABLE_VALUE"])
            for name in ("epoch", "batch")
        )
    except Exception as error:  # TensorFlow's reader raises anything up to IndexError
        raise ValueError(
            f"The checkpoint in {folder} is damaged ({reason_of(error)}): put the right one "
            f"back, or delete {folder.parent} to train the stage anew."
        ) from None
    # Without a step (-1), as earlier versions wrote it, the epoch is whole.
    if steps_per_epoch is None or batch < 0 or batch >= steps_per_epoch - 1:
        return Position(epoch + 1, 0)
    return Position(epoch, batch + 1)


def _latest(folder: Path) -> str | None:
    """Return the prefix of the checkpoint that a folder's list names, None where there was none.

    Raises:
        FileNotFoundError: The list names none that is there, or is gone. A kill in the very first
            checkpoint, which is number 1, leaves no list.
    """
    found = tf.train.latest_checkpoint(str(folder))
    listed = os.path.lexists(folder / "checkpoint")
    numbers = {path.stem.rpartition("-")[2] for path in folder.glob("ckpt-*.index")}
    if found is None and (listed or numbers - {"1"}):
        what = "names no checkpoint that is there" if listed else "is gone"
        raise FileNotFoundError(f"its list, {folder / 'checkpoint'}, {what}")
    return found


def _partial_epoch(folder: Path, reached: Position) -> dict | None:
    """Return what is known of the epoch that a checkpoint is in the middle of."""
    file = folder / _PARTIAL_EPOCH
    try:
        return json.loads(file.read_bytes())[str(reached)] if file.is_file() else None
    except (OSError, *UNPARSED, TypeError, KeyError):
        return None


def _add_to_metrics(model: tf.keras.Model, values: dict[str, list]) -> None:
    """Add what metrics had before, which are means: each is a sum and a count."""
    for metric in model.metrics:
        for variable, value in zip(metric.variables, values.get(metric.name, ()), strict=False):
            # Not `assign_add`, which variables with a value on each replica do not have.
            variable.assign(variable.read_value() + value)
