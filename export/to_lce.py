"""Export a trained Keras model to a .tflite file with binary convolutions.

As `dlqat export lce`, see dlqat_command/export.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("export", "lce")
