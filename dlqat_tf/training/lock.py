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


class FolderInUse(ValueError):
    """Another process holds the folder; the message says which one."""


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
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(owner))
        file.flush()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock ends, so that it is still this process's
        file.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


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
        owner = json.loads(file.read())
    except ValueError:  # not written yet
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_still(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, owner: dict) -> FolderInUse:
    who = f"process {owner.get('process', 'unknown')} on {owner.get('host', 'an unknown host')}"
    since = f" since {owner['since']}" if "since" in owner else ""
    return FolderInUse(
        f"{path.parent} is in use by {who}{since}: wait until that ends, or choose another folder."
    )


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
