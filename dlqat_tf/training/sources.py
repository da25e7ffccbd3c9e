"""Where images come from, and how they are read, decoded and cropped.

A source has: count, labels, image_shape; records, its TFRecord files; subset(indices); verify();
cache(); shuffled(seed, epoch) and in_order(), which give a dataset of samples; and batches(samples
enumerated), which gives (positions, uint8 images, int32 labels). Where the samples are one part of
several of each batch, positions are those in whole batches, and so are the draws.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dlqat_tf import _compat  # noqa: F401  (before TensorFlow)
from dlqat_tf._host import reason_of

import numpy as np  # isort: skip
import psutil  # isort: skip
import tensorflow as tf  # isort: skip

AUTOTUNE = tf.data.AUTOTUNE
_CORRUPT = "Corrupt image: replace or remove the file"
_VERIFY_LIMIT = 20_000  # files; decoding more than this before training starts takes minutes
_SHUFFLE_BUFFER = 4096  # encoded records; about 0.5 GB of ImageNet's JPEGs
# Each use of randomness draws from a stream of its own, else crop and flip would be correlated.
_ORDER, _CROP, FLIP = range(3)


class DataError(ValueError):
    """A data set is missing, incomplete or unreadable; the message says what to do."""


@contextlib.contextmanager
def readable(*sources) -> Iterator[None]:
    """Name the file, where one turns out to be damaged while its images are read."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        files = [file for source in sources for file in source.records]
        if not files:
            raise
        raise damaged_records(files, error) from None
    except tf.errors.InvalidArgumentError as error:
        corrupt = re.search(rf"\[{_CORRUPT}\] \[(.*?)\]", str(error))
        if not corrupt:
            raise
        raise DataError(f"{_CORRUPT} {corrupt[1]}.") from None


def damaged_records(files: Sequence[str], error: Exception) -> DataError:
    """Return what to say of TFRecord files that cannot be read; all are read to find which."""
    for file in files:
        try:
            for _ in tf.data.TFRecordDataset(file):
                pass
        except tf.errors.OpError as found:
            return DataError(
                f"Damaged TFRecord file {file} ({reason_of(found)}): delete its folder and prepare "
                "the data set again, or put the right file back."
            )
    reason = reason_of(error)
    return DataError(
        f"The records in {Path(files[0]).parent} cannot be read ({reason}): delete this folder and "
        "prepare the data set again."
    )


def check_memory(needed: int) -> None:
    """Refuse to hold more bytes in memory than are free.

    Raises:
        DataError: They are not.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"Expected a data set that fits into memory with cache=memory. Received: "
            f"{needed / 1e9:.1f} GB, where {free / 1e9:.1f} GB are free: leave --cache out."
        )


class _Indexed:
    """What sources with random access share: a sample is an index."""

    records = ()
    labels: np.ndarray

    @property
    def count(self) -> int:
        return len(self.labels)

    def shuffled(self, seed, epoch) -> tf.data.Dataset:
        key = key_of(seed, _ORDER, epoch)
        indices = tf.range(self.count, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            tf.random.experimental.stateless_shuffle(indices, key)
        )

    def in_order(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(self.count)


class Arrays(_Indexed):
    """Decoded images in memory: augmented as whole uint8 batches."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels.astype(np.int32)
        self.image_shape = images.shape[1:]

    def subset(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.images[indices], self.labels[indices])

    def verify(self) -> None:
        """Nothing can be wrong: the images are decoded."""

    def cache(self) -> None:
        """They are in memory."""

    def batches(
        self, samples, batch_size, crop_seed, *, parts=1, drop_remainder=True
    ) -> tf.data.Dataset:
        # Eager tensors are captured by reference; numpy arrays would become constants of the
        # graph, which may hold 2 GB at most.
        with tf.device("CPU"):
            all_images, all_labels = tf.constant(self.images), tf.constant(self.labels)

        def gather(positions, indices):
            images = tf.gather(all_images, indices)
            if crop_seed is not None:
                key, places = batch_key(crop_seed, _CROP, positions, batch_size)
                images = _random_shift(images, key, places, batch_size)
            return positions, images, tf.gather(all_labels, indices)

        samples = samples.batch(batch_size // parts, drop_remainder=drop_remainder)
        return samples.map(gather, num_parallel_calls=AUTOTUNE, deterministic=True)


class Files(_Indexed):
    """Image files, read and decoded in every epoch."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray, size: int):
        self.paths, self.labels, self.size = np.asarray(paths), labels.astype(np.int32), size
        self.image_shape = (size, size, 3)
        self.encoded: tf.Tensor | None = None  # in memory

    def subset(self, indices: np.ndarray) -> Files:
        return Files(self.paths[indices], self.labels[indices], self.size)

    def cache(self) -> None:
        """Hold the files in memory, still encoded."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            check_memory(sum(pool.map(os.path.getsize, self.paths)))
            content = list(pool.map(lambda path: Path(path).read_bytes(), self.paths))
        with tf.device("CPU"):
            self.encoded = tf.constant(content)

    def verify(self) -> None:
        """Decode all files once, if they are few enough."""
        if self.count <= _VERIFY_LIMIT:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for _ in pool.map(verify_image, self.paths):  # raises what a thread raised
                    pass

    def batches(
        self, samples, batch_size, crop_seed, *, parts=1, drop_remainder=True
    ) -> tf.data.Dataset:
        with tf.device("CPU"):
            # As bytes: names of files need not be UTF-8.
            all_paths = tf.constant([os.fsencode(path) for path in self.paths])
            all_labels = tf.constant(self.labels)

        def decode(position, index):
            if self.encoded is None:
                encoded = tf.io.read_file(all_paths[index])
            else:
                encoded = self.encoded[index]
            image = _decode(encoded, self.size, crop_seed, position)
            return position, image, all_labels[index]

        def check(sample, decoded):
            position, index = sample
            intact = tf.debugging.Assert(
                position == decoded[0],
                [_CORRUPT, all_paths[index]],
            )
            with tf.control_dependencies([intact]):
                return tf.nest.map_structure(tf.identity, decoded)

        # A decoding error does not say which file it met, and a graph cannot catch it. But where
        # such a sample is left out, the decoded samples fall out of step with the list of samples
        # right there, and the list knows the path.
        decoded = samples.map(decode, num_parallel_calls=AUTOTUNE, deterministic=True)
        # The last file has no successor to fall out of step with, so the decoded ones end in a -1.
        end = tf.data.Dataset.from_tensors(
            (np.int64(-1), np.zeros(self.image_shape, np.uint8), np.int32(-1))
        )
        decoded = decoded.ignore_errors(log_warning=True).concatenate(end)
        checked = tf.data.Dataset.zip((samples, decoded)).map(check)
        return checked.batch(batch_size // parts, drop_remainder=drop_remainder)


class Records:
    """Encoded images in the TFRecord files of tensorflow-datasets.

    Records cannot be picked by index, so an epoch shuffles the files, reads 16 at a time and
    shuffles within a buffer.
    """

    def __init__(self, builder, split: str, size: int, keep: np.ndarray | None = None):
        info = builder.info.splits[split]
        self.builder, self.split, self.size = builder, split, size
        self.files = [str(path) for path in info.filepaths]
        self.first_index = np.cumsum([0, *info.shard_lengths], dtype=np.int64)
        self.keep = np.ones(info.num_examples, bool) if keep is None else keep
        self.count = int(self.keep.sum())
        self.image_shape = (size, size, 3)
        self.encoded: tf.Tensor | None = None  # the records that are kept, in memory

    @property
    def records(self) -> list[str]:
        """The TFRecord files."""
        return self.files

    @property
    def labels(self) -> np.ndarray:
        """Labels of the records that are kept, from one pass over all files."""
        records = self.in_order().map(self._parse, num_parallel_calls=AUTOTUNE)
        return np.concatenate([label for _, label in records.batch(4096).as_numpy_iterator()])

    def subset(self, indices: np.ndarray) -> Records:
        keep = np.zeros_like(self.keep)
        keep[np.flatnonzero(self.keep)[indices]] = True
        return Records(self.builder, self.split, self.size, keep)

    def verify(self) -> None:
        """TFRecord files carry checksums."""

    def cache(self) -> None:
        """Hold the files in memory; the order of the records stays the same."""
        whole = sum(os.path.getsize(file) for file in self.files)
        check_memory(int(whole * self.keep.mean()))
        with tf.device("CPU"):
            self.encoded = tf.concat(list(self.in_order().batch(4096)), axis=0)
            self.place = tf.constant(np.maximum(np.cumsum(self.keep) - 1, 0))

    def _of_file(self, shard, files, first_index) -> tf.data.Dataset:
        """Return (index, record) of all records of one file."""
        if self.encoded is None:
            return tf.data.TFRecordDataset(files[shard]).enumerate(first_index[shard])
        indices = tf.data.Dataset.range(first_index[shard], first_index[shard + 1])
        return indices.map(lambda index: (index, self.encoded[self.place[index]]))

    def shuffled(self, seed, epoch) -> tf.data.Dataset:
        with tf.device("CPU"):
            files, first_index = tf.constant(self.files), tf.constant(self.first_index)
            keep = tf.constant(self.keep)
        key = key_of(seed, _ORDER, epoch)
        shards = tf.random.experimental.stateless_shuffle(tf.range(len(self.files)), key)
        return (
            tf.data.Dataset.from_tensor_slices(shards)
            .interleave(
                lambda shard: self._of_file(shard, files, first_index),
                cycle_length=16,
                num_parallel_calls=AUTOTUNE,
                deterministic=True,
            )
            .filter(lambda index, _: keep[index])
            .map(lambda _, record: record)
            # Not `shuffle`: where a global seed is set, it takes no seed that depends on the epoch.
            .batch(_SHUFFLE_BUFFER)
            .enumerate()
            .flat_map(lambda block, records: _shuffled_block(records, key, block))
        )

    def in_order(self) -> tf.data.Dataset:
        if self.encoded is not None:
            return tf.data.Dataset.from_tensor_slices(self.encoded)
        with tf.device("CPU"):
            keep = tf.constant(self.keep)
        records = tf.data.TFRecordDataset(self.files).enumerate()
        return records.filter(lambda index, _: keep[index]).map(lambda _, record: record)

    def _parse(self, record):
        import tensorflow_datasets as tfds

        example = self.builder.info.features.deserialize_example(
            record, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return example["image"], tf.cast(example["label"], tf.int32)

    def batches(
        self, samples, batch_size, crop_seed, *, parts=1, drop_remainder=True
    ) -> tf.data.Dataset:
        def decode(position, record):
            encoded, label = self._parse(record)
            return position, _decode(encoded, self.size, crop_seed, position), label

        return samples.map(decode, num_parallel_calls=AUTOTUNE, deterministic=True).batch(
            batch_size // parts, drop_remainder=drop_remainder
        )


def _shuffled_block(records, key, block) -> tf.data.Dataset:
    key = tf.random.experimental.stateless_fold_in(key, block)
    return tf.data.Dataset.from_tensor_slices(
        tf.random.experimental.stateless_shuffle(records, key)
    )


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


def _random_shift(images, key, places, batch_size: int) -> tf.Tensor:
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


def _decode(encoded, size: int, crop_seed, position) -> tf.Tensor:
    """Uint8 (size, size, 3): the random crop of ``position``, or the centre without a seed."""
    if crop_seed is None:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = round(size * 256 / 224) / tf.reduce_min(sides)
        image = tf.image.resize(image, tf.cast(tf.round(sides * scale), tf.int32), antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, size, size)
    else:
        key = key_of(crop_seed, _CROP, position)
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
    than two, for which resizing takes no wider filter: that takes twice as long as decoding.
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


def verify_image(path: str) -> None:
    """Decode an image file, to refuse it while its path is known."""
    from PIL import Image

    try:
        # Those formats that TensorFlow decodes, whatever the file's suffix says.
        with Image.open(path, formats=("JPEG", "PNG", "GIF", "BMP")) as image:
            image.load()
    except Exception as error:  # each format of Pillow has errors of its own
        raise DataError(f"Corrupt image {path}: replace or remove the file ({error}).") from error
