"""What learning from the float stage too does to low-bit networks.

Takes finished quantized runs of recipes and trains each once more, from the same float stage with
the same settings, with that float network as its teacher (dlqat_tf.distill).

    python benchmarks/distillation.py runs/table1/cifar100-CEL-W1A2-tuned-s*

The same command continues what it finds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dlqat_tf._script import ending
from dlqat_tf.training.grid import Cell, Grid
from dlqat_tf.training.recipe import read_recipe


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    weight: float = 1.0,
    temperature: float = 4.0,
    output: Path = Path("runs/distillation"),
    archive: Path | None = None,
) -> None:
    """Print top-1 of each run, and of the same run with a teacher.

    Args:
        runs: Folders of finished runs that started from a float stage.
        weight: Of the teacher's part of the loss.
        temperature: Of both softmaxes in it.
        output: Folder of the runs with a teacher.
        archive: Folder for the small files of finished runs.
    """
    with ending(ValueError, OSError, interrupted="interrupted; the same command goes on"):
        alone = {run.name: json.loads((run / "result.json").read_text()) for run in runs}
        cells = [
            Cell(
                run.name,
                dataclasses.replace(
                    read_recipe(run),
                    teacher="float",
                    distillation_weight=weight,
                    distillation_temperature=temperature,
                ),
            )
            for run in runs
        ]
        outcomes = Grid(cells, output, archive).run()
    table = Table(title=f"top-1, teacher with weight {weight:g}, temperature {temperature:g}")
    for heading in ("run", "alone", "with a teacher", "gain"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    gains = []
    for name, before in alone.items():
        after = outcomes[name].result.get("accuracy")
        gains.append(100 * (np.nan if after is None else after - before["accuracy"]))
        shown = "diverged" if after is None else f"{after:.2%}"
        table.add_row(name, f"{before['accuracy']:.2%}", shown, f"{gains[-1]:+.2f}")
    deviation = f" ± {np.std(gains, ddof=1):.2f}" if len(gains) > 1 else ""
    table.add_row("mean ± sample standard deviation", "", "", f"{np.mean(gains):+.2f}{deviation}")
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    tyro.cli(compare, description=__doc__)
