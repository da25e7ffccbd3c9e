"""The SAT and DL-QAT rows of the paper's Tables 2 and 3: cross-entropy and GML on ImageNet.

imagenet2012 from tensorflow-datasets, or with --dataset folder any image folder with train/ and
val/, in float and at all widths of the tables:

    dlqat table imagenet --data-dir DIR
    dlqat table imagenet --dataset folder --data-dir DIR --budget smoke

Cells, flags and reports are those of `dlqat table table1`. The paper gives both losses one learning
rate here, and GML no margin.
"""

from pathlib import Path

from dlqat_command import comparison
from dlqat_command.budgets import IMAGENET_SHORT
from dlqat_command.recipe import Recipe

PAPER = Recipe(
    dataset="imagenet2012",
    stem="imagenet",
    batch_size=1024,
    reference_batch=1024,
    output=Path("runs/imagenet_table"),
)

# The comparison decides learning rates, at the paper's reference batch.
SHORT = {
    name: value
    for name, value in IMAGENET_SHORT.items()
    if name not in ("learning_rate", "reference_batch")
}

LOSSES = {
    "CEL": {"head": "linear", "learning_rate": 0.02},
    "GML": {"head": "gml", "learning_rate": 0.02, "gml_alpha": 0.0},
}

_TOP1 = {
    (4, 4): (70.0, 70.1),
    (2, 8): (67.4, 67.9),
    (2, 2): (63.1, 64.0),
    (1, 8): (67.5, 67.5),
    (1, 4): (66.9, 67.2),
    (1, 2): (63.1, 64.0),
}

FIGURES = {
    ("imagenet2012", widths, loss): top1
    for widths, row in _TOP1.items()
    for loss, top1 in zip(LOSSES, row, strict=True)
}

COMMAND = comparison.of_losses(
    PAPER, short=SHORT, losses=LOSSES, figures=FIGURES, description=__doc__
)
