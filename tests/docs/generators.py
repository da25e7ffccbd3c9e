"""Loads the modules that make pages of the documentation."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "_generate"


def load(name: str):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
