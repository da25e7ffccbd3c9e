"""SAT with cross-entropy (the paper's baseline): W1A2 ResNet-18 on CIFAR-100.

- Paper (Table 1): 66.2 % float, 59.0 % W1A2, 150 epochs, batch 768, learning rate 0.01.
- Ours, --budget paper: not run.
- Ours, shortened to 20 + 5 epochs, 3x3 stem, width 16, bfloat16, batch 128, its own rate out of
  two: 61.7 ± 0.4 % float, 50.7 ± 0.5 % W1A2 (mean and sample standard deviation of three seeds,
  last epoch, whole test set, 2 shared cores; command and commit: results/README.md).

Ours and not the paper's, which names none of these: crop and flip, Nesterov momentum, an epoch of
learning-rate warm-up, two stages (clamped float weights, then quantized) with activation ranges
calibrated in between, 0.4 of the learning rate in the quantized stage of those figures, and 8-bit
rounding of what residual adds read, as int8 kernels must.
"""

from pathlib import Path

from dlqat_command.budgets import CIFAR_SHORT
from dlqat_command.recipe import Recipe

PAPER = Recipe(
    dataset="cifar100",
    head="linear",
    learning_rate=0.01,
    output=Path("runs/cifar100_cel"),
)

SHORT = CIFAR_SHORT
