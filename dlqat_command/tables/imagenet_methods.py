"""The rows of the paper's Tables 2 and 3 on ImageNet, each method as in its own paper.

Network variant and training are those of each method's paper or its authors' code, where
dlqat_tf.methods knows them, else those of DL-QAT. imagenet2012 from tensorflow-datasets, or with
--dataset folder any image folder with train/ and val/:

    dlqat table imagenet-methods --data-dir DIR
    dlqat table imagenet-methods --dataset folder --data-dir DIR --budget smoke --methods lsq bwn

Cells, flags and reports are those of `dlqat table methods`. What a budget or a flag of the recipe
sets holds for all methods, over what their papers settle.

Not run on ImageNet here. On a folder of ten of its classes, the second command with
--images-per-epoch 1280 (width 16, one epoch of ten steps a stage, two CPU cores, seed 0, commit
4223e0b) trains and exports all of its five cells; top-1 is 9.4 to 11.8 %, chance after ten steps.
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
