"""Preprocessing of pixels, and arithmetic that is found by calling it."""

from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf.preprocessing import (
    NAMED,
    RAW,
    UNIT,
    ChannelAffine,
    Preprocessing,
    affine_of,
    arithmetic,
    preprocessing_of,
)

layers = tf.keras.layers


def test_values_by_hand():
    pixel = np.uint8([[51, 102, 255]])
    assert UNIT(pixel)[0] == pytest.approx([0.2, 0.4, 1.0])
    assert RAW(pixel)[0].tolist() == [51, 102, 255]
    assert Preprocessing(mean=0.2, std=0.4)(pixel)[0] == pytest.approx([0.0, 0.5, 2.0])
    assert Preprocessing((0.2, 0.4, 0.5), (0.1, 1, 0.5))(pixel)[0] == pytest.approx([0, 0, 1])
    reversed_ = Preprocessing((255, 100, 50), scale=1, reverse_channels=True)
    assert reversed_(pixel)[0].tolist() == [0, 2, 1]
    assert NAMED["tf"](np.uint8([0, 255])).tolist() == [-1, 1]


@pytest.mark.parametrize("name", NAMED)
def test_named_ones_are_those_of_keras(name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)
    expected = tf.keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=name)
    np.testing.assert_array_equal(NAMED[name](pixels), expected)
    np.testing.assert_array_equal(NAMED[name].pixels(expected), pixels)
    assert NAMED[name].fits(expected)
    assert not NAMED[name].fits(expected * 1.1)
    assert preprocessing_of(name) == preprocessing_of(asdict(NAMED[name])) == NAMED[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mean="a"), r"mean to be a finite number, or one for each channel.*mean='a'"),
        (dict(mean=np.nan), "mean to be a finite"),
        (dict(std=0), "std to be a finite number above zero"),
        (dict(std=(1, -1)), "std to be a finite number above zero"),
        (dict(scale=(1, 2)), r"scale to be a finite number above zero\. Rec"),
        (dict(reverse_channels=1), "reverse_channels to be a boolean"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)


def test_other_things_are_no_preprocessing():
    assert preprocessing_of(None) is None
    for value in ("imagenet", {"gain": 1}, 3):
        with pytest.raises(ValueError, match=r"'tf', 'torch', 'caffe', or a Preprocessing"):
            preprocessing_of(value)
    with pytest.raises(ValueError, match="mean to be one number or 1, one for each"):
        NAMED["caffe"].check_channels(1)


def test_arithmetic_by_hand():
    found = affine_of(lambda x: x / 4 - 1, (8, 8, 2))
    assert found.gain == pytest.approx([0.25, 0.25])
    assert found.offset == pytest.approx([-1, -1])
    assert found.keeps_order
    found = affine_of(lambda x: x[..., ::-1] * [1.0, 2.0, 3.0], (8, 8, 3))
    assert found.order == (2, 1, 0)
    assert found.gain == pytest.approx([1, 2, 3])
    assert affine_of(lambda x: tf.cast(x, "float32") * 2, (4, 1), "uint8").gain == [2]


@pytest.mark.parametrize("part", [slice(-3, None), slice(0, 3)])
def test_a_part_of_a_window_is_no_arithmetic(part):
    """Although it changes nothing of a window that is as long as the part."""
    assert arithmetic(tf.keras.Input((8, 2))[:, part].node) is None
    assert arithmetic((tf.keras.Input((8, 2)) * 2.0).node).gain == pytest.approx([2, 2])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        tf.nn.relu,
        tf.image.flip_left_right,
        tf.image.per_image_standardization,
        lambda x: tf.roll(x, 1, 1),
        lambda x: x + tf.reduce_mean(x, [1, 2], keepdims=True),
        lambda x: x[:, ::2],
        lambda x: x[..., :1],
        lambda x: tf.math.log(x),
        lambda x: x + 0.01 * tf.sin(x),  # up to 4e-5 of the largest pixel
    ],
)
def test_what_is_no_arithmetic_on_each_value(function):
    assert affine_of(function, (8, 8, 3)) is None


numbers = st.integers(-(10**6), 10**6).map(lambda each: each / 1000)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), st.randoms(use_true_random=False)
)
def test_any_gain_offset_and_order_is_found(parts, random):
    gain, offset = (np.float32(each) for each in zip(*parts, strict=True))
    order = random.sample(range(len(gain)), len(gain))
    layer = ChannelAffine(gain, offset, order)
    found = affine_of(layer, (6, 6, len(gain)))
    size = np.abs(gain) * 256 + np.abs(offset)
    assert np.all(np.abs(found.gain - gain) <= 1e-6 * size)
    assert np.all(np.abs(found.offset - offset) <= 1e-6 * size)
    moving = np.abs(gain) * 256 > 1e-3 * size
    assert np.all(np.array(found.order)[moving] == np.array(order)[moving])


def test_layer_is_stored_with_a_model(tmp_path):
    layer = ChannelAffine([2.0, 3.0], [1.0, -1.0], [1, 0])
    model = tf.keras.Sequential([tf.keras.Input((2,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded(np.float32([[10, 20]])).numpy().tolist() == [[41, 29]]


def test_quantizer_is_stored_with_what_it_knows():
    for known in ("torch", Preprocessing(0.5, 0.25), None):
        quantizer = dlqat_tf.InputQuantizer(8, 2.0, preprocessing=known)
        again = dlqat_tf.InputQuantizer.from_config(quantizer.get_config())
        assert again.preprocessing == preprocessing_of(known)
        assert again.signed
    with pytest.raises(ValueError, match="preprocessing"):
        dlqat_tf.InputQuantizer(preprocessing="values")
