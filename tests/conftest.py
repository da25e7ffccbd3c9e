"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

from dlqat_tf import _compat  # noqa: F401  (before anything imports TensorFlow)

import tensorflow as tf  # isort: skip

_BESIDE = Path(__file__).parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Initialise the same kernels in every run, those of the fixtures too."""
    tf.keras.utils.set_random_seed(0)


def _real_data(folder: str) -> Path:
    """The folder in $DLQAT_DATA, or beside the repository; skips the test where it is missing."""
    root = Path(os.environ.get("DLQAT_DATA", _BESIDE))
    if not (root / folder).is_dir():
        pytest.skip(f"needs real data: set DLQAT_DATA to a folder that holds {folder}/")
    return root / folder


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Data folder of tensorflow-datasets that holds CIFAR-100."""
    return _real_data("tfds")


@pytest.fixture(scope="session")
def imagenet10_dir() -> Path:
    """Image folder with ten classes of ImageNet."""
    return _real_data("imagenet10")
