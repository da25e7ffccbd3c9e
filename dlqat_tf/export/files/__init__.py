"""What is stored: TFLite and LCE files, written and counted."""
