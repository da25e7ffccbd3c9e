"""What the package needs of the machine it runs on: whole files, and the processor's name."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a file in one step: a reader, or a kill, meets the old content or the new one.

    Args:
        path: The file, in a folder that exists.
        data: Its content; text becomes UTF-8.

    Raises:
        OSError: The folder does not exist or cannot be written to. ``path`` is as it was.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        # mkstemp makes files that only their owner reads.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def cpu_name() -> str:
    """Return the processor's name; Linux on ARM has none, so the architecture stands in."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
