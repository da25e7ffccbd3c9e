"""What is in a .tflite file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dlqat_command.metavars import FILE


def census(
    file: Annotated[Path, tyro.conf.Positional],
    json: Annotated[Path | None, FILE] = None,
    force: bool = False,
) -> None:
    """Show what a .tflite file consists of: operations, bytes, stored against declared bits.

    Args:
        file: The .tflite file, written by anybody.
        json: Write the report here too.
        force: Overwrite the --json file.
    """
    from dlqat_tf._host import write_whole
    from dlqat_tf.export import census, command
    from dlqat_tf.report import check_target

    def work() -> None:
        if json:
            check_target(json, force=force, beside=[file])
        report = census(file)
        report.print()
        if json:
            write_whole(json, report.to_json() + "\n")

    command.run(work)
