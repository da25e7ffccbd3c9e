"""What measuring batch norms anew does to trained low-bit networks.

Takes finished runs of recipes, replaces the moving averages of their batch norms by means over
training images (dlqat_tf.training.batch_norm), and compares top-1 on the whole test set.

    python benchmarks/reestimation.py runs/table1/cifar100-*-W1A2-*
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from dlqat_tf._script import ending
from dlqat_tf.loading import load_model
from dlqat_tf.training import data
from dlqat_tf.training.batch_norm import reestimate
from dlqat_tf.training.recipe import read_recipe


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    images: tuple[int, ...] = (1000, 5000, 20000),
    data_dir: Path | None = None,
) -> None:
    """Print top-1 in percent with moving averages, and with those of some training images.

    Args:
        runs: Folders of finished runs.
        images: How many training images batch norms are measured on, as they are and augmented.
        data_dir: Where the data set lies; by default where the run had it.
    """
    with ending(ValueError, OSError):
        table = Table(title="top-1 on the test set, batch norms of N training images")
        table.add_column("run")
        table.add_column("moving averages", justify="right")
        for count in images:
            table.add_column(f"{count}", justify="right")
            table.add_column(f"{count} augmented", justify="right")
        gains = []
        for run in runs:
            rows = _measured(run, images, data_dir)
            gains.append(np.subtract(rows[1:], rows[0]))
            table.add_row(run.name, *(f"{each:.2f}" for each in rows))
        table.add_row("mean gain", "", *(f"{each:+.2f}" for each in np.mean(gains, axis=0)))
        Console(width=max(100, Console().width)).print(table)


def _measured(run: Path, counts: tuple[int, ...], data_dir: Path | None) -> list[float]:
    recipe = read_recipe(run)
    images = data.load(
        recipe.dataset,
        data_dir=data_dir or recipe.data_dir,
        image_size=recipe.image_size,
        train_size=recipe.train_size,
        validation_size=recipe.validation_size,
        seed=recipe.seed,
    )
    found = [_accuracy(load_model(run / "model.keras"), images)]
    for count in counts:
        for augment in ((), recipe.augment):
            model = load_model(run / "model.keras")
            batches = images.train_batches(recipe.batch_size, seed=recipe.seed, augment=augment)
            reestimate(model, batches.take(math.ceil(count / recipe.batch_size)))
            found.append(_accuracy(model, images))
    return found


def _accuracy(model, images: data.ImageData) -> float:
    """Return top-1 on the test set in percent."""
    right = sum(
        np.sum(np.argmax(model.predict_on_batch(batch), axis=1) == labels)
        for batch, labels in images.test_batches(250)
    )
    return 100 * float(right) / images.test_count


if __name__ == "__main__":
    tyro.cli(compare, description=__doc__)
