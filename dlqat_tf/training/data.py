"""Image classification sets as ``tf.data`` pipelines that resume bit for bit.

Images come out as float32 in [0, 1] (uint8 / 255, no mean and std), so that the exported network
takes the bytes of a camera image as they are.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dlqat_tf import _compat  # noqa: F401  (before TensorFlow)

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

NAMES = ("digits", "cifar10", "cifar100", "imagenet2012", "folder")
AUGMENTATIONS = ("crop", "flip", "randaugment", "cutmix", "mixup")

_CORRUPT = "Corrupt image: replace or remove the file"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_VERIFY_LIMIT = 20_000  # files; decoding more than this before training starts takes minutes
_SHUFFLE_BUFFER = 4096  # encoded records; about 0.5 GB of ImageNet's JPEGs
_DEFAULT_IMAGE_SIZE = 224
_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # of the sets that have one only
_AUTOTUNE = tf.data.AUTOTUNE
_HELD_OUT_SEED = 0
# Each use of randomness draws from a stream of its own, else crop and flip would be correlated.
_ORDER, _CROP, _FLIP = range(3)


class DataError(ValueError):
    """A data set is missing, incomplete or unreadable; the message says what to do."""


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Load an image classification set.

    ========================  ==================  ==========================================
    name                      image shape         where it comes from
    ========================  ==================  ==========================================
    ``digits``                (8, 8, 1)           scikit-learn, embedded; fixed 80/20 split
    ``cifar10, cifar100``     (32, 32, 3)         tensorflow-datasets
    ``imagenet2012``          (size, size, 3)     tensorflow-datasets; tests on "validation"
    ``folder``                (size, size, 3)     ``train/<class>/*`` and ``val/<class>/*``
    ========================  ==================  ==========================================

    Digits and CIFAR are held in memory as uint8, the others are decoded anew in each epoch. A
    folder holds ``.jpg``, ``.jpeg`` and ``.png`` files of any colour mode; its test set is
    ``val/`` where that exists, else ``test/``. Up to 20,000 files are decoded once before training
    starts; in a larger folder a corrupt file ends the epoch that meets it, naming its path.

    Args:
        name: One of the names above.
        data_dir: The tensorflow-datasets folder (None: its own default, downloading where that is
            possible), or the image folder. Digits do not use it.
        image_size: Height and width in pixels, default 224. The sets in memory have one size only.
        train_size: Number of training images to keep, the classes in proportion; None keeps all.
            With ``imagenet2012`` this reads every training record once to learn its label.
        validation_size: Number of training images to hold out, the classes in proportion, and to
            give as the test images instead of the test set: what settings are chosen by. They are
            the same for every seed, and are taken before ``train_size``. None holds out none.
        seed: Decides which images ``train_size`` keeps.

    Returns:
        The set, ready for ``train_batches`` and ``test_batches``.

    Raises:
        ValueError: The name is unknown, or ``image_size`` is no size of this set.
        DataError: The data are missing, incomplete, inconsistent or corrupt, or ``train_size`` or
            ``validation_size`` is less than the number of classes or more than there is.
    """
    check_size(name, image_size)
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    if name in ("folder", "imagenet2012"):
        open_set = _open_folder if name == "folder" else _open_imagenet
        classes, train, test = open_set(data_dir, image_size or _DEFAULT_IMAGE_SIZE)
    else:
        classes, train, test = _open_digits() if name == "digits" else _open_cifar(name, data_dir)
    if validation_size is not None:
        if not len(classes) <= validation_size <= train.count - len(classes):
            raise DataError(
                f"Expected validation_size from {len(classes)} (the classes of {name}) to "
                f"{train.count - len(classes)} (so that as many training images remain), received "
                f"{validation_size}."
            )
        held_out = _stratified(train.labels, validation_size, _HELD_OUT_SEED)
        rest = np.setdiff1d(np.arange(train.count), held_out)
        train, test = train.subset(rest), train.subset(held_out)
    if train_size is not None:
        if not len(classes) <= train_size <= train.count:
            raise DataError(
                f"Expected train_size from {len(classes)} (the classes of {name}) to {train.count} "
                f"(its training images), received {train_size}."
            )
        with _readable(train):
            train = train.subset(_stratified(train.labels, train_size, seed))
    for source in (train, test):
        source.verify()
    return ImageData(name, classes, train.image_shape, train.count, test.count, train, test)


def check_size(name: str, image_size: int | None) -> None:
    """Refuse a data set or a size that there is not, before anything is opened.

    Raises:
        ValueError: The name is unknown, or ``image_size`` is no size of this set.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown data set {name!r}: expected one of {', '.join(NAMES)}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"Expected image_size of at least 1 pixel, received {image_size}.")
    size = _SIZES.get(name)
    if size is not None and image_size not in (None, size):
        raise ValueError(
            f"Expected image_size {size} (or None), the only size of {name}, received {image_size}."
        )


@dataclass(frozen=True)
class ImageData:
    """An image classification set; get one from :func:`load`.

    Attributes:
        name: The name given to :func:`load`.
        class_names: Names of the classes; a label is an index into them.
        image_shape: (height, width, channels) in pixels.
        train_count: Number of training images.
        test_count: Number of test images.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_count: int
    test_count: int
    _train: _Arrays | _Files | _Records = field(repr=False, compare=False)
    _test: _Arrays | _Files | _Records = field(repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def readable(self) -> contextlib.AbstractContextManager[None]:
        """Name the file, where one turns out to be damaged while batches are read.

        TensorFlow's errors name none. What is raised inside is a :class:`DataError` then.
        """
        return _readable(self._train, self._test)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass over the training set; the remainder is dropped.

        Args:
            batch_size: Images per batch.

        Raises:
            ValueError: ``batch_size`` is below 1 or above ``train_count``.
        """
        if not 1 <= batch_size <= self.train_count:
            raise ValueError(
                f"Expected batch_size from 1 to {self.train_count} (the training images of "
                f"{self.name}), received {batch_size}."
            )
        return self.train_count // batch_size

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_epoch: int = 0,
        augment: Sequence[str] = ("crop", "flip"),
    ) -> tf.data.Dataset:
        """Endless shuffled, augmented training batches.

        Step s of epoch e is a function of (seed, e, s) alone, so a run that goes on from epoch e
        sees the very bits that an uninterrupted run sees. This does not hold for what keras-cv's
        policies ("randaugment", "cutmix", "mixup") do to an image: they draw from a state of their
        own and offer no stateless seed. Which images a batch holds, its crops and its flips stay
        reproducible with them too.

        Augmentations are applied in this order, however they are listed:

        - "crop": in memory, zero-pad by an eighth of the height (4 pixels for CIFAR) and crop at
          random; otherwise a random crop of 20 to 100 % of the area, aspect 3/4 to 4/3, resized.
          Without it, files get the centre crop of the test set.
        - "flip": left-right, with probability 1/2 (never sensible for digits).
        - "randaugment": ``keras_cv.layers.RandAugment`` with its defaults; RGB images only.
        - "cutmix", "mixup": ``keras_cv.layers.CutMix`` and ``MixUp`` with their defaults.

        Args:
            batch_size: Images per batch.
            seed: Decides order, crops and flips.
            first_epoch: The epoch to begin with, counted from 0.
            augment: Names from the list above.

        Returns:
            Dataset of (images, labels): images float32 (batch, height, width, channels) in [0, 1];
            labels int32 (batch,), or float32 (batch, classes) with "cutmix" or "mixup".

        Raises:
            ValueError: ``batch_size`` or ``first_epoch`` is out of range, or an augmentation is
                unknown or unfit for the images.
        """
        steps = self.steps_per_epoch(batch_size)
        if first_epoch < 0:
            raise ValueError(f"Expected first_epoch of at least 0, received {first_epoch}.")
        unknown = [augment] if isinstance(augment, str) else sorted({*augment} - {*AUGMENTATIONS})
        if unknown:
            raise ValueError(
                f"Expected augment as a tuple of names from {', '.join(AUGMENTATIONS)}; "
                f"received {unknown[0]!r}."
            )
        policy = _policy(augment, self.image_shape, self.num_classes)

        def finish(positions, images, labels):
            if "flip" in augment:
                key = _key(seed, _FLIP, positions[0])
                flips = tf.random.stateless_uniform([batch_size, 1, 1, 1], key) < 0.5
                images = tf.where(flips, tf.reverse(images, axis=[2]), images)
            return policy(_to_float(images), labels)

        # A sample's position in the endless run, (epoch * steps + step) * batch + place, is what
        # all random draws derive from.
        first = first_epoch * steps * batch_size
        samples = (
            tf.data.Dataset.counter(first_epoch)
            .flat_map(lambda epoch: self._train.shuffled(seed, epoch).take(steps * batch_size))
            .enumerate(first)
        )
        batches = self._train.batches(samples, batch_size, seed if "crop" in augment else None)
        batches = batches.map(finish, num_parallel_calls=_AUTOTUNE, deterministic=True)
        return _reproducible(batches)

    def test_batches(self, batch_size: int) -> tf.data.Dataset:
        """The whole test set once, in its own order, the last batch smaller where need be.

        Args:
            batch_size: Images per batch.

        Returns:
            Dataset of (images, labels): images float32 (None, height, width, channels) in [0, 1],
            centre crops where they come from files; labels int32 (None,).

        Raises:
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"Expected batch_size of at least 1, received {batch_size}.")
        samples = self._test.in_order().enumerate()
        batches = self._test.batches(samples, batch_size, None, drop_remainder=False)
        batches = batches.map(
            lambda _, images, labels: (_to_float(images), labels),
            num_parallel_calls=_AUTOTUNE,
            deterministic=True,
        )
        # Known, so that Keras shows progress.
        steps = -(-self.test_count // batch_size)
        return _reproducible(batches.apply(tf.data.experimental.assert_cardinality(steps)))


@contextlib.contextmanager
def _readable(*sources) -> Iterator[None]:
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        files = [file for source in sources for file in source.records]
        if not files:
            raise
        raise _damaged_records(files, error) from None
    except tf.errors.InvalidArgumentError as error:
        corrupt = re.search(rf"\[{_CORRUPT}\] \[(.*?)\]", str(error))
        if not corrupt:
            raise
        raise DataError(f"{_CORRUPT} {corrupt[1]}.") from None


def _damaged_records(files: Sequence[str], error: Exception) -> DataError:
    """Return what to say of TFRecord files that cannot be read; all are read to find which."""
    for file in files:
        try:
            for _ in tf.data.TFRecordDataset(file):
                pass
        except tf.errors.OpError as found:
            reason = str(found.message).split(" [Op")[0]
            return DataError(
                f"Damaged TFRecord file {file} ({reason}): delete its folder and prepare the data "
                "set again, or put the right file back."
            )
    reason = str(error).strip().splitlines()[0]
    return DataError(
        f"The records in {Path(files[0]).parent} cannot be read ({reason}): delete this folder and "
        "prepare the data set again."
    )


# Sources. Each has: count, labels, image_shape; records, its TFRecord files; subset(indices);
# verify(); shuffled(seed, epoch) and in_order(), which give a dataset of samples; and
# batches(samples enumerated), which gives (positions, uint8 images, int32 labels).


class _Indexed:
    """What sources with random access share: a sample is an index."""

    records = ()
    labels: np.ndarray

    @property
    def count(self) -> int:
        return len(self.labels)

    def shuffled(self, seed, epoch) -> tf.data.Dataset:
        key = _key(seed, _ORDER, epoch)
        indices = tf.range(self.count, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            tf.random.experimental.stateless_shuffle(indices, key)
        )

    def in_order(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(self.count)


class _Arrays(_Indexed):
    """Decoded images in memory: augmented as whole uint8 batches."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels.astype(np.int32)
        self.image_shape = images.shape[1:]

    def subset(self, indices: np.ndarray) -> _Arrays:
        return _Arrays(self.images[indices], self.labels[indices])

    def verify(self) -> None:
        """Nothing can be wrong: the images are decoded."""

    def batches(self, samples, batch_size, crop_seed, *, drop_remainder=True) -> tf.data.Dataset:
        # Eager tensors are captured by reference; numpy arrays would become constants of the
        # graph, which may hold 2 GB at most.
        with tf.device("CPU"):
            all_images, all_labels = tf.constant(self.images), tf.constant(self.labels)

        def gather(positions, indices):
            images = tf.gather(all_images, indices)
            if crop_seed is not None:
                images = _random_shift(images, _key(crop_seed, _CROP, positions[0]))
            return positions, images, tf.gather(all_labels, indices)

        samples = samples.batch(batch_size, drop_remainder=drop_remainder)
        return samples.map(gather, num_parallel_calls=_AUTOTUNE, deterministic=True)


class _Files(_Indexed):
    """Image files, read and decoded in every epoch."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray, size: int):
        self.paths, self.labels, self.size = np.asarray(paths), labels.astype(np.int32), size
        self.image_shape = (size, size, 3)

    def subset(self, indices: np.ndarray) -> _Files:
        return _Files(self.paths[indices], self.labels[indices], self.size)

    def verify(self) -> None:
        """Decode all files once, if they are few enough."""
        if self.count <= _VERIFY_LIMIT:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for _ in pool.map(_verify_image, self.paths):  # raises what a thread raised
                    pass

    def batches(self, samples, batch_size, crop_seed, *, drop_remainder=True) -> tf.data.Dataset:
        with tf.device("CPU"):
            # As bytes: names of files need not be UTF-8.
            all_paths = tf.constant([os.fsencode(path) for path in self.paths])
            all_labels = tf.constant(self.labels)

        def decode(position, index):
            encoded = tf.io.read_file(all_paths[index])
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
        decoded = samples.map(decode, num_parallel_calls=_AUTOTUNE, deterministic=True)
        # The last file has no successor to fall out of step with, so the decoded ones end in a -1.
        end = tf.data.Dataset.from_tensors(
            (np.int64(-1), np.zeros(self.image_shape, np.uint8), np.int32(-1))
        )
        decoded = decoded.ignore_errors(log_warning=True).concatenate(end)
        checked = tf.data.Dataset.zip((samples, decoded)).map(check)
        return checked.batch(batch_size, drop_remainder=drop_remainder)


class _Records:
    """Encoded images in the TFRecord files of tensorflow-datasets.

    Records cannot be picked by index, so an epoch shuffles the files, reads 16 at a time and
    shuffles within a buffer.
    """

    def __init__(self, builder, split: str, size: int, keep: np.ndarray | None = None):
        info = builder.info.splits[split]
        self.builder, self.split, self.size = builder, split, size
        self.files = [str(path) for path in info.filepaths]
        self.first_index = np.cumsum([0, *info.shard_lengths[:-1]], dtype=np.int64)
        self.keep = np.ones(info.num_examples, bool) if keep is None else keep
        self.count = int(self.keep.sum())
        self.image_shape = (size, size, 3)

    @property
    def records(self) -> list[str]:
        """The TFRecord files."""
        return self.files

    @property
    def labels(self) -> np.ndarray:
        """Labels of the records that are kept, from one pass over all files."""
        records = self.in_order().map(self._parse, num_parallel_calls=_AUTOTUNE)
        return np.concatenate([label for _, label in records.batch(4096).as_numpy_iterator()])

    def subset(self, indices: np.ndarray) -> _Records:
        keep = np.zeros_like(self.keep)
        keep[np.flatnonzero(self.keep)[indices]] = True
        return _Records(self.builder, self.split, self.size, keep)

    def verify(self) -> None:
        """TFRecord files carry checksums."""

    def shuffled(self, seed, epoch) -> tf.data.Dataset:
        with tf.device("CPU"):
            files, first_index = tf.constant(self.files), tf.constant(self.first_index)
            keep = tf.constant(self.keep)
        key = _key(seed, _ORDER, epoch)
        shards = tf.random.experimental.stateless_shuffle(tf.range(len(self.files)), key)
        return (
            tf.data.Dataset.from_tensor_slices(shards)
            .interleave(
                lambda shard: tf.data.TFRecordDataset(files[shard]).enumerate(first_index[shard]),
                cycle_length=16,
                num_parallel_calls=_AUTOTUNE,
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

    def batches(self, samples, batch_size, crop_seed, *, drop_remainder=True) -> tf.data.Dataset:
        def decode(position, record):
            encoded, label = self._parse(record)
            return position, _decode(encoded, self.size, crop_seed, position), label

        return samples.map(decode, num_parallel_calls=_AUTOTUNE, deterministic=True).batch(
            batch_size, drop_remainder=drop_remainder
        )


# Opening: (class names, training source, test source).


def _open_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0
    )
    every = _Arrays(images, digits.target)
    classes = tuple(str(name) for name in digits.target_names)
    return classes, every.subset(np.sort(train)), every.subset(np.sort(test))


def _open_cifar(name: str, data_dir: Path | None):
    builder = _prepared_builder(name, data_dir)
    sources = []
    for split in ("train", "test"):
        try:
            whole = builder.as_dataset(split=split, batch_size=-1)
            sources.append(_Arrays(whole["image"].numpy(), whole["label"].numpy()))
        except tf.errors.OpError as error:
            files = [str(path) for path in builder.info.splits[split].filepaths]
            raise _damaged_records(files, error) from None
    return tuple(builder.info.features["label"].names), *sources


def _open_imagenet(data_dir: Path | None, size: int):
    builder = _prepared_builder("imagenet2012", data_dir)
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"Expected TFRecord files in {builder.data_dir}, found the format "
            f"{builder.info.file_format.value!r}: prepare imagenet2012 again with the default one."
        )
    classes = tuple(builder.info.features["label"].names)
    # Not "test": its labels are secret, tensorflow-datasets gives them as -1.
    return classes, _Records(builder, "train", size), _Records(builder, "validation", size)


def _prepared_builder(name: str, data_dir: Path | None):
    import tensorflow_datasets as tfds

    where = data_dir or Path(tfds.core.constants.DATA_DIR)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()  # returns at once where the data are there
    except Exception as error:  # tfds raises anything from AssertionError to ConnectionError
        if name == "imagenet2012":
            manual = where / "downloads" / "manual"
            advice = (
                f"put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org into "
                f"{manual}, or pass the data_dir of a prepared copy"
            )
        else:
            advice = "connect to the network once, or pass the data_dir of a prepared copy"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason.split(". ")[0].rstrip(".:")  # tfds goes on for paragraphs
        raise DataError(f"Found no {name} in {where}: {advice} ({reason}).") from error
    return builder


def _open_folder(data_dir: Path | None, size: int):
    if data_dir is None:
        raise DataError('The data set "folder" needs data_dir: pass the folder that holds train/.')
    if not data_dir.is_dir():
        raise DataError(f"Expected an image folder, found none at {data_dir}: correct data_dir.")
    tests = [data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()]
    if not (data_dir / "train").is_dir() or not tests:
        missing = "val/ or test/" if (data_dir / "train").is_dir() else "train/"
        raise DataError(f"Found no {missing} in {data_dir}: add it, with one folder per class.")
    train, test = _image_paths(data_dir / "train"), _image_paths(tests[0])
    if train.keys() != test.keys():
        raise DataError(
            f"Expected the same class folders in {data_dir / 'train'} and {tests[0]}, but "
            f"{', '.join(sorted(train.keys() ^ test.keys()))} is in one of them only: "
            "add or remove it."
        )
    return tuple(train), *(
        _Files(
            [path for paths in classes.values() for path in paths],
            np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()]),
            size,
        )
        for classes in (train, test)
    )


def _image_paths(split: Path) -> dict[str, list[str]]:
    """Paths by class, all sorted; hidden files (.DS_Store) are the only ones passed over."""
    classes = {}
    for folder in sorted(path for path in split.iterdir() if not path.name.startswith(".")):
        if not folder.is_dir():
            raise DataError(
                f"Expected only class folders in {split}, found the file {folder}: "
                "move it into one or away."
            )
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if not paths:
            raise DataError(f"Found no image in {folder}: add some or remove the class folder.")
        for path in paths:
            if path.suffix.lower() not in _IMAGE_SUFFIXES or not path.is_file():
                raise DataError(
                    f"Expected only {', '.join(_IMAGE_SUFFIXES)} files in {folder}, found {path}: "
                    "convert it or move it away."
                )
        classes[folder.name] = [str(path) for path in paths]
    if not classes:
        raise DataError(f"Found no class folder in {split}: add one folder per class.")
    return classes


def _verify_image(path: str) -> None:
    from PIL import Image

    try:
        # Those formats that TensorFlow decodes, whatever the file's suffix says.
        with Image.open(path, formats=("JPEG", "PNG", "GIF", "BMP")) as image:
            image.load()
    except Exception as error:  # each format of Pillow has errors of its own
        raise DataError(f"Corrupt image {path}: replace or remove the file ({error}).") from error


def _stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import train_test_split

    every = np.arange(len(labels))
    if size == len(labels):
        return every
    # scikit-learn also stratifies the part that is left over, which must hold all classes then.
    stratify = labels if len(labels) - size >= len(np.unique(labels)) else None
    try:
        kept, _ = train_test_split(every, train_size=size, stratify=stratify, random_state=seed)
    except ValueError as error:
        raise DataError(f"Cannot take train_size {size} in proportion: {error}") from error
    if missing := len(np.unique(labels)) - len(np.unique(labels[kept])):
        raise DataError(
            f"A train_size of {size} leaves {missing} rare classes without an image: "
            "choose a larger one."
        )
    return np.sort(kept)


# Images.


def _shuffled_block(records, key, block) -> tf.data.Dataset:
    key = tf.random.experimental.stateless_fold_in(key, block)
    return tf.data.Dataset.from_tensor_slices(
        tf.random.experimental.stateless_shuffle(records, key)
    )


def _key(seed, stream: int, counter) -> tf.Tensor:
    """Stateless seed of draw number ``counter`` in one stream."""
    # The cast, because fold_in gives another key for the same number as int32.
    return tf.random.fold_in(tf.constant([seed, stream], tf.int64), tf.cast(counter, tf.int64))


def _to_float(images) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255.0


def _random_shift(images, key) -> tf.Tensor:
    """Zero-pad uint8 (batch, h, w, c) by h // 8 and crop each image at random."""
    height, width = images.shape[1:3]
    pad = height // 8
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    shape = [2, tf.shape(images)[0], 1]
    top, left = tf.unstack(tf.random.stateless_uniform(shape, key, 0, 2 * pad + 1, tf.int32))
    rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, left + tf.range(width), axis=2, batch_dims=1)


def _decode(encoded, size: int, crop_seed, position) -> tf.Tensor:
    """Uint8 (size, size, 3): the random crop of ``position``, or the centre without a seed."""
    if crop_seed is None:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = round(size * 256 / 224) / tf.reduce_min(sides)
        image = tf.image.resize(image, tf.cast(tf.round(sides * scale), tf.int32), antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, size, size)
    else:
        key = _key(crop_seed, _CROP, position)
        # JPEG can decode the crop alone, which is most of the time saved.
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: tf.io.decode_and_crop_jpeg(
                encoded, _crop_window(tf.io.extract_jpeg_shape(encoded), key), channels=3
            ),
            lambda: _decode_then_crop(encoded, key),
        )
        image = tf.image.resize(image, [size, size], antialias=True)
    # Rounded, so that training sees the 256 values that a camera image has on the phone.
    return tf.ensure_shape(tf.saturate_cast(tf.round(image), tf.uint8), [size, size, 3])


def _decode_then_crop(encoded, key) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.image.crop_to_bounding_box(image, *tf.unstack(_crop_window(tf.shape(image), key)))


def _crop_window(shape, key) -> tf.Tensor:
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


def _policy(augment: Sequence[str], image_shape, num_classes: int):
    """The function (float images, labels) -> (float images, labels) of keras-cv's policies."""
    if not {*augment} & {"randaugment", "cutmix", "mixup"}:
        return lambda images, labels: (images, labels)
    if "randaugment" in augment and image_shape[2] != 3:
        raise ValueError(
            f'Expected images of 3 channels for "randaugment", received {image_shape[2]}: '
            "leave it out."
        )
    import keras_cv

    # On the CPU because tf.data runs there and the layers hold the state of their generators;
    # float32 because a mixed precision policy is meant for the network only.
    with tf.device("CPU"):
        rand_augment = keras_cv.layers.RandAugment(value_range=(0, 1), dtype="float32")
        all_mixers = {"cutmix": keras_cv.layers.CutMix, "mixup": keras_cv.layers.MixUp}
        mixers = [all_mixers[name](dtype="float32") for name in all_mixers if name in augment]

    def apply(images, labels):
        if "randaugment" in augment:
            images = tf.clip_by_value(rand_augment(images), 0.0, 1.0)
        if mixers:
            both = {"images": images, "labels": tf.one_hot(labels, num_classes)}
            for mixer in mixers:
                both = mixer(both)
            images, labels = both["images"], both["labels"]
        return tf.ensure_shape(images, [None, *image_shape]), labels

    return apply


def _reproducible(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(_AUTOTUNE)
