"""What the package needs of the machine it runs on: whole files, and the processor's name."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import re
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What TensorFlow puts around a message: which of its operations it is of.
_OPERATION = re.compile(r"\{\{function_node .*?\}\}\s*|\s*\[Op:.*")
# What Keras puts between an object's settings, which may be a whole model, and what is wrong.
_AFTER_SETTINGS = "Exception encountered: "
PARTIAL = "partial-"  # in the names of files that are being written
# What a text that is no JSON raises: of it, of its encoding, and of how deep it is nested.
UNPARSED = (ValueError, RecursionError)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, and put what was written there in its place.

    A reader, or a kill, meets the old content or the new one. No two processes get the same name.
    Of a symbolic link, what it points to is replaced.

    Args:
        path: The file, in a folder that exists.

    Raises:
        OSError: The folder does not exist or cannot be written to, or ``path`` is there and no
            regular file. ``path`` is as it was.
    """
    given, path = Path(path), target_of(path)
    check_regular(path)
    # What is written may go by the ending, which what a link points to need not have.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=given.suffix)
    temporary = Path(name)
    with naming(path), _held(handle):
        try:
            yield temporary
            # mkstemp makes files that only their owner reads.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name a file or folder in the system's errors that name none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    message = str(error).rpartition(_AFTER_SETTINGS)[2]
    lines = _OPERATION.sub("", message).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def clear_partial(path: str | Path) -> None:
    """Remove what killed processes of this host left of a file that they were writing.

    Files of :func:`replacing` are locked while they are written, and stay. Other hosts', whose
    locks need not be seen from here, stay too.
    """
    path = target_of(path)
    for leftover in path.parent.glob(glob.escape(_prefix(path)) + "*") if fcntl else ():
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _prefix(path: Path) -> str:
    """Return how the names begin of files that this host writes in place of one."""
    return f".{path.name}.{PARTIAL}{zlib.crc32(socket.gethostname().encode()):08x}-"


@contextlib.contextmanager
def _held(handle: int) -> Iterator[None]:
    """Lock an open file until the end, or as long as the process lives, and close it."""
    if fcntl is None:  # what is open cannot be renamed there
        os.close(handle)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def target_of(path: str | Path) -> Path:
    """Return the file that is written under a name: what a symbolic link points to in the end.

    Of links that point to each other it is the first one, which a file then replaces.
    """
    return Path(os.path.realpath(path))


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a file as :func:`replacing` does.

    Args:
        path: The file, in a folder that exists.
        data: Its content; text becomes UTF-8.

    Raises:
        OSError: The folder does not exist or cannot be written to. ``path`` is as it was.
    """
    content = data.encode() if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_object(path: str | Path, advice: str, *keys: str) -> dict:
    """Return the JSON object in a file that was written before.

    Args:
        path: The file.
        advice: What to do where it is damaged, after "is damaged: ".
        keys: What it has to hold.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no such object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except UNPARSED:
        content = None
    if not isinstance(content, dict) or not content.keys() >= {*keys}:
        raise ValueError(f"{path} is damaged: {advice}.")
    return content


def check_name(path: str | Path) -> None:
    """Refuse a file name that TensorFlow and reports cannot hold.

    Raises:
        OSError: It is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise OSError(
            f"Expected a file name in UTF-8. Received: {os.fsencode(path)!r}: rename it."
        ) from None


def check_readable(path: str | Path) -> None:
    """Refuse to read a device or a pipe, which may have no end and cannot be read twice.

    Raises:
        OSError: It is one.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(
            f"{path} is a device or a pipe, which cannot be read twice: copy what it holds to a "
            "file."
        )


def check_folder(path: str | Path) -> None:
    """Refuse a folder that cannot be written to, or made.

    Raises:
        OSError: A file has its name or that of a folder above it, or who runs this may not write.
    """
    path = Path(path).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(
            f"Expected a folder to write to, received {path}, where {there} is a file: choose "
            "another name."
        )
    if not os.access(there, os.W_OK):
        raise PermissionError(
            f"Expected a folder that can be written to, received {there}: choose another one."
        )


def check_regular(path: Path) -> None:
    """Refuse to write where a folder, a device or a pipe is, which renaming a file would replace.

    Raises:
        OSError: There is one.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected the name of a file, received {path}, which is a folder: choose another name."
        )
    if path.exists() and not path.is_file():
        raise OSError(
            f"Expected the name of a regular file, received {path}, which is a device or a pipe: "
            "choose another name."
        )


def cpu_name() -> str:
    """Return the processor's name; Linux on ARM has none, so the architecture stands in."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
