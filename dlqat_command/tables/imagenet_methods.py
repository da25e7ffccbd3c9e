"""The rows of the paper's Tables 2 and 3 on ImageNet, each method as in its own paper.

Network variant and training are those of each method's paper or its authors' code, where
dlqat_tf.methods knows them, else those of DL-QAT. imagenet2012 from tensorflow-datasets, or with
--dataset folder any image folder with train/ and val/:

    dlqat table imagenet-methods --data-dir DIR
    dlqat table imagenet-methods --dataset folder --data-dir DIR --budget smoke --methods lsq bwn

Cells, flags and reports are those of `dlqat table methods`. What a budget or a flag of the recipe
sets holds for all methods, over what their papers settle.
"""

import dataclasses
from pathlib import Path

from dlqat_command import comparison
from dlqat_command.tables import imagenet
from dlqat_command.tables.imagenet import LOSSES, SHORT

PAPER = dataclasses.replace(imagenet.PAPER, output=Path("runs/imagenet_methods"))

COMMAND = comparison.of_methods(
    PAPER, short=SHORT, losses=LOSSES, as_in_papers=True, description=__doc__
)
