"""SAT with cross-entropy (the paper's baseline): W1A2 ResNet-18 on CIFAR-10.

As `dlqat train cifar10-cel`. Settings and evidence: dlqat_command/recipes/cifar10_cel.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("train", "cifar10-cel")
