"""Figure 1 of the paper: features of each loss by t-SNE, in float and at 2 bits, and in figures.

Reads networks that recipes/table1.py trained, and shows the test images to them:

    python recipes/figure1.py --runs runs/table1_short --data-dir DIR --output results/figure1

Writes figure1.png, like the paper's (50 test images of each class, what the classifier reads,
perplexity 30, 1000 iterations), and statistics.json with what t-SNE only hints at: the variance
within classes, the distances between class means, their ratio, and the accuracy of a linear probe.
The same images serve all networks. t-SNE shows neighbours, not distances: read the statistics.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro
from rich.console import Console

from dlqat_tf import analysis
from dlqat_tf._host import write_whole
from dlqat_tf._script import ending
from dlqat_tf.export.command import test_images
from dlqat_tf.loading import load_model
from dlqat_tf.training.comparison import FLOAT, Key, label
from dlqat_tf.training.results import environment

LOSSES = ("CEL", "AMS", "GML")


def figure1(
    runs: Path = Path("runs/table1_short"),
    dataset: str = "cifar100",
    data_dir: Path | None = None,
    rate: str = "tuned",
    seed: int = 0,
    widths: tuple[int, int] = (2, 2),
    per_class: int = 50,
    classes: int | None = None,
    output: Path = Path("results/figure1"),
) -> None:
    """Draw the features of the networks of a table, and measure their clusters.

    Args:
        runs: The --output of recipes/table1.py.
        dataset: Of the networks; "cifar10" in the paper.
        data_dir: Folder of tensorflow-datasets.
        rate: "tuned" or "paper", as in the names of the cells.
        seed: As in the names of the cells; of t-SNE too.
        widths: Weight and activation bits beside the float networks.
        per_class: Test images of each class.
        classes: Show the first of the classes only; the statistics are of those too.
        output: Folder for the picture and the statistics.
    """
    keys = [Key(dataset, loss, each, rate, seed) for loss in LOSSES for each in (FLOAT, widths)]
    with ending(ValueError):
        paths = {key: runs / key.name / "model.keras" for key in keys}
        missing = [key.name for key, path in paths.items() if not path.is_file()]
        if missing:
            raise ValueError(
                f"Expected finished cells in {runs}, {len(missing)} are missing: "
                f"{', '.join(missing)}. Train them: recipes/table1.py --cells {' '.join(missing)}"
            )
        output.mkdir(parents=True, exist_ok=True)
        panels, figures = [], {}
        images = labels = None
        for key, path in paths.items():
            model = load_model(path)
            if images is None:
                images, labels = test_images(dataset, data_dir, model.input_shape[1:], None)
                chosen = analysis.per_class(labels, per_class)
                chosen = chosen[: None if classes is None else classes * per_class]
                images, labels = images[chosen] / 255, labels[chosen]
            features = analysis.features(model, images)
            figures[key.name] = analysis.cluster_statistics(features, labels, seed=seed)
            name = "full precision" if key.widths == FLOAT else label(key.widths)
            title = f"({'abcdef'[len(panels)]}) {name}, {key.loss}"
            Console().print(title)
            figures[key.name].print()
            panels.append((title, analysis.embed(features, seed=seed)))
        analysis.draw_embeddings(panels, labels, output / "figure1.png", columns=2)
        content = {name: dataclasses.asdict(each) for name, each in figures.items()}
        content["environment"] = environment()
        write_whole(output / "statistics.json", json.dumps(content, indent=2) + "\n")
        Console().print(f"{output / 'figure1.png'}, {output / 'statistics.json'}")


if __name__ == "__main__":
    tyro.cli(figure1, description=__doc__)
