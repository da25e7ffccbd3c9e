"""What is done to images: decoding, random crops and mirrors, and the draws that decide on them."""

from __future__ import annotations

from dlqat_tf import _compat  # noqa: F401  (before TensorFlow)

import tensorflow as tf  # isort: skip

# Each use of randomness draws from a stream of its own, else crop and flip would be correlated.
ORDER, CROP, FLIP = range(3)


def key_of(seed, stream: int, counter) -> tf.Tensor:
    """Stateless seed of draw number ``counter`` in one stream."""
    # The cast, because fold_in gives another key for the same number as int32.
    return tf.random.fold_in(tf.constant([seed, stream], tf.int64), tf.cast(counter, tf.int64))


def batch_key(seed, stream: int, positions, batch_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the stateless seed of a whole batch, and the places in it of the samples given."""
    places = positions % batch_size
    return key_of(seed, stream, positions[0] - places[0]), places


def to_float(images) -> tf.Tensor:
    """Return bytes as float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def random_shift(images, key, places, batch_size: int) -> tf.Tensor:
    """Zero-pad uint8 images (n, h, w, c) by h // 8 and crop each as its place in the batch says."""
    height, width = images.shape[1:3]
    pad = height // 8
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    draws = tf.random.stateless_uniform([2, batch_size, 1], key, 0, 2 * pad + 1, tf.int32)
    top, left = tf.unstack(tf.gather(draws, places, axis=1))
    rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, left + tf.range(width), axis=2, batch_dims=1)


def mirrored(images: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Mirror those images (n, h, w, c) left to right for which ``chosen`` (n,) is true."""
    # Of three axes TensorFlow has a kernel for pixels; and whole images are copied, where tf.where
    # asks for every value: a fourteenth of the time at 224 pixels.
    rows = tf.reshape(images, [-1, *images.shape[2:]])
    both = tf.concat([images, tf.reshape(tf.reverse(rows, [1]), tf.shape(images))], axis=0)
    count = tf.size(chosen)
    return tf.gather(both, tf.where(chosen, tf.range(count, 2 * count), tf.range(count)))


def to_pixels(encoded, size: int, crop_seed, position) -> tf.Tensor:
    """Uint8 (size, size, 3): the random crop of ``position``, or the centre without a seed."""
    if crop_seed is None:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = round(size * 256 / 224) / tf.reduce_min(sides)
        image = tf.image.resize(image, tf.cast(tf.round(sides * scale), tf.int32), antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, size, size)
    else:
        key = key_of(crop_seed, CROP, position)
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _jpeg_crop(encoded, size, key),
            lambda: _crop(tf.io.decode_image(encoded, 3, expand_animations=False), size, key),
        )
    # Rounded, so that training sees the 256 values that a camera image has on the phone.
    return tf.ensure_shape(tf.saturate_cast(tf.round(image), tf.uint8), [size, size, 3])


def _jpeg_crop(encoded, size: int, key) -> tf.Tensor:
    """Return a random crop of a JPEG as (size, size, 3), of which no more is decoded.

    A crop of at least twice the size is decoded at the half, quarter or eighth of its own, in which
    JPEGs are read faster and without aliasing. What its shorter side is still to shrink by is less
    than two, up to 16 times the size, for which resizing takes no wider filter: that takes twice as
    long as decoding.
    """
    window = crop_window(tf.io.extract_jpeg_shape(encoded), key)

    def decode(ratio: int):
        return lambda: tf.io.decode_and_crop_jpeg(encoded, window // ratio, channels=3, ratio=ratio)

    times = tf.reduce_min(window[2:]) // size
    halvings = tf.math.count_nonzero(times >= [2, 4, 8], dtype=tf.int32)
    image = tf.switch_case(halvings, [decode(ratio) for ratio in (1, 2, 4, 8)])
    return tf.image.resize(image, [size, size])


def _crop(image, size: int, key) -> tf.Tensor:
    """Return a random crop of an image as (size, size, 3)."""
    window = tf.unstack(crop_window(tf.shape(image), key))
    cropped = tf.image.crop_to_bounding_box(image, *window)
    return tf.image.resize(cropped, [size, size], antialias=True)


def crop_window(shape, key) -> tf.Tensor:
    """(top, left, height, width) of a crop of 20 to 100 % of the area, aspect 3/4 to 4/3."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=key,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.2, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)
