"""Write a web page that runs a .tflite classifier in the browser.

As `dlqat export web`, see dlqat_command/website.py.
"""

from dlqat_command.main import main

if __name__ == "__main__":
    main("export", "web")
