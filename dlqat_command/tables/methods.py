"""Every method of dlqat_tf.methods on one network, one dataset and one budget.

Each at its lowest bits, with float activations and with 2 bits, and its float network:

    dlqat table methods --data-dir DIR --budget short --learning-rates 0.6
    dlqat table methods --data-dir DIR --budget short --losses CEL GML --cells "cifar100-lsq-*"
    dlqat table methods --budget short --report results/methods

Cells are named dataset-method-loss-widths-seed, for example cifar100-lsq-CEL-W2A32-s0. W32A32 is
the float network; methods whose float kernels are the same share one, and those that start from a
trained network start from it. Methods that their papers train from scratch are, for as long as the
others train in both stages. Learning rates are the paper's for each loss or those given, 0.4 of it
in a quantized stage, the same for every method. Finished cells are skipped and killed ones resume;
several processes may work on one --output.

--budget short is that of table1: 30 + 10 epochs, 3x3 stem, width 16, bfloat16, batch 128.
"""

from pathlib import Path

from dlqat_command import comparison
from dlqat_command.recipe import Recipe
from dlqat_command.tables.table1 import LOSSES, SHORT

PAPER = Recipe(dataset="cifar100", reference_batch=768, output=Path("runs/methods"))

COMMAND = comparison.of_methods(
    PAPER, short=SHORT, losses=LOSSES, as_in_papers=False, description=__doc__
)
