"""Images, and labels where there are any, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import numpy as np
import tensorflow as tf

from dlqat_tf.convert.ends import classes_of, labels_by_output
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.datasets import first_images


class Data:
    """Images, and labels where there are any, in batches.

    Attributes:
        arrays: The images, an array for each input of the model.
        labels: Classes of the images by output, None for those without.
        notes: What a report should say about them.
    """

    def __init__(self, model, images, labels, batch_size):
        self.notes: list[str] = []
        if isinstance(images, tf.data.Dataset):
            if labels is not None:
                raise ConversionError(
                    "Expected the labels of a dataset in it, as (images, labels). Received: labels "
                    "beside a dataset."
                )
            ranks = [tensor.shape.rank for tensor in model.inputs]
            images, labels = first_images(images, ranks, ConversionError)
            count = len(tf.nest.flatten(images)[0])
            self.notes.append(f"Ranges and statistics are those of {count} images of the dataset.")
        if isinstance(images, dict):
            images = _by_name(model, images)
        images = tf.nest.flatten(images)
        self.arrays = [np.asarray(array) for array in images]
        expected = [tuple(tensor.shape) for tensor in model.inputs]
        received = [array.shape for array in self.arrays]
        fits = (
            len(expected) == len(received)
            and all(
                len(want) == len(have)
                and have[0] == received[0][0] > 0
                # A fixed batch size says nothing about how many images there are.
                and all(w in (None, h) for w, h in zip(want[1:], have[1:], strict=True))
                for want, have in zip(expected, received, strict=True)
            )
        )
        if not fits:
            # Generators are arrays of no dimension.
            shown = [
                shape or type(each).__name__ for shape, each in zip(received, images, strict=True)
            ]
            if len(shown) > 2 * len(expected):  # nested lists, taken for an array for each input
                shown = [f"{len(shown)} single values or arrays, of {shown[0]}"]
            raise ConversionError(
                f"Expected arrays of images of shapes {expected}, equally many for each input of "
                f"the model, or a batched tf.data.Dataset. Received: {shown}."
            )
        for i, tensor in enumerate(model.inputs):  # to the type that Keras would cast them to
            if self.arrays[i].dtype.kind in "cSUO" and tensor.dtype != tf.string:
                raise ConversionError(
                    f"Expected images of numbers for the input {tensor.node.layer.name!r}. "
                    f"Received: {self.arrays[i].dtype}."
                )
            self.arrays[i] = self.arrays[i].astype(tensor.dtype.as_numpy_dtype, copy=False)
            if tensor.dtype.is_floating and not np.isfinite(self.arrays[i]).all():
                raise ConversionError(
                    f"Expected images of finite values. Received: NaN or infinity for the input "
                    f"{tensor.node.layer.name!r}."
                )
        count = received[0][0]
        self.labels = labels_by_output(labels, model.output_names, count)
        is_integer = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
        if not is_integer or batch_size < 1:
            raise ConversionError(
                f"Expected batch_size to be a positive integer. Received: {batch_size!r}."
            )
        self.batch_size = int(batch_size)

    def check(self, network: Network) -> None:
        """Raise for labels that are none of the classes."""
        for call, end in network.heads.items():
            if self.labels[end.output] is None:
                continue
            self.labels[end.output] = labels_of(self, call.layer.units, end.output)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __iter__(self) -> Iterator[list[tf.Tensor]]:
        for start in range(0, len(self), self.batch_size):
            yield [tf.constant(array[start : start + self.batch_size]) for array in self.arrays]


def labels_of(data: Data, classes: int, output: int = 0) -> np.ndarray:
    """Return the labels of an output, which images have to have.

    Raises:
        ConversionError: They are none of the classes.
    """
    labels = classes_of(data.labels[output], len(data))
    if labels.min() < 0 or labels.max() >= classes:
        raise ConversionError(
            f"Expected labels from 0 to {classes - 1}. Received: {labels.min()} to {labels.max()}."
        )
    return labels


def _by_name(model, images: dict) -> list:
    """Return images in the order of the model's inputs, as Keras does, but none left out."""
    names = sorted(model.input) if isinstance(model.input, dict) else model.input_names
    if set(images) != set(names):
        raise ConversionError(
            f"Expected images by input name, for {', '.join(names)}. Received: images for "
            f"{', '.join(map(str, images))}."
        )
    return [images[name] for name in names]
