"""Figure 1 of the paper: features of each loss by t-SNE, in float and at 2 bits, and in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dlqat_command.metavars import COUNT, DATASET, FOLDER

LOSSES = ("CEL", "AMS", "GML")


def figure1(
    runs: Annotated[Path, FOLDER] = Path("runs/table1_short"),
    dataset: Annotated[str, DATASET] = "cifar100",
    data_dir: Annotated[Path | None, FOLDER] = None,
    rate: Literal["tuned", "paper"] = "tuned",
    seed: int = 0,
    widths: Annotated[tuple[int, int], arg(metavar="WEIGHT-BITS ACTIVATION-BITS")] = (2, 2),
    per_class: Annotated[int, COUNT] = 50,
    classes: Annotated[int | None, COUNT] = None,
    output: Annotated[Path, FOLDER] = Path("results/figure1"),
) -> None:
    """Draw Figure 1 of the paper, the features of each loss, and measure their clusters.

    Reads networks that `dlqat table table1` trained, and shows the test images to them:

        dlqat figure1 --runs runs/table1_short --data-dir DIR --output results/figure1

    Writes figure1.png, like the paper's (50 test images of each class, what the classifier reads,
    perplexity 30, 1000 iterations), and statistics.json with what t-SNE only hints at: the variance
    within classes, the distances between class means, their ratio, and the accuracy of a linear
    probe. The same images serve all networks. t-SNE shows neighbours, not distances: read the
    statistics.

    Args:
        runs: The --output of `dlqat table table1`.
        dataset: Of the networks; "cifar10" in the paper.
        data_dir: Folder of tensorflow-datasets.
        rate: As in the names of the cells.
        seed: As in the names of the cells; of t-SNE too.
        widths: Weight and activation bits beside the float networks.
        per_class: Test images of each class.
        classes: Show the first of the classes only; the statistics are of those too.
        output: Folder for the picture and the statistics.
    """
    import dataclasses
    import json

    import numpy as np
    from rich.console import Console

    from dlqat_tf import analysis, plots
    from dlqat_tf._host import check_folder, replacing, write_whole
    from dlqat_tf._script import ending
    from dlqat_tf.export.command import test_images
    from dlqat_tf.loading import load_model
    from dlqat_tf.training.comparison import FLOAT, Key, label
    from dlqat_tf.training.results import environment

    keys = [Key(dataset, loss, each, rate, seed) for loss in LOSSES for each in (FLOAT, widths)]
    with ending(ValueError):
        check_folder(output)
        paths = {key: runs / key.name / "model.keras" for key in keys}
        missing = [key.name for key, path in paths.items() if not path.is_file()]
        if missing:
            raise ValueError(
                f"Expected finished cells in {runs}, {len(missing)} are missing: "
                f"{', '.join(missing)}. Train them: dlqat table table1 --cells {' '.join(missing)}"
            )
        output.mkdir(parents=True, exist_ok=True)
        models = {key: load_model(path) for key, path in paths.items()}
        shape = models[keys[0]].input_shape[1:]
        images, labels = test_images(dataset, data_dir, shape, None)
        chosen = analysis.per_class(labels, per_class)
        chosen = chosen[: None if classes is None else classes * per_class]
        images, labels = images[chosen] / 255, labels[chosen]
        panels: list[tuple[str, np.ndarray]] = []
        figures = {}
        for key, model in models.items():
            features = analysis.features(model, images)
            figures[key.name] = analysis.cluster_statistics(features, labels, seed=seed)
            name = "full precision" if key.widths == FLOAT else label(key.widths)
            title = f"({'abcdef'[len(panels)]}) {name}, {key.loss}"
            Console().print(title)
            figures[key.name].print()
            panels.append((title, analysis.embed(features, seed=seed)))
        with replacing(output / "figure1.png") as temporary:
            plots.embeddings(panels, labels, columns=2).savefig(temporary, dpi=120)
        content = {name: dataclasses.asdict(each) for name, each in figures.items()}
        content["environment"] = environment()
        write_whole(output / "statistics.json", json.dumps(content, indent=2) + "\n")
        Console().print(f"{output / 'figure1.png'}, {output / 'statistics.json'}")
