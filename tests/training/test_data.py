import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.framework import config

from dlqat_tf.training import data, sources
from dlqat_tf.training.data import WHOLE, DataError, Shard, load

SIZE = 16  # of the images that the folder fixtures are decoded to


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def random_image(seed, size=(40, 30), mode="RGB"):
    """Smooth noise, which JPEG keeps nearly as it is."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.BILINEAR).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes; 6 training and 2 test images, in every colour mode that occurs in the wild."""
    for split, count in (("train", 3), ("val", 1)):
        for label in ("cat", "dog"):
            target = tmp_path / split / label
            target.mkdir(parents=True)
            for i in range(count):
                random_image(i).save(target / f"{i}.png")
    cat = tmp_path / "train" / "cat"
    random_image(0, mode="L").save(cat / "0.png")
    random_image(1, mode="RGBA").save(cat / "1.png")
    (cat / "2.png").unlink()
    random_image(2, mode="CMYK").save(cat / "2.JPEG", quality=95)
    dog = tmp_path / "train" / "dog"
    (dog / "2.png").unlink()
    random_image(2, mode="L").save(dog / "2.jpg", quality=95)
    return tmp_path


def take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def images_of(batches):
    return np.concatenate([images for images, _ in batches])


def labels_of(batches):
    return np.concatenate([labels for _, labels in batches])


# Digits: what holds for all sets.


def test_digits_are_scaled_and_split(digits):
    assert (digits.name, digits.image_shape, digits.num_classes) == ("digits", (8, 8, 1), 10)
    assert (digits.train_count, digits.test_count) == (1437, 360)
    assert digits.class_names == tuple("0123456789")
    images, labels = take(digits.test_batches(360), 1)[0]
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert (images.min(), images.max()) == (0.0, 1.0)
    # 17 grey levels, each the nearest of 256
    expected = np.rint(np.arange(17) * 255 / 16).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(np.unique(images), expected)
    assert np.bincount(labels).min() >= 34  # stratified


def test_split_is_fixed(digits):
    again = load("digits", seed=1)
    assert_same(take(digits.test_batches(360), 1), take(again.test_batches(360), 1))


def test_test_batches_cover_the_set_in_order(digits):
    whole = take(digits.test_batches(360), 2)
    parts = take(digits.test_batches(100), 9)
    assert [len(labels) for _, labels in parts] == [100, 100, 100, 60]
    assert digits.test_batches(100).cardinality() == 4
    np.testing.assert_array_equal(images_of(parts), images_of(whole))
    assert digits.test_batches(100).element_spec[0].shape == (None, 8, 8, 1)


def test_train_batches_have_static_shapes(digits):
    images, labels = digits.train_batches(32, seed=0).element_spec
    assert (images.shape, images.dtype) == ((32, 8, 8, 1), tf.float32)
    assert (labels.shape, labels.dtype) == ((32,), tf.int32)


def test_an_epoch_shows_each_image_at_most_once(digits):
    assert digits.steps_per_epoch(100) == 14
    batches = take(digits.train_batches(479, seed=0, augment=()), 6)  # 3 steps are all 1437
    first, second = labels_of(batches[:3]), labels_of(batches[3:])
    assert (first != second).any()  # a new order in each epoch
    for epoch in (batches[:3], batches[3:]):
        sums = np.sort(images_of(epoch).reshape(1437, -1) @ np.arange(64))
        np.testing.assert_allclose(
            sums, np.sort(digits._train.images.reshape(1437, -1) @ np.arange(64) / 255), rtol=1e-5
        )


def test_resumed_run_is_bit_identical(digits):
    steps = digits.steps_per_epoch(100)
    whole = take(digits.train_batches(100, seed=3), 3 * steps)
    resumed = take(digits.train_batches(100, seed=3, first_epoch=2), steps)
    assert_same(whole[2 * steps :], resumed)
    assert (resumed[0][0] != whole[0][0]).any()


def test_seed_decides_order_crop_and_flip(digits):
    for augment in ((), ("crop",), ("flip",)):
        first = take(digits.train_batches(64, seed=0, augment=augment), 2)
        assert_same(first, take(digits.train_batches(64, seed=0, augment=augment), 2))
        other = take(digits.train_batches(64, seed=1, augment=augment), 2)
        assert (images_of(first) != images_of(other)).any()
    assert (labels_of(first) != labels_of(other)).any()


def test_flip_mirrors_about_half(digits):
    plain = images_of(take(digits.train_batches(1000, seed=0, augment=()), 1))
    flipped = images_of(take(digits.train_batches(1000, seed=0, augment=("flip",)), 1))
    same = (flipped == plain).all(axis=(1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 0.45 < mirrored.mean() < 0.55


def test_crop_shifts_by_one_pixel_and_fills_with_zeros(digits):
    plain = images_of(take(digits.train_batches(500, seed=0, augment=()), 1))
    cropped = images_of(take(digits.train_batches(500, seed=0, augment=("crop",)), 1))
    padded = np.pad(plain, [(0, 0), (1, 1), (1, 1), (0, 0)])
    matches = np.stack(
        [
            (cropped == padded[:, y : y + 8, x : x + 8]).all(axis=(1, 2, 3))
            for y in range(3)
            for x in range(3)
        ]
    )
    assert matches.any(axis=0).all()
    assert (matches.mean(axis=1) > 0.05).all()  # each of the nine shifts occurs


def test_train_size_is_a_stratified_subset(digits):
    small = load("digits", train_size=200)
    assert (small.train_count, small.test_count) == (200, 360)
    assert np.bincount(small._train.labels).min() >= 18
    np.testing.assert_array_equal(small._train.images, load("digits", train_size=200)._train.images)
    other = load("digits", train_size=200, seed=1)
    assert (small._train.images != other._train.images).any()
    # near the whole, where the rest cannot hold all classes
    assert load("digits", train_size=1436).train_count == 1436
    assert load("digits", train_size=1437).train_count == 1437


@pytest.mark.parametrize("train_size", [9, 1438])
def test_train_size_out_of_range(train_size):
    with pytest.raises(DataError, match=rf"from 10 .* to 1437 .* received {train_size}\."):
        load("digits", train_size=train_size)


def test_validation_images_are_held_out_of_the_training_set(digits):
    held = load("digits", validation_size=237, train_size=600, seed=1)
    assert (held.train_count, held.test_count) == (600, 237)
    assert np.bincount(held._test.labels).min() >= 22
    every = {image.tobytes() for image in load("digits")._train.images}
    train, test = ({image.tobytes() for image in each.images} for each in (held._train, held._test))
    assert train <= every
    assert test <= every
    other = load("digits", validation_size=237, seed=2)  # the same ones whatever the seed
    np.testing.assert_array_equal(held._test.images, other._test.images)
    rest = {image.tobytes() for image in other._train.images}
    assert other.train_count == 1200
    assert train <= rest


@pytest.mark.parametrize("validation_size", [9, 1428])
def test_validation_size_out_of_range(validation_size):
    with pytest.raises(DataError, match=rf"from 10 .* to 1427 .* received {validation_size}\."):
        load("digits", validation_size=validation_size)


@pytest.mark.parametrize("name", ["train_size", "validation_size"])
def test_classes_too_rare_for_a_share(folder, name):
    for number in range(18):
        random_image(number).save(folder / "train" / "dog" / f"more-{number}.png")
    with pytest.raises(DataError, match=f"A {name} of 3 leaves 1 rare classes without an image"):
        load("folder", data_dir=folder, image_size=SIZE, **{name: 3})
    for extra in sorted((folder / "train" / "cat").iterdir())[1:]:
        extra.unlink()
    with pytest.raises(DataError, match=f"Cannot take {name} 3 in proportion: The least populated"):
        load("folder", data_dir=folder, image_size=SIZE, **{name: 3})


def test_bad_arguments(digits):
    with pytest.raises(ValueError, match="'mnist': expected one of digits, cifar10, cifar100"):
        load("mnist")
    with pytest.raises(ValueError, match=r"image_size 8 .* received 32"):
        load("digits", image_size=32)
    with pytest.raises(ValueError, match="at least 1 pixel, received 0"):
        load("folder", image_size=0)
    assert load("digits", image_size=8).image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match=r"from 1 to 1437 .* received 1438"):
        digits.steps_per_epoch(1438)
    with pytest.raises(ValueError, match="received 0"):
        digits.train_batches(0, seed=0)
    with pytest.raises(ValueError, match="received 0"):
        digits.test_batches(0)
    with pytest.raises(ValueError, match="first_epoch of at least 0, received -1"):
        digits.train_batches(8, seed=0, first_epoch=-1)
    with pytest.raises(ValueError, match="received 'rotate'"):
        digits.train_batches(8, seed=0, augment=("rotate",))
    with pytest.raises(ValueError, match="received 'crop'"):
        digits.train_batches(8, seed=0, augment="crop")
    with pytest.raises(ValueError, match="3 channels"):
        digits.train_batches(8, seed=0, augment=("randaugment",))


@pytest.mark.parametrize("policy", ["cutmix", "mixup"])
def test_mixing_gives_soft_labels(digits, policy):
    batches = digits.train_batches(64, seed=0, augment=(policy,))
    images, labels = take(batches, 1)[0]
    plain_images, plain_labels = take(digits.train_batches(64, seed=0, augment=()), 1)[0]
    assert batches.element_spec[0].shape == (64, 8, 8, 1)
    assert (labels.shape, labels.dtype) == ((64, 10), np.float32)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    assert ((labels > 0).sum(axis=1) == 2).any()
    # each image keeps a share of its own label, and some were changed
    assert (labels[np.arange(64), plain_labels] > 0).mean() > 0.9
    assert (images != plain_images).any()
    assert 0 <= images.min() <= images.max() <= 1


# Folders.


def test_folder(folder):
    images = load("folder", data_dir=folder, image_size=SIZE)
    assert images.class_names == ("cat", "dog")
    assert (images.train_count, images.test_count) == (6, 2)
    assert images.image_shape == (SIZE, SIZE, 3)
    assert load("folder", data_dir=folder).image_shape == (224, 224, 3)
    batch, labels = take(images.train_batches(6, seed=0), 1)[0]
    assert (batch.shape, batch.dtype) == ((6, SIZE, SIZE, 3), np.float32)
    assert 0 <= batch.min() < batch.max() <= 1
    np.testing.assert_array_equal(batch * 255, np.rint(batch * 255))  # uint8 / 255
    np.testing.assert_array_equal(np.sort(labels), [0, 0, 0, 1, 1, 1])
    batch, labels = take(images.test_batches(5), 1)[0]
    np.testing.assert_array_equal(labels, [0, 1])


def test_folder_prefers_val_and_takes_test(folder):
    shutil.copytree(folder / "val", folder / "test")
    random_image(9).save(folder / "test" / "cat" / "9.png")
    assert load("folder", data_dir=folder).test_count == 2
    shutil.rmtree(folder / "val")
    assert load("folder", data_dir=folder).test_count == 3


def test_centre_crop_of_the_shorter_side(folder):
    # 30 pixels high, 40 wide: resized to 18 x 24 (16 * 256 / 224 = 18.3), cropped to 16 x 16
    images, _ = take(load("folder", data_dir=folder, image_size=SIZE).test_batches(1), 1)[0]
    resized = random_image(0).resize((24, 18), Image.BILINEAR)
    expected = np.asarray(resized, np.float32)[1:17, 4:20] / 255
    assert np.abs(images[0] - expected).max() < 0.02


def test_colour_modes_are_read_as_rgb(folder):
    """Grayscale, RGBA and CMYK files show what their RGB version shows."""
    images = load("folder", data_dir=folder, image_size=SIZE)
    shown, labels = take(images.train_batches(6, seed=0, augment=()), 1)[0]
    order = [int(i) for i in images._train.shuffled(0, 0)]
    crop = {index: image for index, image in zip(order, shown, strict=True)}
    np.testing.assert_array_equal(labels, [index // 3 for index in order])
    gray, rgba, cmyk, _, rgb_1, gray_jpeg = (crop[i] for i in range(6))
    for image in (gray, gray_jpeg):
        np.testing.assert_array_equal(image[..., 0], image[..., 2])
    np.testing.assert_array_equal(rgba, rgb_1)
    reference = np.asarray(random_image(2).resize((24, 18), Image.BILINEAR), np.float32)
    assert np.abs(cmyk - reference[1:17, 4:20] / 255).mean() < 0.05


def test_resumed_folder_run_is_bit_identical(folder):
    images = load("folder", data_dir=folder, image_size=SIZE)
    whole = take(images.train_batches(2, seed=5), 9)
    assert_same(whole[6:], take(images.train_batches(2, seed=5, first_epoch=2), 3))
    other = take(images.train_batches(2, seed=6, first_epoch=2), 3)
    assert (images_of(other) != images_of(whole[6:])).any()


def test_random_resized_crop_differs_from_epoch_to_epoch(folder):
    images = load("folder", data_dir=folder, image_size=SIZE)
    for source in ("cat", "dog"):  # JPEG and PNG both occur in either
        label = images.class_names.index(source)
        seen = [
            image
            for batch, labels in take(images.train_batches(6, seed=0, augment=("crop",)), 4)
            for image in batch[labels == label]
        ]
        assert len(np.unique(np.stack(seen), axis=0)) > len(seen) - 2
    plain = take(images.train_batches(6, seed=0, augment=()), 2)
    unique = np.unique(images_of(plain), axis=0)
    assert len(unique) <= 6  # the same centre crops in both epochs


def test_folder_train_size(folder):
    small = load("folder", data_dir=folder, image_size=SIZE, train_size=2)
    assert small.train_count == 2
    np.testing.assert_array_equal(np.sort(small._train.labels), [0, 1])


def test_rand_augment(folder):
    images = load("folder", data_dir=folder, image_size=SIZE)
    batches = images.train_batches(6, seed=0, augment=("randaugment",))
    batch, labels = take(batches, 1)[0]
    plain, plain_labels = take(images.train_batches(6, seed=0, augment=()), 1)[0]
    np.testing.assert_array_equal(labels, plain_labels)
    assert batches.element_spec[0].shape == (6, SIZE, SIZE, 3)
    assert (batch != plain).any()
    assert 0 <= batch.min() <= batch.max() <= 1


def test_images_of_deterministic_runs_draw_one_after_the_other(monkeypatch):
    received = []
    monkeypatch.setattr(tf, "map_fn", lambda *_, **options: received.append(options))
    for is_enabled, options in ((False, {}), (True, {"parallel_iterations": 1})):
        monkeypatch.setattr(config, "is_op_determinism_enabled", lambda answer=is_enabled: answer)
        layer = data._rand_augment(value_range=(0, 1))
        monkeypatch.setattr(layer, "_any_ragged", lambda inputs: False)
        layer._map_fn(None, {})
        assert received.pop() == options


@pytest.mark.long
def test_deterministic_runs_see_the_same_images(folder):
    script = (
        "import sys, hashlib, dlqat_tf, tensorflow as tf; from dlqat_tf.training.data import load;"
        "tf.config.experimental.enable_op_determinism(); tf.keras.utils.set_random_seed(0);"
        "tf.random.set_global_generator(tf.random.Generator.from_seed(0));"
        "images = load('folder', data_dir=sys.argv[1], image_size=16);"
        "augment = ('crop', 'flip', 'randaugment', 'cutmix', 'mixup');"
        "batches = images.train_batches(6, seed=0, augment=augment).take(4);"
        "print([hashlib.sha1(images.numpy().tobytes()).hexdigest() for images, _ in batches])"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", script, folder], capture_output=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert len(set(first.stdout.splitlines()[-1].split())) == 4


def remove(path):
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: remove(root), "found none at {root}:"),
        (lambda root: remove(root / "train"), "no train/ in {root}:"),
        (lambda root: remove(root / "val"), "no val/ or test/ in {root}:"),
        (
            lambda root: [remove(root / "train" / name) for name in ("cat", "dog")],
            "no class folder in {root}/train:",
        ),
        (
            lambda root: (root / "val" / "cat" / "0.png").unlink(),
            "no image in {root}/val/cat:",
        ),
        (lambda root: remove(root / "val" / "dog"), "{root}/val, but dog is in one of them only"),
        (
            lambda root: (root / "train" / "cat" / "notes.txt").write_text("x"),
            "found {root}/train/cat/notes.txt:",
        ),
        (
            lambda root: (root / "train" / "notes.txt").write_text("x"),
            "found the file {root}/train/notes.txt:",
        ),
        (
            lambda root: (root / "train" / "dog" / "1.png").write_bytes(b"no image"),
            "Corrupt image {root}/train/dog/1.png: replace or remove",
        ),
        (
            lambda root: (root / "val" / "dog" / "0.png").write_bytes(b""),
            "Corrupt image {root}/val/dog/0.png: replace or remove",
        ),
    ],
)
def test_folder_failures_name_the_path(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError) as error:
        load("folder", data_dir=folder)
    assert message.format(root=folder) in str(error.value)
    assert str(error.value).endswith(".")


def test_folder_needs_data_dir():
    with pytest.raises(DataError, match="needs data_dir"):
        load("folder")


def test_hidden_files_are_passed_over(folder):
    (folder / "train" / ".DS_Store").write_text("x")
    (folder / "train" / "cat" / ".DS_Store").write_text("x")
    assert load("folder", data_dir=folder).train_count == 6


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("augment", [(), ("crop", "flip")])
@pytest.mark.parametrize("name", ["cat/0.png", "dog/2.jpg"])
def test_large_folder_names_a_corrupt_file_at_run_time(folder, monkeypatch, name, augment):
    monkeypatch.setattr(sources, "_VERIFY_LIMIT", 0)
    path = folder / "train" / name
    path.write_bytes(path.read_bytes()[:40])
    images = load("folder", data_dir=folder, image_size=SIZE)
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(path)):
        take(images.train_batches(2, seed=0, augment=augment), 3)


def test_last_test_file_corrupt_at_run_time(folder, monkeypatch):
    monkeypatch.setattr(sources, "_VERIFY_LIMIT", 0)
    path = folder / "val" / "dog" / "0.png"
    truncate(path)
    images = load("folder", data_dir=folder, image_size=SIZE)
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(path)):
        take(images.test_batches(1), 2)


def test_a_corrupt_file_at_run_time_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(sources, "_VERIFY_LIMIT", 0)
    path = folder / "train" / "cat" / "0.png"
    truncate(path)
    images = load("folder", data_dir=folder, image_size=SIZE)
    message = f"^Corrupt image: replace or remove the file {path}.$"
    with pytest.raises(DataError, match=message), images.readable():
        take(images.train_batches(2, seed=0), 3)


def test_names_of_files_need_not_be_utf8(folder):
    for path in (folder / "train" / "cat").iterdir():
        path.rename(path.with_name(f"\udcff{path.name}"))
    images = load("folder", data_dir=folder, image_size=SIZE)
    assert len(take(images.train_batches(2, seed=0), 2)) == 2


# tensorflow-datasets, with sets written here in its format.


@pytest.fixture
def tiny_tfds(tmp_path, monkeypatch):
    """Write a set of 12 training and 6 other images in 2 classes under the name of a real one."""
    import tensorflow_datasets as tfds

    def examples(count):
        for i in range(count):
            yield i, {"image": np.asarray(random_image(i, (32, 32))), "label": i % 2}

    def write(name, image_shape, other_split):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=image_shape, encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["ant", "bee"]),
                }
            ),
            split_datasets={"train": list(examples(12)), other_split: list(examples(6))},
            data_dir=tmp_path,
        )
        return tmp_path

    # The real builders insist on the real features and a thousand classes.
    monkeypatch.setattr(
        tfds,
        "builder",
        lambda name, data_dir: tfds.builder_from_directory(data_dir / name / "1.0.0"),
    )
    return write


def test_cifar_from_its_data_dir(tiny_tfds):
    root = tiny_tfds("cifar10", (32, 32, 3), "test")
    images = load("cifar10", data_dir=root)
    assert images.class_names == ("ant", "bee")
    assert (images.image_shape, images.train_count, images.test_count) == ((32, 32, 3), 12, 6)
    with pytest.raises(ValueError, match=r"image_size 32 .* received 64"):
        load("cifar10", data_dir=root, image_size=64)


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_another_set_in_the_place_of_one(tiny_tfds, name):
    root = tiny_tfds("cifar100", (32, 32, 3), "test")
    (root / "cifar100").rename(root / name)
    named = rf"Expected {name} in .*{name}/1.0.0, found cifar100: pass"
    with pytest.raises(DataError, match=named):
        load(name, data_dir=root)


@pytest.mark.parametrize(("name", "lacks"), [("cifar10", "test"), ("imagenet2012", "validation")])
def test_a_set_without_its_splits(tiny_tfds, name, lacks):
    root = tiny_tfds(name, (32, 32, 3), "other")
    with pytest.raises(DataError, match=rf"no split '{lacks}' of {name} in .*{name}/1.0.0: delete"):
        load(name, data_dir=root)


@pytest.mark.parametrize("global_seed", [None, 0])
def test_imagenet_from_records(tiny_tfds, global_seed):
    tf.random.set_seed(global_seed)  # training.run sets one
    root = tiny_tfds("imagenet2012", (None, None, 3), "validation")
    images = load("imagenet2012", data_dir=root, image_size=SIZE)
    assert images.image_shape == (SIZE, SIZE, 3)
    assert (images.train_count, images.test_count, images.num_classes) == (12, 6, 2)
    np.testing.assert_array_equal(
        np.sort(labels_of(take(images.test_batches(4), 9))), [0] * 3 + [1] * 3
    )
    whole = take(images.train_batches(4, seed=1), 9)
    assert_same(whole[6:], take(images.train_batches(4, seed=1, first_epoch=2), 3))
    other = take(images.train_batches(4, seed=2), 9)
    assert (labels_of(other) != labels_of(whole)).any()
    np.testing.assert_array_equal(np.sort(labels_of(whole[:3])), [0] * 6 + [1] * 6)
    plain = take(images.train_batches(4, seed=1, augment=()), 3)
    assert len(np.unique(images_of(plain), axis=0)) == 12  # each record once


def test_imagenet_train_size(tiny_tfds):
    root = tiny_tfds("imagenet2012", (None, None, 3), "validation")
    images = load("imagenet2012", data_dir=root, image_size=SIZE, train_size=4)
    assert images.train_count == 4
    first, second = take(images.train_batches(4, seed=1, augment=()), 2)
    np.testing.assert_array_equal(np.sort(first[1]), [0, 0, 1, 1])
    assert len(np.unique(images_of([first, second]), axis=0)) == 4  # the same four again


def test_imagenet_validation_images_are_held_out(tiny_tfds):
    root = tiny_tfds("imagenet2012", (None, None, 3), "validation")
    options = dict(data_dir=root, image_size=SIZE, validation_size=4)
    images = load("imagenet2012", **options)
    assert (images.train_count, images.test_count) == (8, 4)
    every = take(images.train_batches(8, seed=1, augment=()), 1) + take(images.test_batches(4), 1)
    assert len(np.unique(np.concatenate([images_of([batch]) for batch in every]), axis=0)) == 12
    np.testing.assert_array_equal(np.sort(every[1][1]), [0, 0, 1, 1])
    small = load("imagenet2012", train_size=2, **options)  # of those that are left
    kept = images_of(take(small.train_batches(2, seed=1, augment=()), 1))
    rest = images_of(every[:1])
    assert all((rest == image).all(axis=(1, 2, 3)).any() for image in kept)


def damage(file):
    """Change a byte of the first record's content; its checksum stays."""
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])


@pytest.mark.parametrize("change", [damage, truncate, lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_damaged_records_are_named(tiny_tfds, name, change):
    other = "test" if name == "cifar10" else "validation"
    root = tiny_tfds(name, (32, 32, 3) if name == "cifar10" else (None, None, 3), other)
    (file,) = root.rglob("*train.tfrecord*")
    change(file)
    options = {} if name == "cifar10" else dict(image_size=SIZE)
    for size in ("train_size", "validation_size"):
        with pytest.raises(DataError, match=rf"{file} \(.*\): delete its folder and prepare the"):
            load(name, data_dir=root, **options, **{size: 4})
    if name == "imagenet2012":
        images = load(name, data_dir=root, image_size=SIZE)
        with pytest.raises(DataError, match=str(file)), images.readable():
            take(images.train_batches(2, seed=0), 3)


def test_missing_imagenet_says_what_to_download(tmp_path):
    with pytest.raises(DataError) as error:
        load("imagenet2012", data_dir=tmp_path)
    message = str(error.value)
    assert "ILSVRC2012_img_train.tar" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert message.endswith("does not exist or is empty).")
    assert "\n" not in message
    assert ". " not in message  # one sentence


def test_missing_cifar_without_network(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(*_, **__):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(DataError, match=f"no cifar10 in {tmp_path}: .*network.*no route to host"):
        load("cifar10", data_dir=tmp_path)


# Real data.


def test_cifar100(tfds_dir):
    images = load("cifar100", data_dir=tfds_dir)
    assert (images.train_count, images.test_count, images.num_classes) == (50_000, 10_000, 100)
    assert images.class_names[:3] == ("apple", "aquarium_fish", "baby")
    np.testing.assert_allclose(
        images._train.images.mean(axis=(0, 1, 2)) / 255, [0.5071, 0.4865, 0.4409], atol=1e-4
    )
    assert np.bincount(images._train.labels).tolist() == [500] * 100
    whole = images.train_batches(1000, seed=0).skip(50)
    assert_same(take(whole, 3), take(images.train_batches(1000, seed=0, first_epoch=1), 3))


def test_imagenet10(imagenet10_dir):
    images = load("folder", data_dir=imagenet10_dir, image_size=64)
    assert (images.train_count, images.test_count, images.num_classes) == (1300, 500, 10)
    batch, _ = take(images.train_batches(64, seed=0), 1)[0]
    assert 0.3 < batch.mean() < 0.6
    assert np.bincount(labels_of(take(images.test_batches(100), 9))).tolist() == [50] * 10


def of_shards(make, count):
    """Return the batches that the parts of all shards make, in order."""
    parts = [
        [[part.numpy() for part in batch] for batch in make(Shard(i, count))] for i in range(count)
    ]
    return [
        [np.concatenate(each) for each in zip(*batches, strict=True)]
        for batches in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize(("name", "count"), [("digits", 2), ("digits", 4), ("folder", 2)])
def test_shards_are_parts_of_the_same_batches(digits, folder, name, count):
    data = digits if name == "digits" else load("folder", data_dir=folder, image_size=SIZE)

    def train(shard=WHOLE):
        return data.train_batches(4, seed=3, augment=("crop", "flip"), shard=shard).take(2)

    for parts, whole in zip(of_shards(train, count), train(), strict=True):
        for part, expected in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part, expected)
    size = (
        count if name == "folder" else 7 * count
    )  # the last batch is another, in parts that differ by one
    for parts, whole in zip(
        of_shards(lambda shard: data.test_batches(size, shard), count),
        data.test_batches(size),
        strict=True,
    ):
        for part, expected in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part, expected)
    with pytest.raises(ValueError, match="multiple of 3, the parts of each batch, received 4"):
        data.train_batches(4, seed=0, shard=Shard(0, 3))


def bytes_of(batches):
    return [[part.numpy() for part in batch] for batch in batches]


@pytest.mark.parametrize("name", ["folder", "imagenet2012"])
@pytest.mark.parametrize("train_size", [None, 4])
def test_memory_gives_the_images_of_the_files(folder, tiny_tfds, monkeypatch, name, train_size):
    root = folder if name == "folder" else tiny_tfds("imagenet2012", (None, None, 3), "validation")
    options = dict(data_dir=root, image_size=SIZE, train_size=train_size)
    from_files, cached = load(name, **options), load(name, **options, cache="memory")

    def batches(images):
        return bytes_of(images.train_batches(2, seed=1).take(5)), bytes_of(images.test_batches(2))

    read = batches(from_files)
    for file in [path for path in root.rglob("*") if path.suffix in (".png", ".jpg", ".JPEG")]:
        file.unlink()  # nobody opens them any more
    for file in root.rglob("*.tfrecord*"):
        file.unlink()
    held = batches(cached)
    for ours, theirs in zip(held, read, strict=True):
        for batch, expected in zip(ours, theirs, strict=True):
            for part, other in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(part, other)


def test_memory_that_there_is_not(folder, monkeypatch):
    with pytest.raises(ValueError, match="one of none, memory, received 'disk'"):
        load("folder", data_dir=folder, cache="disk")
    monkeypatch.setattr(sources.psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(DataError, match=r"0\.0 GB, where 0\.0 GB are free: leave --cache out"):
        load("folder", data_dir=folder, image_size=SIZE, cache="memory")
