"""Small trained networks that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dlqat_command.metavars import FOLDER


def show() -> None:
    """List the trained networks that come with the package.

    `dlqat_tf.zoo.load(name)` gives the network, `dlqat_tf.zoo.file(name, "int8")` its file.
    """
    from dlqat_tf import zoo

    zoo.print_table()


def add(
    run: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    data_dir: Annotated[Path | None, FOLDER] = None,
) -> None:
    """Add the network of a finished run, with its files, proven on all test images.

    Args:
        run: The --output of `dlqat train`.
        name: What to load it by, of letters, digits and underscores.
        data_dir: Where the data set lies, if no longer where the run found it.
    """
    from dlqat_tf import zoo
    from dlqat_tf.export import command

    def work() -> None:
        zoo.add(run, name, data_dir=data_dir).print()

    command.run(work, (ValueError, OSError))
