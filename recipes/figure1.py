"""Figure 1 of the paper: features of each loss by t-SNE, in float and at 2 bits, and in figures.

As `dlqat figure1`, see dlqat_command/figure1.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("figure1")
