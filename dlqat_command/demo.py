"""The demo: a narrow W1A2 ResNet-18 with GML on scikit-learn's handwritten digits, to .tflite.

Needs no network and no data. `make demo` runs it; started again it continues or repeats the export.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dlqat_command import training
from dlqat_command.recipe import Recipe

DEMO = Recipe(
    dataset="digits",
    augment=("crop",),  # no flip: a mirrored digit is another sign
    head="gml",
    width=16,
    float_epochs=15,
    epochs=15,
    batch_size=64,
    learning_rate=0.05,
    reference_batch=64,
    final_gain=0.15,  # features start at the scale of the means: 99.2 % float, 96.7 % without
    gml_fit_power=4.0,  # ten classes are fitted at once: W1A2 99.2 %, 96.9 % at the default of 8
    output=Path("runs/demo"),
)


def demo(recipe: Recipe, changes: dict[str, Any]) -> None:
    """Train the network, export it twice and compare it with both files."""
    from dlqat_tf._script import ending

    with ending(ValueError):
        if recipe.weight_bits in (None, 32):
            raise ValueError(
                "Expected weights that the demo can export, of 1 to 8 bits. Received: "
                f"weight_bits={recipe.weight_bits}."
            )
    result = training.train(recipe, changes)
    if result is None:  # the first worker of the job has it
        return
    with ending(ValueError):
        failed = _deploy(result.recipe, result.float_accuracy or result.accuracy)
    sys.exit("\n".join(failed) if failed else 0)


def _deploy(recipe: dict[str, Any], float_accuracy: float) -> list[str]:
    """Export the trained network twice, compare it with both files, print, return failures."""
    from rich.console import Console
    from rich.table import Table

    from dlqat_tf import export
    from dlqat_tf.export import command
    from dlqat_tf.loading import load_model

    folder, dataset, data_dir = Path(recipe["output"]), recipe["dataset"], recipe["data_dir"]
    widths = f"W{recipe['weight_bits']}A{recipe['activation_bits']}"
    model = load_model(folder / "model.keras")
    images, labels = command.test_images(
        dataset, data_dir and Path(data_dir), model.input_shape[1:], None
    )

    console = Console()
    table = Table(title=f"{dataset}, test top-1", title_justify="left")
    for heading in ("network", "accuracy", "file", "size"):
        table.add_column(heading, justify="right" if heading in ("accuracy", "size") else "left")
    table.add_row("float, Keras", f"{float_accuracy:.2%}")
    failures = []
    for name, write in (("int8 kernels", export.to_tflite), ("binary kernels", export.to_lce)):
        path = folder / f"{'model' if write is export.to_tflite else 'model_lce'}.tflite"
        write(model, path, force=True)
        snapped = load_model(path.with_suffix(".snapped.keras"))
        report = export.parity(snapped, path, images, labels, trained=model)
        report.print()
        failures += [f"{path}: {failure}" for failure in report.failures()]
        if write is export.to_tflite:
            table.add_row(f"{widths}, trained", f"{report.top1['trained']:.2f}%", "model.keras")
        beside = path.with_suffix(".snapped.keras").name
        table.add_row(f"{widths}, snapped for {name}", f"{report.top1['keras']:.2f}%", beside)
        size = path.stat().st_size
        table.add_row(f"{widths}, {name}", f"{report.top1['file']:.2f}%", path.name, f"{size:,} B")
    console.print(table)
    return failures


COMMAND = training.command(DEMO, short={}, description=__doc__, work=demo)
