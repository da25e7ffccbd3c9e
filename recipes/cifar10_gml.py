"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on CIFAR-10.

Paper (Table 1): 93.0 % float, 91.2 % W1A2, 150 epochs, batch 768, learning rate 0.2.
Ours, --budget paper: not run.
Ours, --budget short: not run.
"""

from pathlib import Path

from dlqat_tf.training.command_line import CIFAR_SHORT, main
from dlqat_tf.training.recipe import Recipe

PAPER = Recipe(
    dataset="cifar10",
    head="gml",
    learning_rate=0.2,
    margin_warmup_epochs=5,  # ours: the paper names no ramp
    final_gain=0.15,  # ours: features start at the scale of the means
    output=Path("runs/cifar10_gml"),
)

if __name__ == "__main__":
    main(PAPER, short=CIFAR_SHORT, description=__doc__)
