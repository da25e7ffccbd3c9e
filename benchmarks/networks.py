"""Networks that people have: Keras's own, and the kinds that tutorials and papers show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import dlqat_tf

import tensorflow as tf  # isort: skip

_layers = tf.keras.layers
CLASSES = 10
_SIZE = 32


@dataclass(frozen=True)
class Network:
    """A float network and what it learns from.

    Attributes:
        build: Returns the model, with random weights.
        shapes: Of its inputs; three dimensions are images.
        preprocessing: What it wants done to pixels: "unit" (/ 255), "raw" (nothing), or "tf",
            "caffe" or "torch" as in ``tf.keras.applications``.
        head: As in :func:`dlqat_tf.quantize`.
        labels: From the classes of each input and the inputs to one array for each output.
    """

    build: Callable[[], tf.keras.Model]
    shapes: tuple[tuple[int, ...], ...] = ((_SIZE, _SIZE, 3),)
    preprocessing: str = "unit"
    head: str | dict[str, str | None] | None = "linear"
    labels: Callable[[list, list], list] = lambda classes, inputs: classes[:1]

    def data(self, count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return inputs, images as uint8 pixels, and labels: each class is a pattern with noise."""
        patterns, noise = np.random.default_rng(0), np.random.default_rng(seed)
        inputs, classes = [], []
        for shape in self.shapes:
            kinds = patterns.normal(size=(CLASSES, *shape))
            if len(shape) == 3:  # smooth, as photographs are
                coarse = patterns.normal(size=(CLASSES, 5, 5, shape[-1]))
                kinds = tf.image.resize(coarse, shape[:2], "bicubic").numpy()
            classes.append(noise.integers(0, CLASSES, count))
            values = kinds[classes[-1]] + 0.3 * noise.normal(size=(count, *shape))
            if len(shape) == 3:
                inputs.append(np.clip(128 + 50 * values, 0, 255).astype(np.uint8))
            else:
                inputs.append(np.float32(values))
        return inputs, self.labels(classes, inputs)

    def prepared(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Return inputs as the model takes them."""
        return [self._prepared(each) if each.ndim == 4 else each for each in inputs]

    def _prepared(self, pixels: np.ndarray) -> np.ndarray:
        if self.preprocessing == "raw":
            return np.float32(pixels)
        if self.preprocessing == "unit":
            return np.float32(pixels / 255)
        return dlqat_tf.preprocessing.preprocessing_of(self.preprocessing)(pixels)


def _application(
    name: str, preprocessing: str, size: int = _SIZE, head: str | None = "linear", **options
) -> Network:
    def build():
        make = getattr(tf.keras.applications, name)
        given = dict(classifier_activation=None) if head is None else {}
        shape = (size, size, 3)
        return make(weights=None, input_shape=shape, classes=CLASSES, **given, **options)

    return Network(build, ((size, size, 3),), preprocessing, head)


def _convolved(x, filters: int, size: int = 3, strides: int = 1, groups: int = 1):
    x = _layers.Conv2D(filters, size, strides, "same", groups=groups, use_bias=False)(x)
    return _layers.ReLU()(_layers.BatchNormalization(momentum=0.9)(x))


def _tutorial_cnn():
    """Return the network of TensorFlow's tutorial on convolutions."""
    return tf.keras.Sequential(
        [
            _layers.Conv2D(32, 3, activation="relu", input_shape=(_SIZE, _SIZE, 3)),
            _layers.MaxPooling2D(),
            _layers.Conv2D(64, 3, activation="relu"),
            _layers.MaxPooling2D(),
            _layers.Conv2D(64, 3, activation="relu"),
            _layers.Flatten(),
            _layers.Dense(64, activation="relu"),
            _layers.Dense(CLASSES),
        ]
    )


def _tutorial_mlp():
    """Return the network of TensorFlow's first tutorial."""
    return tf.keras.Sequential(
        [
            _layers.Flatten(input_shape=(28, 28)),
            _layers.Dense(128, activation="relu"),
            _layers.Dropout(0.2),
            _layers.Dense(CLASSES),
        ]
    )


def _tutorial_images():
    """Return the network of TensorFlow's tutorial on image classification, augmentation too."""
    return tf.keras.Sequential(
        [
            tf.keras.Input((48, 48, 3)),
            _layers.RandomFlip("horizontal"),
            _layers.RandomRotation(0.1),
            _layers.Rescaling(1 / 255),
            *(
                layer
                for filters in (16, 32, 64)
                for layer in (
                    _layers.Conv2D(filters, 3, padding="same", activation="relu"),
                    _layers.MaxPooling2D(),
                )
            ),
            _layers.Dropout(0.2),
            _layers.Flatten(),
            _layers.Dense(128, activation="relu"),
            _layers.Dense(CLASSES),
        ]
    )


def _keyword_spotting():
    """Return a depthwise separable CNN on spectrograms (Zhang et al. 2017, arXiv 1711.07128)."""
    inputs = tf.keras.Input((49, 10))
    x = _layers.Reshape((49, 10, 1))(inputs)
    x = _layers.Conv2D(64, (10, 4), (2, 2), "same", use_bias=False)(x)
    x = _layers.ReLU()(_layers.BatchNormalization(momentum=0.9)(x))
    for _ in range(4):
        x = _layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = _layers.ReLU()(_layers.BatchNormalization(momentum=0.9)(x))
        x = _convolved(x, 64, 1)
    x = _layers.Dropout(0.2)(_layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(inputs, _layers.Dense(CLASSES, "softmax")(x))


def _sensor_windows():
    """Return a one-dimensional CNN on windows of measurements."""
    inputs = x = tf.keras.Input((64, 6))
    for filters in (32, 64):
        x = _layers.Conv1D(filters, 5, padding="same", activation="relu")(x)
        x = _layers.MaxPooling1D()(x)
    x = _layers.GlobalAveragePooling1D()(x)
    return tf.keras.Model(inputs, _layers.Dense(CLASSES)(_layers.Dense(32, "relu")(x)))


def _u_net():
    """Return a small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) of two classes a pixel."""
    inputs = x = tf.keras.Input((_SIZE, _SIZE, 3))
    kept = []
    for filters in (16, 32):
        x = _convolved(_convolved(x, filters), filters)
        kept.append(x)
        x = _layers.MaxPool2D()(x)
    x = _convolved(x, 64)
    for filters, skip in zip((32, 16), reversed(kept), strict=True):
        x = _layers.Conv2DTranspose(filters, 2, 2, "same")(x)
        x = _layers.Concatenate()([x, skip])
        x = _convolved(_convolved(x, filters), filters)
    return tf.keras.Model(inputs, _layers.Conv2D(2, 1)(x))


def _squeeze_net():
    """Return a SqueezeNet (Iandola et al. 2016, arXiv 1602.07360), its head a convolution."""
    inputs = tf.keras.Input((_SIZE, _SIZE, 3))
    x = _layers.Conv2D(32, 3, 1, "same", activation="relu")(inputs)
    x = _layers.MaxPool2D(3, 2)(x)
    for squeeze, expand in ((16, 64), (16, 64), (32, 128)):
        x = _layers.Conv2D(squeeze, 1, activation="relu")(x)
        x = _layers.Concatenate()(
            [
                _layers.Conv2D(expand, 1, activation="relu")(x),
                _layers.Conv2D(expand, 3, padding="same", activation="relu")(x),
            ]
        )
    x = _layers.Conv2D(CLASSES, 1)(_layers.MaxPool2D(3, 2)(x))
    return tf.keras.Model(inputs, _layers.GlobalAveragePooling2D()(x))


def _shuffle_net():
    """Return a ShuffleNet (Zhang et al. 2017, arXiv 1707.01083): groups, shuffled channels."""
    groups, inputs = 4, tf.keras.Input((_SIZE, _SIZE, 3))
    x = _convolved(inputs, 32)
    for _ in range(2):
        y = _convolved(x, 32, 1, groups=groups)
        rows, columns, channels = y.shape[1:]
        y = tf.reshape(y, (-1, rows, columns, groups, channels // groups))
        y = tf.transpose(y, (0, 1, 2, 4, 3))
        y = tf.reshape(y, (-1, rows, columns, channels))
        y = _layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = _layers.BatchNormalization(momentum=0.9)(y)
        y = _layers.Conv2D(32, 1, groups=groups, use_bias=False)(y)
        x = _layers.ReLU()(x + _layers.BatchNormalization(momentum=0.9)(y))
        x = _layers.MaxPool2D()(x)
    x = _layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, _layers.Dense(CLASSES)(x))


def _squeeze_and_excitation():
    """Return a network with squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507)."""
    inputs = tf.keras.Input((_SIZE, _SIZE, 3))
    x = _convolved(inputs, 32)
    for _ in range(2):
        y = _convolved(_convolved(x, 32), 32)
        gate = _layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = _layers.Conv2D(8, 1, activation="relu")(gate)
        gate = _layers.Conv2D(32, 1, activation="sigmoid")(gate)
        x = _layers.ReLU()(_layers.Add()([x, _layers.Multiply()([y, gate])]))
        x = _layers.MaxPool2D()(x)
    x = _layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, _layers.Dense(CLASSES)(x))


def _siamese():
    """Return one network on two images, and whether they are of one class."""
    shape = (_SIZE, _SIZE, 3)
    inputs = x = tf.keras.Input(shape)
    for filters in (16, 32):
        x = _layers.MaxPool2D()(_convolved(x, filters))
    tower = tf.keras.Model(inputs, _layers.Dense(32)(_layers.GlobalAveragePooling2D()(x)))
    pair = [tf.keras.Input(shape), tf.keras.Input(shape)]
    x = _layers.Concatenate()([tower(each) for each in pair])
    return tf.keras.Model(pair, _layers.Dense(2)(_layers.Dense(32, "relu")(x)))


def _several_outputs():
    """Return a network with a class and a box."""
    inputs = tf.keras.Input((_SIZE, _SIZE, 3))
    x = _layers.MaxPool2D()(_convolved(inputs, 32))
    x = _layers.GlobalAveragePooling2D()(_convolved(x, 64))
    outputs = [_layers.Dense(CLASSES, name="kind")(x), _layers.Dense(4, name="box")(x)]
    return tf.keras.Model(inputs, outputs)


def _attention():
    """Return a transformer's block on patches (Dosovitskiy et al. 2020, arXiv 2010.11929)."""
    inputs = tf.keras.Input((_SIZE, _SIZE, 3))
    x = _layers.Conv2D(32, 8, 8)(inputs)
    x = _layers.Reshape((16, 32))(x)
    for _ in range(2):
        y = _layers.LayerNormalization()(x)
        x = _layers.Add()([x, _layers.MultiHeadAttention(2, 16)(y, y)])
        y = _layers.Dense(64, "gelu")(_layers.LayerNormalization()(x))
        x = _layers.Add()([x, _layers.Dense(32)(y)])
    x = _layers.GlobalAveragePooling1D()(_layers.LayerNormalization()(x))
    return tf.keras.Model(inputs, _layers.Dense(CLASSES)(x))


def _brighter(classes, inputs):
    return [np.int64(inputs[0].mean(-1) > 128)]


def _same(classes, inputs):
    return [np.int64(classes[0] % 2 == classes[1] % 2)]


def _class_and_box(classes, inputs):
    return [classes[0], np.float32(np.stack([classes[0] / CLASSES] * 4, -1))]


NETWORKS: dict[str, Network] = {
    "tutorial CNN": Network(_tutorial_cnn),
    "tutorial MLP": Network(_tutorial_mlp, ((28, 28),)),
    "tutorial images": Network(_tutorial_images, ((48, 48, 3),), "raw"),
    "DS-CNN": Network(_keyword_spotting, ((49, 10),)),
    "sensor windows": Network(_sensor_windows, ((64, 6),)),
    "U-Net": Network(_u_net, head=None, labels=_brighter),
    "SqueezeNet": Network(_squeeze_net, head=None),
    "ShuffleNet": Network(_shuffle_net),
    "SE net": Network(_squeeze_and_excitation),
    "siamese": Network(_siamese, ((_SIZE, _SIZE, 3),) * 2, labels=_same),
    "class and box": Network(
        _several_outputs, head={"kind": "linear", "box": None}, labels=_class_and_box
    ),
    "attention": Network(_attention),
    "MobileNet": _application("MobileNet", "tf", head=None, alpha=0.25),
    "MobileNetV2": _application("MobileNetV2", "tf", alpha=0.35),
    "MobileNetV3Small": _application("MobileNetV3Small", "raw", head=None),
    "EfficientNetB0": _application("EfficientNetB0", "raw"),
    "EfficientNetV2B0": _application("EfficientNetV2B0", "raw"),
    "ResNet50": _application("ResNet50", "caffe"),
    "ResNet50V2": _application("ResNet50V2", "tf"),
    "ResNetRS50": _application("ResNetRS50", "raw"),
    "RegNetX002": _application("RegNetX002", "raw"),
    "RegNetY002": _application("RegNetY002", "raw"),
    "VGG16": _application("VGG16", "caffe"),
    "DenseNet121": _application("DenseNet121", "torch"),
    "Xception": _application("Xception", "tf", 72),
    "NASNetMobile": _application("NASNetMobile", "tf"),
    "InceptionV3": _application("InceptionV3", "tf", 75),
    "InceptionResNetV2": _application("InceptionResNetV2", "tf", 75),
    "ConvNeXtTiny": _application("ConvNeXtTiny", "raw"),
}
