"""Digits to train on."""

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    """(images, labels) to train on and (images, labels) to test on."""
    data = load_digits()
    images = np.float32(np.rint(data.images[..., None] * (255 / 16))) / np.float32(255)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], data.target[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]
