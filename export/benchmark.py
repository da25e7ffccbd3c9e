"""Latency of .tflite files on this host, side by side.

As `dlqat benchmark`, see dlqat_command/benchmark.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("benchmark")
