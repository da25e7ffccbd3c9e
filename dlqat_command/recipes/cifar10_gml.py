"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on CIFAR-10.

- Paper (Table 1): 93.0 % float, 91.2 % W1A2, 150 epochs, batch 768, learning rate 0.2.
- Ours, --budget paper: not run.
- Ours, --budget short: not run.

Ours and not the paper's, which names none of these: crop and flip, Nesterov momentum, an epoch of
learning-rate warm-up, two stages (clamped float weights, then quantized) with activation ranges
calibrated in between, 8-bit rounding of what residual adds read, as int8 kernels must, a margin
that follows the fit (--paper-literal: the full one at once), and a learning rate of the quantized
stage that is 0.4 of the float one.
"""

from pathlib import Path

from dlqat_command.budgets import CIFAR_SHORT
from dlqat_command.recipe import Recipe

PAPER = Recipe(
    dataset="cifar10",
    head="gml",
    learning_rate=0.2,
    quantized_learning_rate=0.08,  # ours: see cifar100_gml.py
    output=Path("runs/cifar10_gml"),
)

SHORT = CIFAR_SHORT
