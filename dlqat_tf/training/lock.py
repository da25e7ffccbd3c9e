"""One process at a time in a folder, also where several machines share it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the file's name in the folder
_BEAT = 5.0  # seconds between two signs of life
_LOCKED, _BUSY, _NO_LOCKS = "locked", "busy", "no locks"
_held: dict[Path, str] = {}  # folders of this process, and what their files say


class FolderInUse(ValueError):
    """Another process holds the folder; the message says which one."""


class FolderLost(OSError):
    """A folder that this process held is gone, or another one holds it now."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and give it back at the end, however that comes.

    The lock is the operating system's, on a file in the folder, and ends with the process: nothing
    is left to clear after a kill. The file says who holds it. Where machines share a file system
    whose locks are each machine's own, or that has none, the lock says nothing about a holder
    elsewhere, so the holder touches the file every five seconds, and a file that another machine
    left is watched for twice as long before it is taken over.

    Args:
        folder: It is made where it does not exist, and removed where nothing was put into it.

    Raises:
        FolderInUse: Another process, or another thread of this one, holds the folder.
        OSError: The folder cannot be written to.
    """
    made = not folder.is_dir()
    path = folder / LOCK
    file = _acquire(path)
    ended = threading.Event()
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
    own = json.dumps(owner)
    try:
        file.seek(0)
        file.truncate()
        file.write(own)
        file.flush()
        _held[folder.absolute()] = own
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        _held.pop(folder.absolute(), None)
        with contextlib.suppress(OSError):
            if own.startswith(path.read_text()):  # a full disk took a part of it
                path.unlink()  # before the lock ends, so that it is still this process's
        file.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_held(path: Path) -> None:
    """Refuse to write to a folder that this process held and has lost.

    Args:
        path: The folder, or what is in it. Of a folder that this process never held nothing is
            known, so that it passes.

    Raises:
        FolderLost: The folder was removed, renamed or taken over by another process.
    """
    path = path.absolute()
    for folder in _held.keys() & {path, *path.parents}:
        file = folder / LOCK
        found = file.read_text() if file.is_file() else ""
        if found == _held[folder]:
            continue
        if found:
            what = f"was taken over by {_holder(_parsed(found))}"
            advice = "wait until that ends, or choose another folder"
        else:
            what = f"was removed, renamed or unmounted, or its file {LOCK} was"
            advice = "put it back, and the same command goes on after its last checkpoint"
        raise FolderLost(
            f"{folder} {what}, while this process worked in it; nothing more is written there: "
            f"{advice}."
        )


def _acquire(path: Path):
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a+"))
            state = _lock(file)
            owner = _owner(file)
            for _ in range(20 if state == _BUSY else 0):
                if not owner:  # whoever came first is about to write it
                    time.sleep(0.05)
                    owner = _owner(file)
            known = state == _LOCKED and owner.get("host") == socket.gethostname()
            if state == _BUSY or (owner and not known and _lives(path)):
                raise _in_use(path, owner)
            # A holder that ended in between took its file away: then this one is nobody's.
            if _is_still(file, path):
                stack.pop_all()
                return file


def _lock(file) -> str:
    """Try to take the system's lock."""
    if fcntl is None:
        return _NO_LOCKS
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _BUSY
    except OSError:  # of a file system without locks
        return _NO_LOCKS
    return _LOCKED


def _owner(file) -> dict:
    file.seek(0)
    try:
        return _parsed(file.read())
    except UnicodeDecodeError:
        return {}


def _parsed(text: str) -> dict:
    try:
        owner = json.loads(text)
    except ValueError:  # not written yet
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_still(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, owner: dict) -> FolderInUse:
    return FolderInUse(
        f"{path.parent} is in use by {_holder(owner)}: wait until that ends, or choose another "
        "folder."
    )


def _holder(owner: dict) -> str:
    who = f"process {owner.get('process', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return who + (f" since {owner['since']}" if "since" in owner else "")


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _lives(path: Path) -> bool:
    """Return whether somebody touches a file. Ages are not compared: hosts' clocks differ."""
    before = _touched(path)
    for _ in range(4):
        time.sleep(_BEAT / 2)
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int:
    with path.open("rb") as file:  # opening asks the server anew, where a look may be cached
        return os.fstat(file.fileno()).st_mtime_ns
