"""Export a trained Keras model to a .tflite file of stock operations.

As `dlqat export tflite`, see dlqat_command/export.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("export", "tflite")
