"""Checkpoints on a small Keras model: where training goes on, and what is kept."""

import contextlib
import os
import resource
import signal
import threading

import numpy as np
import pytest

from dlqat_tf._script import Stopped
from dlqat_tf.training import checkpoints
from dlqat_tf.training.checkpoints import Backup, CheckpointFailed, Position, position
from dlqat_tf.training.lock import FolderLost, locked

import tensorflow as tf  # isort: skip

STEPS, EPOCHS = 5, 3
IMAGES = np.random.default_rng(0).normal(size=(STEPS * EPOCHS, 4, 3)).astype(np.float32)
LABELS = np.arange(STEPS * EPOCHS * 4).reshape(STEPS * EPOCHS, 4) % 2


def network(units=2):
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(units)])
    model.compile(
        tf.keras.optimizers.SGD(0.1, momentum=0.9),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


class At(tf.keras.callbacks.Callback):
    """Does something after a step of an epoch, or in its validation."""

    def __init__(self, epoch, step, action, validating=False):
        super().__init__()
        self.at, self.action, self.validating = (epoch, step), action, validating

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at and not self.validating:
            self.action()

    def on_test_batch_begin(self, batch, logs=None):
        if self.epoch == self.at[0] and self.validating:
            self.action()


def fit(folder, *callbacks, every=None, model=None):
    """Train from where the folder's checkpoint is; the data are a function of the step."""
    model = model or network()
    done = position(folder, STEPS)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).repeat()
    backup = Backup(folder, STEPS, every)
    try:
        history = model.fit(
            data.skip(done.epochs * STEPS + done.steps),
            steps_per_epoch=STEPS,
            initial_epoch=done.epochs,
            epochs=EPOCHS,
            validation_data=(IMAGES[0], LABELS[0]),
            callbacks=[*callbacks, backup],
            verbose=0,
        ).history
    finally:
        backup.release()
    return model.get_weights(), history, backup


class Killed(Exception):
    pass


def kill():
    raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"))


def assert_equal(resumed, whole, *, first_epoch):
    weights, history, _ = resumed
    for ours, theirs in zip(weights, whole[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, values in whole[1].items():
        np.testing.assert_allclose(history[name], values[first_epoch:], rtol=1e-6)


@pytest.mark.parametrize(
    ("every", "kept"),
    [(1, Position(1, 4)), (2, Position(1, 4)), (3, Position(1, 3)), (None, Position(1, 0))],
)
def test_a_killed_epoch_goes_on_after_its_checkpoint(tmp_path, whole, every, kept):
    with pytest.raises(Killed):
        fit(tmp_path / "new", At(1, 4, kill), every=every)
    assert position(tmp_path / "new", STEPS) == kept
    assert_equal(fit(tmp_path / "new", every=every), whole, first_epoch=1)


def test_by_default_the_clock_decides(tmp_path, monkeypatch):
    assert checkpoints.SECONDS == 600
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    with pytest.raises(Killed):
        fit(tmp_path, At(0, 3, kill))
    assert position(tmp_path, STEPS) == Position(0, 3)


def test_the_last_step_of_an_epoch_is_saved_with_its_validation(tmp_path, whole):
    with pytest.raises(Killed):
        fit(tmp_path, At(0, 0, kill, validating=True), every=1)
    assert position(tmp_path, STEPS) == Position(0, 4)
    assert_equal(fit(tmp_path), whole, first_epoch=0)


def test_time_before_a_kill_counts(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, At(2, 3, kill), every=1)
    seen = []
    backup = fit(tmp_path, At(2, 4, lambda: seen.append(1)))[2]
    assert seen
    assert backup.seconds > 0
    assert fit(tmp_path / "other")[2].seconds == 0


def test_checkpoints_of_earlier_versions_are_of_whole_epochs(tmp_path, whole):
    backup = tf.keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).repeat()
    network().fit(data, steps_per_epoch=STEPS, epochs=1, callbacks=[backup], verbose=0)
    assert position(tmp_path, STEPS) == Position(1, 0)
    assert_equal(fit(tmp_path), whole, first_epoch=1)
    assert position(tmp_path) == Position(3, 0)
    assert position(tmp_path / "none", STEPS) == Position(0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_a_checkpoint(tmp_path, whole, number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=rf"{number.name}: epoch 1, step 3 is saved in") as stopped:
        fit(tmp_path, At(1, 2, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.status == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert position(tmp_path, STEPS) == Position(1, 3)
    assert_equal(fit(tmp_path), whole, first_epoch=1)


def test_a_signal_after_the_last_step_goes_back_to_the_last_checkpoint(tmp_path, whole):
    """What an epoch's validation has not measured is not saved as an epoch."""
    with pytest.raises(Stopped, match="SIGTERM: epoch 1 is saved"):
        fit(tmp_path, At(1, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert_equal(fit(tmp_path), whole, first_epoch=1)


def test_a_signal_while_validation_runs_does_not_wait_for_it(tmp_path):
    at = At(1, 0, lambda: os.kill(os.getpid(), signal.SIGTERM), validating=True)
    with pytest.raises(Stopped, match="epoch 1, step 4 is saved"):
        fit(tmp_path, at, every=2)


def test_signals_are_the_main_threads(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(fit(tmp_path)))
    thread.start()
    thread.join()
    assert done


@contextlib.contextmanager
def small_disk():
    """Yields what limits files to 200 kB, as a full disk does, until the block ends."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    finally:
        # At once: what the tests print may go to a longer file.
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    model = network(units=50_000)
    kept = r"epoch 1, step 4 cannot .* that of epoch 1, step 2 is kept"
    with small_disk() as fill, pytest.raises(CheckpointFailed, match=kept):
        fit(tmp_path, At(1, 2, fill), every=2, model=model)
    assert position(tmp_path, STEPS) == Position(1, 2)


def test_a_full_disk_before_the_first_checkpoint(tmp_path):
    model = network(units=50_000)
    reason = r"epoch 0, step 2 cannot be written to [^{[]*: there was none before\. Make room"
    with small_disk() as fill, pytest.raises(CheckpointFailed, match=reason):
        fit(tmp_path, At(0, 0, fill), every=2, model=model)


def test_a_folder_that_is_gone(tmp_path):
    def remove():
        for file in (tmp_path / "backup" / "chief").iterdir():
            file.unlink()
        (tmp_path / "backup" / "chief").rmdir()
        (tmp_path / "backup" / "chief").touch()

    with pytest.raises(CheckpointFailed, match=r"cannot be written to .*backup"):
        fit(tmp_path / "backup", At(1, 2, remove), every=2)


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(tmp_path / "backup")
    for file in (tmp_path / "backup" / "chief").glob("*.[di]*"):
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], bytes(len(whole))):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"checkpoint in .*backup is damaged .*delete"):
                position(tmp_path / "backup")
        file.write_bytes(whole)
    assert position(tmp_path / "backup", STEPS) == Position(3, 0)


def test_a_list_of_checkpoints_that_names_none(tmp_path):
    fit(tmp_path)
    listed, [index] = tmp_path / "chief" / "checkpoint", (tmp_path / "chief").glob("*.index")
    whole = listed.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole.replace(b"ckpt-", b"ckpt-9")):
        listed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged \((its list.* names no|Invalid) check"):
            position(tmp_path)
    listed.unlink()
    with pytest.raises(ValueError, match=r"is damaged \(its list, .*checkpoint, is gone\)"):
        position(tmp_path)
    index.rename(index.with_stem("ckpt-1"))  # a kill before the first one was whole
    assert position(tmp_path, STEPS) == Position(0, 0)


def test_a_partial_epoch_of_another_checkpoint_is_not_used(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, At(0, 3, kill), every=2)
    file = tmp_path / "partial_epoch.json"
    assert checkpoints._partial_epoch(tmp_path, Position(0, 2)) is not None
    for text in (file.read_text(), "{", "[]"):
        file.write_text(text)
        assert checkpoints._partial_epoch(tmp_path, Position(0, 3)) is None


def test_a_kill_just_before_the_checkpoint(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        save = Backup._backup

        def killed_at_4(self, epoch):
            if self.model.optimizer.iterations == STEPS + 4:
                kill()
            save(self, epoch)

        patch.setattr(Backup, "_backup", killed_at_4)
        with pytest.raises(Killed):
            fit(tmp_path, every=2)
    assert position(tmp_path, STEPS) == Position(1, 2)
    assert_equal(fit(tmp_path, every=2), whole, first_epoch=1)


@pytest.mark.parametrize("validating", [False, True])
def test_a_folder_that_is_renamed_in_training_is_not_made_anew(tmp_path, whole, validating):
    """Neither by a checkpoint inside an epoch nor by what is written when it ends."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    rename = At(1, 0 if validating else 2, lambda: run.rename(moved), validating)
    with pytest.raises(FolderLost, match="run was removed, renamed"), locked(run):
        fit(run / "float" / "backup", rename, every=3)
    assert not run.exists()
    moved.rename(run)
    with locked(run):
        resumed = fit(run / "float" / "backup", every=3)
    assert_equal(resumed, whole, first_epoch=1)
