"""Latency of .tflite files on an Android device.

As `dlqat benchmark android`, see dlqat_command/benchmark.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("benchmark", "android")
