"""What the code blocks of README.md and of the documentation have around them, small.

A block runs as it is printed, with these for the names that its page leaves open: the reader's own
images, labels and models.
"""

from __future__ import annotations

from pathlib import Path

import larq as lq
import numpy as np

import dlqat_tf

import tensorflow as tf  # isort: skip

CLASSES = 10
_IMAGES = 32


def images():
    return np.random.default_rng(0).random((_IMAGES, 32, 32, 3), np.float32)


def labels():
    return np.arange(_IMAGES) % CLASSES


def digits():
    return np.random.default_rng(0).random((_IMAGES, 8, 8, 1), np.float32)


def digit_labels():
    return labels()


def float_model():
    """A trained float network of the reader's."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((32, 32, 3)),
            layers.Conv2D(4, 3, strides=4, use_bias=False, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 3, use_bias=False, name="block_1_conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(name="odd_layer"),
            layers.Dense(CLASSES),
        ]
    )


def model():
    """A low-bit network of the reader's."""
    return dlqat_tf.quantize(float_model(), images=images(), labels=labels())[0]


def state():
    """What PyTorch calls the weights of a convolution, a batch norm and a dense layer."""
    random = np.random.default_rng(0).random
    shapes = {"conv.weight": (8, 3, 3, 3), "fc.weight": (CLASSES, 8), "fc.bias": (CLASSES,)}
    norm = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"bn.{name}": (8,) for name in norm}
    return {name: random(shape, np.float32) for name, shape in shapes.items()}


def siamese():
    """A network of two images whose towers share everything."""
    tower = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 3, strides=4, use_bias=False),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
            tf.keras.layers.GlobalAveragePooling2D(),
        ]
    )
    inputs = [tf.keras.Input((32, 32, 3), name=name) for name in ("left", "right")]
    both = tf.keras.layers.Concatenate()([tower(each) for each in inputs])
    pair = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(both))
    return dlqat_tf.quantize(pair, head=None)[0]


def left():
    return images()


def right():
    return images()[::-1]


PYTHON = (images, labels, digits, digit_labels, float_model, model, state, siamese, left, right)
"""Made where a page uses the name and has not given it a value of its own."""


def write_files(folder: Path) -> None:
    """Write what commands read: the networks of runs, untrained and small."""
    shapes = {
        "demo": ((8, 8, 1), 8),
        "x": ((16, 16, 3), 128),  # with a convolution for which planes pay on some phones
    }
    for name, (shape, channels) in shapes.items():
        (folder / "runs" / name).mkdir(parents=True)
        _low_bit(shape, channels).save(folder / "runs" / name / "model.keras")


def _low_bit(shape: tuple[int, int, int], channels: int) -> tf.keras.Model:
    layers = [tf.keras.Input(shape)]
    for bits, strides in ((8, 2), (1, 1)):
        quantizer = dlqat_tf.SATWeights(bits=bits)
        layers += [
            lq.layers.QuantConv2D(
                channels, 3, strides, "same", use_bias=False, kernel_quantizer=quantizer
            ),
            tf.keras.layers.BatchNormalization(),
            dlqat_tf.CGPACT(bits=2 if bits == 8 else 8, alpha_init=2.0),
        ]
    layers += [tf.keras.layers.GlobalAveragePooling2D(), dlqat_tf.GaussianMixtureHead(CLASSES)]
    return tf.keras.Sequential(layers)


RUNS = (
    *("env", "summary", "export tflite", "export lce", "parity", "census", "benchmark"),
    "zoo list",
)
"""Commands of ``dlqat`` that run; what the others are given is parsed, and a recipe validated:
they train for long, or need a phone, a browser or data that is not here."""

ELSEWHERE = {
    "make": "CI consists of it",
    "python": "starts no script of ours",
    "pip": "CI installs",
    ".": "activates an environment",
    "export": "sets a variable",
    "mkdocs": "CI builds the site",
    "adb": "needs a phone",
    "npm": "is not part of the package",
    "git": "is not part of the package",
}
"""Programs whose lines are not looked at, and why."""

NOT_RUN = (
    "text",
    "not-run",
    "bash",
    "yaml",
    "kotlin",
    "groovy",
    "toml",
    "cpp",
    "c",
    "cmake",
    "html",
    "json",
    "js",
)
"""Languages of blocks that are not run here."""
