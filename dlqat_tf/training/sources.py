"""Where images come from, and how they are read.

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
from dlqat_tf.training.images import CROP, ORDER, batch_key, key_of, random_shift, to_pixels

import numpy as np  # isort: skip
import psutil  # isort: skip
import tensorflow as tf  # isort: skip


AUTOTUNE = tf.data.AUTOTUNE
_CORRUPT = "Corrupt image: replace or remove the file"
_VERIFY_LIMIT = 20_000  # files; decoding more than this before training starts takes minutes
_SHUFFLE_BUFFER = 4096  # encoded records; about 0.5 GB of ImageNet's JPEGs


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
        key = key_of(seed, ORDER, epoch)
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
                key, places = batch_key(crop_seed, CROP, positions, batch_size)
                images = random_shift(images, key, places, batch_size)
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
            image = to_pixels(encoded, self.size, crop_seed, position)
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
        key = key_of(seed, ORDER, epoch)
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
            return position, to_pixels(encoded, self.size, crop_seed, position), label

        return samples.map(decode, num_parallel_calls=AUTOTUNE, deterministic=True).batch(
            batch_size // parts, drop_remainder=drop_remainder
        )


def _shuffled_block(records, key, block) -> tf.data.Dataset:
    key = tf.random.experimental.stateless_fold_in(key, block)
    return tf.data.Dataset.from_tensor_slices(
        tf.random.experimental.stateless_shuffle(records, key)
    )


def verify_image(path: str) -> None:
    """Decode an image file, to refuse it while its path is known."""
    from PIL import Image

    try:
        # Those formats that TensorFlow decodes, whatever the file's suffix says.
        with Image.open(path, formats=("JPEG", "PNG", "GIF", "BMP")) as image:
            image.load()
    except Exception as error:  # each format of Pillow has errors of its own
        raise DataError(f"Corrupt image {path}: replace or remove the file ({error}).") from error
