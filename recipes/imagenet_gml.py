"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on ImageNet.

As `dlqat train imagenet-gml`. Settings and evidence: dlqat_command/recipes/imagenet_gml.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "imagenet-gml")
