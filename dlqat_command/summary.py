"""What a network costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dlqat_command.metavars import FILE


def summary(
    model: Annotated[Path, tyro.conf.Positional],
    json: Annotated[Path | None, FILE] = None,
    trust: bool = False,
    force: bool = False,
) -> None:
    """Show what a network costs: MACs by width, bit operations, bytes, size of each file.

    Args:
        model: A .keras file; with --trust also an HDF5 file or a SavedModel folder.
        json: Write the report here too.
        trust: Load a model that holds code, such as a Lambda layer, and so run it.
        force: Overwrite the --json file.
    """
    import dlqat_tf
    from dlqat_tf._host import write_whole
    from dlqat_tf.export import command
    from dlqat_tf.loading import load_model
    from dlqat_tf.report import check_target

    def work() -> None:
        if json:
            check_target(json, force=force, beside=[model])
        report = dlqat_tf.summary(load_model(model, trust=trust))
        if json:
            write_whole(json, report.to_json() + "\n")

    command.run(work)
