"""The first images of a tf.data.Dataset as arrays, for what looks at a few images only."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

LIMIT = 512  # images: ranges and statistics hardly move with more


def first_images(
    dataset: tf.data.Dataset, ranks: list[int], error: type[ValueError] = ValueError
) -> tuple:
    """Return the first 512 images of a batched dataset, and their labels.

    Args:
        dataset: Of batches (images, labels), as Keras takes them, or of images alone; images are a
            tensor, or a tuple or dict of one for each input, where the dataset has labels too.
            It may repeat forever.
        ranks: Dimensions of each input, with the batch.
        error: Class of what is raised.

    Returns:
        Arrays in the structure of the images, and an array of labels or None.

    Raises:
        ValueError: Or ``error``: the dataset is empty or not batched.
    """
    spec, _, _ = tf.keras.utils.unpack_x_y_sample_weight(dataset.element_spec)
    shapes = [part.shape for part in tf.nest.flatten(spec)]
    if [shape.rank for shape in shapes] == [rank - 1 for rank in ranks]:
        raise error(
            "Expected a dataset of batches. Received: a dataset of single images, of shapes "
            f"{', '.join(map(str, shapes))}. Pass dataset.batch(64)."
        )
    batches, count = [], 0
    for element in dataset:
        images, labels, _ = tf.keras.utils.unpack_x_y_sample_weight(element)
        batches.append((images,) if labels is None else (images, labels))
        count += len(tf.nest.flatten(images)[0])
        if count >= LIMIT:
            break
    if not count:
        raise error("Expected a dataset of images. Received: an empty one.")
    images, *labels = tf.nest.map_structure(lambda *each: np.concatenate(each)[:LIMIT], *batches)
    return images, (labels[0] if labels else None)
