"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on ImageNet.

Reads imagenet2012 from tensorflow-datasets, or with --dataset folder any image folder with train/
and val/.

- Paper (Table 3): 64.0 % W1A2, 150 epochs, batch 1024, learning rate 0.02.
- Ours, --budget paper: not run.
- Ours, --budget short: not run.

Ours and not the paper's, which names none of these: crop and flip, Nesterov momentum, an epoch of
learning-rate warm-up, two stages (clamped float weights, then quantized) with activation ranges
calibrated in between, 8-bit rounding of what residual adds read, as int8 kernels must.

Runs at 224x224 on any image folder (grayscale files included): on ten classes of ImageNet (1,300
images to train on, 500 to test), shortened to width 16 and one epoch of 20 steps a stage, it took
2 minutes on 2 shared cores of an AMD EPYC and stayed at chance (10.2 %), as 20 steps must:

    python recipes/imagenet_gml.py --dataset folder --data-dir imagenet10 --budget short --width 16
        --float-epochs 1 --epochs 1        (commit 8097206103, seed 0, TensorFlow 2.21)
"""

from pathlib import Path

from dlqat_command.budgets import IMAGENET_SHORT
from dlqat_command.recipe import Recipe

PAPER = Recipe(
    dataset="imagenet2012",
    stem="imagenet",
    head="gml",
    batch_size=1024,
    learning_rate=0.02,
    reference_batch=1024,
    gml_alpha=0.0,
    output=Path("runs/imagenet_gml"),
)

SHORT = IMAGENET_SHORT
