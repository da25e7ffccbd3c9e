"""Opens a data set: (class names, training source, test source)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._host import reason_of
from dlqat_tf.training.sources import Arrays, DataError, Files, Records, damaged_records

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def open_digits():
    """Open scikit-learn's digits, 80 % of them for training."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0
    )
    every = Arrays(images, digits.target)
    classes = tuple(str(name) for name in digits.target_names)
    return classes, every.subset(np.sort(train)), every.subset(np.sort(test))


def open_cifar(name: str, data_dir: Path | None):
    """Open CIFAR-10 or CIFAR-100 of tensorflow-datasets, held in memory."""
    splits = ("train", "test")
    builder = _prepared_builder(name, data_dir, splits)
    sources = []
    for split in splits:
        try:
            whole = builder.as_dataset(split=split, batch_size=-1)
            sources.append(Arrays(whole["image"].numpy(), whole["label"].numpy()))
        except tf.errors.OpError as error:
            files = [str(path) for path in builder.info.splits[split].filepaths]
            raise damaged_records(files, error) from None
    return tuple(builder.info.features["label"].names), *sources


def open_imagenet(data_dir: Path | None, size: int):
    """Open ImageNet of tensorflow-datasets, read from its files in every epoch."""
    # Not "test": its labels are secret, tensorflow-datasets gives them as -1.
    splits = ("train", "validation")
    builder = _prepared_builder("imagenet2012", data_dir, splits)
    if builder.info.file_format.value != "tfrecord":
        raise DataError(
            f"Expected TFRecord files in {builder.data_dir}, found the format "
            f"{builder.info.file_format.value!r}: prepare imagenet2012 again with the default one."
        )
    classes = tuple(builder.info.features["label"].names)
    return classes, *(Records(builder, split, size) for split in splits)


def _prepared_builder(name: str, data_dir: Path | None, splits: Sequence[str]):
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
        reason = reason_of(error)
        reason = reason.split(". ")[0].rstrip(".:")  # tfds goes on for paragraphs
        raise DataError(f"Found no {name} in {where}: {advice} ({reason}).") from error
    if builder.info.name != name:
        raise DataError(
            f"Expected {name} in {builder.data_dir}, found {builder.info.name}: pass the data_dir "
            f"that holds {name}."
        )
    for split in splits:
        if split not in builder.info.splits:
            raise DataError(
                f"Found no split {split!r} of {name} in {builder.data_dir}: delete this folder and "
                "prepare the data set again."
            )
    return builder


def open_folder(data_dir: Path | None, size: int):
    """Open a folder with train/ and val/ (else test/), in which each class has a folder."""
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
        Files(
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
