"""DL-QAT with Gaussian mixture loss: W1A2 ResNet-18 on CIFAR-100.

As `dlqat train cifar100-gml`. Settings and evidence: dlqat_command/recipes/cifar100_gml.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "cifar100-gml")
