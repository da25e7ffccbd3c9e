import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from dlqat_tf.training import lock
from dlqat_tf.training.lock import FolderInUse, FolderLost, check_held, locked

# Without TensorFlow, which takes seconds: the module needs nothing of the package.
HOLD = (
    "import importlib.util, pathlib, sys, time;"
    f"spec = importlib.util.spec_from_file_location('lock', {lock.__file__!r});"
    "lock = importlib.util.module_from_spec(spec); spec.loader.exec_module(lock);"
    "held = lock.locked(pathlib.Path(sys.argv[1])); held.__enter__(); print('held', flush=True);"
    "time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path, holder):
    who = f"run is in use by process {holder.pid} on {socket.gethostname()} since"
    with pytest.raises(FolderInUse, match=who), locked(tmp_path / "run"):
        pass
    assert holder.poll() is None
    assert (tmp_path / "run" / lock.LOCK).is_file()


def test_a_killed_owner_does_not_block(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with locked(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / lock.LOCK).read_text())
        assert (owner["process"], owner["host"]) == (os.getpid(), socket.gethostname())
    assert time.monotonic() - started < 1


def test_nothing_is_left(tmp_path):
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["file"]


def test_one_thread_of_a_process_at_a_time(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(FolderInUse, match=f"process {os.getpid()} on"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder that another machine held, or holds, whose locks this one does not see."""
    monkeypatch.setattr(lock, "_BEAT", 0.2)
    file = tmp_path / lock.LOCK
    file.write_text(json.dumps({"process": 12, "host": "node7", "since": "Monday"}))
    return file


def test_a_dead_owner_on_another_machine_does_not_block(foreign):
    with locked(foreign.parent):
        assert json.loads(foreign.read_text())["process"] == os.getpid()


def test_a_living_owner_on_another_machine_blocks(foreign, monkeypatch):
    touched = iter([1, 1, 2])
    monkeypatch.setattr(lock, "_touched", lambda path: next(touched))
    with (
        pytest.raises(FolderInUse, match="process 12 on node7 since Monday"),
        locked(foreign.parent),
    ):
        pass
    assert foreign.exists()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.05)
    with locked(tmp_path):
        before = lock._touched(tmp_path / lock.LOCK)
        deadline = time.monotonic() + 10
        while lock._touched(tmp_path / lock.LOCK) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lock._touched(tmp_path / lock.LOCK) > before


def test_a_file_system_without_locks_is_watched(tmp_path, monkeypatch, holder):
    """There the record alone says who holds the folder, also of this machine's processes."""
    monkeypatch.setattr(lock, "_lock", lambda file: lock._NO_LOCKS)
    monkeypatch.setattr(lock, "_touched", lambda path: next(touched))
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    touched = iter([1, 2])
    with pytest.raises(FolderInUse, match=f"process {holder.pid}"), locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("removed", ["folder", "lock", "renamed"])
def test_a_folder_that_is_gone_is_not_held(tmp_path, removed):
    folder = tmp_path / "run"
    with locked(folder):
        (folder / "file").touch()
        check_held(folder / "file")
        if removed == "folder":
            shutil.rmtree(folder)
        elif removed == "lock":
            (folder / lock.LOCK).unlink()
        else:
            folder.rename(tmp_path / "moved")
        with pytest.raises(FolderLost, match=r"run was removed, renamed.*: put it back"):
            check_held(folder / "backup" / "new")
    check_held(folder)  # nothing is known of a folder that is not held


def test_a_folder_that_another_process_took_over_is_not_held(tmp_path):
    """One that went on after it had stood still for long, or whose folder was renamed."""
    folder = tmp_path / "run"
    theirs = json.dumps({"process": 12, "host": "node7", "since": "Monday"})
    with locked(folder):
        (folder / lock.LOCK).write_text(theirs)
        with pytest.raises(FolderLost, match="taken over by process 12 on node7 since Monday"):
            check_held(folder)
    assert (folder / lock.LOCK).read_text() == theirs  # it is not ours to remove
