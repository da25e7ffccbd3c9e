"""SAT with cross-entropy (the paper's baseline): W1A2 ResNet-18 on ImageNet.

As `dlqat train imagenet-cel`. Settings and evidence: dlqat_command/recipes/imagenet_cel.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "imagenet-cel")
