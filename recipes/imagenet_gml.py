"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on ImageNet.

Reads imagenet2012 from tensorflow-datasets, or with --dataset folder any image folder with train/
and val/.

Paper (Table 3): 64.0 % W1A2, 150 epochs, batch 1024, learning rate 0.02.
Ours, --budget paper: not run.
Ours, --budget short: not run.
"""

from pathlib import Path

from dlqat_tf.training import IMAGENET_SHORT, Recipe, main

PAPER = Recipe(
    dataset="imagenet2012",
    stem="imagenet",
    head="gml",
    batch_size=1024,
    learning_rate=0.02,
    reference_batch=1024,
    gml_alpha=0.0,  # no margin, so no ramp either
    final_gain=0.15,  # ours: features start at the scale of the means
    output=Path("runs/imagenet_gml"),
)

if __name__ == "__main__":
    main(PAPER, short=IMAGENET_SHORT, description=__doc__)
