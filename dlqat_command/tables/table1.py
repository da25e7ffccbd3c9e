"""Table 1 of the paper: SAT with cross-entropy (CEL), DL-QAT with AMS and GML, width by width.

CIFAR-10 and CIFAR-100, each loss in float and at all widths of the table, for each seed:

    dlqat table table1 --data-dir DIR --budget short --seeds 0 1 2 --rates 0.1 0.3 1.0
    dlqat table table1 --data-dir DIR --budget short --cells "cifar100-*-W1A2-*"
    dlqat table table1 --budget short --report results/table1

Cells are named dataset-loss-widths-rate-seed, for example cifar100-GML-W1A2-tuned-s0; W32A32 is the
float network, which the others of its loss and seed start from. The rate is "paper" for the paper's
learning rate and "tuned" for the loss's own best of --rates: the paper gives GML 20 times the
learning rate of the others. Finished cells are skipped and killed ones resume; several processes
may work on one --output.

Ours and not the paper's: what the headers of the recipes name, and 0.4 of the float stage's
learning rate for the quantized stage of every loss. --budget short: 30 + 10 epochs, 3x3 stem, width
16, bfloat16, batch 128.
"""

from pathlib import Path

from dlqat_command import comparison
from dlqat_command.recipe import Recipe

PAPER = Recipe(dataset="cifar100", reference_batch=768, output=Path("runs/table1"))

SHORT = {
    "float_epochs": 30,
    "epochs": 10,
    "batch_size": 128,
    "width": 16,
    "precision": "mixed_bfloat16",
}

LOSSES = {
    "CEL": {"head": "linear", "learning_rate": 0.01},
    "AMS": {"head": "cosine", "learning_rate": 0.01},
    "GML": {"head": "gml", "learning_rate": 0.2},
}

_TOP1 = {
    "cifar10": {
        (32, 32): (89.4, 91.7, 93.0),
        (2, 2): (76.5, 89.1, 91.3),
        (1, 2): (72.4, 88.3, 91.2),
    },
    "cifar100": {
        (32, 32): (66.2, 68.7, 73.6),
        (8, 8): (65.8, 68.5, 73.1),
        (4, 4): (65.4, 68.4, 72.6),
        (3, 3): (65.1, 68.2, 73.3),
        (2, 2): (61.1, 66.1, 71.9),
        (1, 8): (63.9, 67.9, 72.5),
        (1, 4): (63.2, 67.1, 72.5),
        (1, 3): (62.4, 67.0, 72.0),
        (1, 2): (59.0, 65.5, 71.3),
    },
}

FIGURES = {
    (dataset, widths, loss): top1
    for dataset, rows in _TOP1.items()
    for widths, row in rows.items()
    for loss, top1 in zip(LOSSES, row, strict=True)
}

COMMAND = comparison.of_losses(
    PAPER, short=SHORT, losses=LOSSES, figures=FIGURES, description=__doc__
)
