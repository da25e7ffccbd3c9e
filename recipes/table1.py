"""Table 1 of the paper: SAT with cross-entropy (CEL), DL-QAT with AMS and GML, width by width.

As `dlqat table table1`, see dlqat_command/tables/table1.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("table", "table1")
