"""The SAT and DL-QAT rows of the paper's Tables 2 and 3: cross-entropy and GML on ImageNet.

As `dlqat table imagenet`, see dlqat_command/tables/imagenet.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("table", "imagenet")
