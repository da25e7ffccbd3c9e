"""What watches each step and epoch of training."""

from __future__ import annotations

import math
import time
from pathlib import Path

import tensorflow as tf

from dlqat_tf._host import replacing
from dlqat_tf.training.checkpoints import Backup, position
from dlqat_tf.training.distribution import current
from dlqat_tf.training.lock import check_held


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the message names the last good checkpoint."""


class StopWhenFolderIsLost(tf.keras.callbacks.Callback):
    """Ends training before anything is written to a folder that is gone, or another process's."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        check_held(self.folder)

    def on_test_begin(self, logs=None):
        check_held(self.folder)

    def on_epoch_end(self, epoch, logs=None):
        check_held(self.folder)


class StopWhenNotFinite(tf.keras.callbacks.Callback):
    """Ends training at the first bad loss, before any checkpoint is written over a good one."""

    def __init__(self, backup: Path, steps_per_epoch: int):
        super().__init__()
        self.backup, self.steps_per_epoch = backup, steps_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        if logs and not math.isfinite(logs["loss"]):
            done = position(self.backup, self.steps_per_epoch)
            kept = f"{done} is kept in {self.backup}" if any(done) else "none yet"
            raise TrainingDiverged(
                f"The loss became {logs['loss']} at step {int(self.model.optimizer.iterations)}; "
                f"last good checkpoint: {kept}. Try a lower --learning-rate or a longer "
                "--margin-warmup-epochs, with a new --output."
            )


class Clock(tf.keras.callbacks.Callback):
    """Adds the seconds of each epoch to its logs, also those before it was resumed."""

    def __init__(self, backup: Backup):
        super().__init__()
        self.backup = backup

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = self.backup.seconds + time.perf_counter() - self.started


class KeepBest(tf.keras.callbacks.Callback):
    """Saves the network of the best epoch; Keras's own would leave half of a file after a kill."""

    def __init__(self, network: tf.keras.Model, path: Path, best: float):
        super().__init__()
        self.network, self.path, self.best = network, path, best  # `model` may have a teacher too

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] > self.best:
            self.best = logs["val_accuracy"]
            save(self.network, self.path)


def save(model: tf.keras.Model, path: Path) -> None:
    """Save so that a kill leaves the old file or the new one, never half of one."""
    check_held(path)
    with current().written_by_chief(path) as own, replacing(own) as temporary:
        model.save(temporary, save_format="keras")
