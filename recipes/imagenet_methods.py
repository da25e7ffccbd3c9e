"""The rows of the paper's Tables 2 and 3 on ImageNet, each method as in its own paper.

As `dlqat table imagenet-methods`, see dlqat_command/tables/imagenet_methods.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("table", "imagenet-methods")
