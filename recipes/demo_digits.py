"""The demo: a narrow W1A2 ResNet-18 with GML on scikit-learn's handwritten digits, to .tflite.

As `dlqat demo`, see dlqat_command/demo.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("demo")
