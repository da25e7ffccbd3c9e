"""Every method of dlqat_tf.methods on one network, one dataset and one budget.

As `dlqat table methods`, see dlqat_command/tables/methods.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("table", "methods")
