"""Prove that an exported file computes what its Keras model computes.

As `dlqat parity`, see dlqat_command/parity.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("parity")
