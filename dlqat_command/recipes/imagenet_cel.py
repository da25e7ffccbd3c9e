"""SAT with cross-entropy (the paper's baseline): W1A2 ResNet-18 on ImageNet.

Reads imagenet2012 from tensorflow-datasets, or with --dataset folder any image folder with train/
and val/.

- Paper (Table 3): 63.1 % W1A2, 150 epochs, batch 1024, learning rate 0.02.
- Ours, --budget paper: not run.
- Ours, --budget short: not run.

Ours and not the paper's, which names none of these: crop and flip, Nesterov momentum, an epoch of
learning-rate warm-up, two stages (clamped float weights, then quantized) with activation ranges
calibrated in between, and 8-bit rounding of what residual adds read, as int8 kernels must.
"""

from pathlib import Path

from dlqat_command.budgets import IMAGENET_SHORT
from dlqat_command.recipe import Recipe

PAPER = Recipe(
    dataset="imagenet2012",
    stem="imagenet",
    head="linear",
    batch_size=1024,
    learning_rate=0.02,
    reference_batch=1024,
    output=Path("runs/imagenet_cel"),
)

SHORT = IMAGENET_SHORT
