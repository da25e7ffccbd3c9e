"""DL-QAT with additive margin softmax: W1A2 ResNet-18 on CIFAR-10.

As `dlqat train cifar10-ams`. Settings and evidence: dlqat_command/recipes/cifar10_ams.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "cifar10-ams")
