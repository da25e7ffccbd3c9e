"""Image classification sets as ``tf.data`` pipelines that resume bit for bit.

Images come out as float32 in [0, 1] (uint8 / 255, no mean and std), so that the exported network
takes the bytes of a camera image as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlqat_tf import _compat  # noqa: F401  (before TensorFlow)

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

from dlqat_tf.training import opening
from dlqat_tf.training.images import FLIP, batch_key, mirrored, to_float
from dlqat_tf.training.sources import AUTOTUNE, Arrays, DataError, Files, Records, readable

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "WHOLE",
    "DataError",
    "ImageData",
    "Shard",
    "check_size",
    "load",
]

NAMES = ("digits", "cifar10", "cifar100", "imagenet2012", "folder")
CACHES = ("none", "memory")
AUGMENTATIONS = ("crop", "flip", "randaugment", "cutmix", "mixup")

_DEFAULT_IMAGE_SIZE = 224
_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # of the sets that have one only
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Shard:
    """A worker's part of every batch: part ``index`` of ``count`` as equal ones, in order."""

    index: int
    count: int


WHOLE = Shard(0, 1)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
    cache: str = "none",
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
        cache: "memory" reads the files of ``folder`` or ``imagenet2012`` once and holds them in
            memory, still encoded: for storage that is slower than decoding. Order and images stay
            the same.

    Returns:
        The set, ready for ``train_batches`` and ``test_batches``.

    Raises:
        ValueError: The name or the cache is unknown, or ``image_size`` is no size of this set.
        DataError: The data are missing, incomplete, inconsistent or corrupt, larger than the free
            memory with ``cache="memory"``, or ``train_size`` or ``validation_size`` is less than
            the number of classes or more than there is.
    """
    if cache not in CACHES:
        raise ValueError(f"Expected cache to be one of {', '.join(CACHES)}, received {cache!r}.")
    check_size(name, image_size)
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    if name in ("folder", "imagenet2012"):
        open_set = opening.open_folder if name == "folder" else opening.open_imagenet
        classes, train, test = open_set(data_dir, image_size or _DEFAULT_IMAGE_SIZE)
    else:
        classes, train, test = (
            opening.open_digits() if name == "digits" else opening.open_cifar(name, data_dir)
        )
    if validation_size is not None:
        if not len(classes) <= validation_size <= train.count - len(classes):
            raise DataError(
                f"Expected validation_size from {len(classes)} (the classes of {name}) to "
                f"{train.count - len(classes)} (so that as many training images remain), received "
                f"{validation_size}."
            )
        with readable(train):
            held_out = _stratified(train.labels, "validation_size", validation_size, _HELD_OUT_SEED)
        rest = np.setdiff1d(np.arange(train.count), held_out)
        train, test = train.subset(rest), train.subset(held_out)
    if train_size is not None:
        if not len(classes) <= train_size <= train.count:
            raise DataError(
                f"Expected train_size from {len(classes)} (the classes of {name}) to {train.count} "
                f"(its training images), received {train_size}."
            )
        with readable(train):
            train = train.subset(_stratified(train.labels, "train_size", train_size, seed))
    for source in (train, test):
        source.verify()
        if cache == "memory":
            with readable(source):
                source.cache()
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
    _train: Arrays | Files | Records = field(repr=False, compare=False)
    _test: Arrays | Files | Records = field(repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def readable(self) -> contextlib.AbstractContextManager[None]:
        """Name the file, where one turns out to be damaged while batches are read.

        TensorFlow's errors name none. What is raised inside is a :class:`DataError` then.
        """
        return readable(self._train, self._test)

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
        shard: Shard = WHOLE,
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
            shard: Which part of each batch to give; images, order, crops and flips of all parts
                together are those of the whole batch.

        Returns:
            Dataset of (images, labels): images float32 (batch / shard.count, height, width,
            channels) in [0, 1]; labels int32 (batch / shard.count,), or float32 with one more axis
            (classes) with "cutmix" or "mixup".

        Raises:
            ValueError: ``batch_size`` or ``first_epoch`` is out of range or no multiple of
                ``shard.count``, or an augmentation is unknown or unfit for the images.
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
        if batch_size % shard.count:
            raise ValueError(
                f"Expected batch_size as a multiple of {shard.count}, the parts of each batch, "
                f"received {batch_size}."
            )
        policy = _policy(augment, self.image_shape, self.num_classes)

        def finish(positions, images, labels):
            if "flip" in augment:
                key, places = batch_key(seed, FLIP, positions, batch_size)
                draws = tf.random.stateless_uniform([batch_size], key)
                images = mirrored(images, tf.gather(draws, places) < 0.5)
            return policy(to_float(images), labels)

        # A sample's position in the endless run, (epoch * steps + step) * batch + place, is what
        # all random draws derive from.
        first = first_epoch * steps * batch_size
        samples = (
            tf.data.Dataset.counter(first_epoch)
            .flat_map(lambda epoch: self._train.shuffled(seed, epoch).take(steps * batch_size))
            .enumerate(first)
        )
        if shard.count > 1:
            size = batch_size // shard.count
            samples = samples.filter(lambda at, _: at % batch_size // size == shard.index)
        crop_seed = seed if "crop" in augment else None
        batches = self._train.batches(samples, batch_size, crop_seed, parts=shard.count)
        batches = batches.map(finish, num_parallel_calls=AUTOTUNE, deterministic=True)
        return _reproducible(batches)

    def test_batches(self, batch_size: int, shard: Shard = WHOLE) -> tf.data.Dataset:
        """The whole test set once, in its own order, the last batch smaller where need be.

        Args:
            batch_size: Images per batch.
            shard: Which part of each batch to give; of the last one, too, parts differ by one image
                at most.

        Returns:
            Dataset of (images, labels): images float32 (None, height, width, channels) in [0, 1],
            centre crops where they come from files; labels int32 (None,).

        Raises:
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"Expected batch_size of at least 1, received {batch_size}.")
        samples = self._test.in_order().enumerate()
        if shard.count > 1:

            def is_of_shard(at, _):
                place = at % batch_size
                size = tf.minimum(self.test_count - (at - place), batch_size)  # of the last one
                return place * shard.count // size == shard.index

            samples = samples.filter(is_of_shard)
        batches = self._test.batches(
            samples, batch_size, None, parts=shard.count, drop_remainder=False
        )
        batches = batches.map(
            lambda _, images, labels: (to_float(images), labels),
            num_parallel_calls=AUTOTUNE,
            deterministic=True,
        )
        # Known, so that Keras shows progress.
        steps = -(-self.test_count // batch_size)
        return _reproducible(batches.apply(tf.data.experimental.assert_cardinality(steps)))


def _stratified(labels: np.ndarray, name: str, size: int, seed: int) -> np.ndarray:
    """Return sorted indices of ``size`` images, the classes in proportion; errors say ``name``."""
    from sklearn.model_selection import train_test_split

    every = np.arange(len(labels))
    if size == len(labels):
        return every
    # scikit-learn also stratifies the part that is left over, which must hold all classes then.
    stratify = labels if len(labels) - size >= len(np.unique(labels)) else None
    try:
        kept, _ = train_test_split(every, train_size=size, stratify=stratify, random_state=seed)
    except ValueError as error:
        raise DataError(f"Cannot take {name} {size} in proportion: {error}") from error
    if missing := len(np.unique(labels)) - len(np.unique(labels[kept])):
        raise DataError(
            f"A {name} of {size} leaves {missing} rare classes without an image: "
            "choose a larger one."
        )
    return np.sort(kept)


def _rand_augment(**options):
    """Return keras-cv's RandAugment; in deterministic runs its images draw one after the other."""
    import keras_cv
    from tensorflow.python.framework.config import is_op_determinism_enabled

    class InOrder(keras_cv.layers.RandAugment):
        def _map_fn(self, func, inputs):
            return tf.map_fn(func, inputs, parallel_iterations=1)

    return (InOrder if is_op_determinism_enabled() else keras_cv.layers.RandAugment)(**options)


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
        rand_augment = _rand_augment(value_range=(0, 1), dtype="float32")
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
    return dataset.with_options(options).prefetch(AUTOTUNE)
