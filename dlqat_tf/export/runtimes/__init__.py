"""What runs a file: this host and phones."""
