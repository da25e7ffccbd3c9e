"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on CIFAR-10.

As `dlqat train cifar10-gml`. Settings and evidence: dlqat_command/recipes/cifar10_gml.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "cifar10-gml")
