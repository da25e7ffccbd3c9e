import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dlqat_tf.training import images


@pytest.mark.parametrize(
    ("pixels", "size", "ratio"), [(31, 16, 1), (32, 16, 2), (190, 47, 4), (600, 75, 8)]
)
def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(monkeypatch, pixels, size, ratio):
    window = tf.constant([16, 24, pixels, pixels + 8])
    monkeypatch.setattr(images, "crop_window", lambda shape, key: window)
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    photo = Image.fromarray(noise).resize((720, 680), Image.BILINEAR)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    result = images._jpeg_crop(file.getvalue(), size, key=None)
    smaller = tf.io.decode_jpeg(file.getvalue(), ratio=ratio)
    top, left, height, width = window.numpy() // ratio
    crop = smaller[top : top + height, left : left + width]
    np.testing.assert_array_equal(result, tf.image.resize(crop, [size, size]))


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_images_are_mirrored(channels):
    rows = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]  # two images of 2 x 3 pixels
    batch = np.uint8(rows)[..., None] * np.uint8([1, 10, 20][:channels])
    result = images.mirrored(tf.constant(batch), tf.constant([False, True])).numpy()
    np.testing.assert_array_equal(result[0], batch[0])
    np.testing.assert_array_equal(result[1, :, :, 0], [[9, 8, 7], [12, 11, 10]])
    np.testing.assert_array_equal(result[1], batch[1, :, ::-1])
