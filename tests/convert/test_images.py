"""Images for conversion: their range, and datasets of them."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import ConversionError, quantize
from dlqat_tf.export import to_tflite

layers = tf.keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3)).astype(np.uint8)
LABELS = np.arange(40) % 3


def network(*front):
    return tf.keras.Sequential(
        [
            tf.keras.Input((6, 6, 3), name="images"),
            *front,
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        ]
    )


@pytest.mark.parametrize(
    "images",
    [
        PIXELS / 255,
        PIXELS[:1] * 0,
        np.clip(PIXELS / 255, 0.2, 0.8),
        PIXELS / 255 * 1.001,  # what rounding to pixels forgives
        PIXELS > 128,
    ],
)
def test_images_that_files_take(images):
    quantize(network(), images=images)


@pytest.mark.parametrize(
    ("images", "received"),
    [
        (PIXELS, "0 to 255"),
        (PIXELS.astype(np.float32), "0 to 255"),
    ],
)
def test_pixels_for_a_model_that_does_not_rescale_them(images, received):
    with pytest.raises(
        ConversionError, match=rf"from 0 to 1 in the images for 'images'.*Received: {received}\. D"
    ):
        quantize(network(), images=images)


@pytest.mark.parametrize(
    ("images", "received"),
    [
        (PIXELS / 127.5 - 1, "-1 to 1"),
        ((PIXELS / 255 - 0.5) / 0.25, "-2 to 2"),
        (PIXELS / 255 - 0.01, "-0.01 to 0.99"),
        (PIXELS / 250, "0 to 1.02"),
    ],
)
def test_other_images_are_rounded_as_values_and_the_report_says_so(images, received):
    model, report = quantize(network(), images=images)
    assert f"from {received}, which are not pixels / 255" in report.notes[0]
    quantizer = model.get_layer("images_codes")
    assert (quantizer.signed, quantizer.preprocessing) == (images.min() < 0, None)
    assert report.ranges["images_codes"] == pytest.approx(np.abs(images).max(), rel=0.03)
    # Said to be prepared, they have to be as they would be.
    quantize(network(), images=np.float32(PIXELS / 127.5 - 1), preprocessing="tf")
    with pytest.raises(ConversionError, match=r"from -1 to 1 .*Received: -2 to 2\. Prepare"):
        quantize(network(), images=(PIXELS / 255 - 0.5) / 0.25, preprocessing="tf")


def test_models_that_rescale_take_pixels():
    source = network(layers.Rescaling(1 / 255, name="rescaling"))
    for images in (PIXELS, PIXELS.astype(np.float32), PIXELS[:1] * 0, PIXELS // 255):
        quantize(source, images=images)
    for images, received in ((PIXELS / 255, "0 to 1"), (PIXELS - 128.0, "-128 to 127")):
        with pytest.raises(ConversionError, match=rf"0 to 255 .*Received: {received}\. The model"):
            quantize(source, images=images)


def test_what_is_no_image_has_any_range():
    inputs = tf.keras.Input((4,))
    source = tf.keras.Model(inputs, layers.Dense(3)(inputs))
    quantize(source, images=np.float32([[-5, 7, 300, 0]]))


def dataset(*parts, size=16):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(size)


def test_datasets_are_arrays():
    images = np.float32(PIXELS / 255)
    source = network()
    expected, report = quantize(source, 4, 4, images=images, labels=LABELS)
    data = dataset(images, LABELS)
    for given in (data, dataset(images, LABELS, np.ones(40))):  # with sample weights too
        model, report = quantize(source, 4, 4, images=given)
        of_images, of_head = report.notes
        assert of_images == "Ranges and statistics are those of 40 images of the dataset."
        assert "'scores' starts from" in of_head
        for a, b in zip(model.weights, expected.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    model, report = quantize(source, 4, 4, "linear", images=dataset(images))
    expected, _ = quantize(source, 4, 4, "linear", images=images)
    for a, b in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_datasets_are_read_to_512_images():
    images = np.float32(PIXELS / 255)
    read = []

    def batches():
        for i in range(100):
            read.append(i)
            yield images

    spec = tf.TensorSpec((None, 6, 6, 3))
    forever = tf.data.Dataset.from_generator(batches, output_signature=spec)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # which reads ahead for as long
    forever = forever.with_options(options)
    _, report = quantize(network(), images=forever)
    assert "of 512 images" in report.notes[0]
    assert len(read) == 13  # batches of 40


def test_datasets_of_several_inputs():
    left, right = (tf.keras.Input((6, 6, 3), name=name) for name in ("left", "right"))
    x = layers.Concatenate()([layers.Flatten()(left), layers.Flatten()(right)])
    source = tf.keras.Model([left, right], layers.Dense(3)(x))
    images = np.float32(PIXELS / 255)
    for parts in ({"left": images, "right": images}, ({"right": images, "left": images}, LABELS)):
        data = tf.data.Dataset.from_tensor_slices(parts).batch(16)
        assert "of 40 images" in quantize(source, 4, 4, images=data)[1].notes[0]
    data = tf.data.Dataset.from_tensor_slices(((images, images), LABELS)).batch(16)
    assert "of 40 images" in quantize(source, 4, 4, images=data)[1].notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images=dataset(PIXELS).unbatch()), r"single images, .*dataset\.batch\(64\)"),
        (dict(images=dataset(PIXELS).take(0)), "an empty one"),
        (dict(images=dataset(PIXELS / 255), labels=LABELS), "labels beside a dataset"),
        (dict(images=dataset(PIXELS / 255, np.eye(3)[LABELS])), r"float64 of shape \(40, 3\)"),
        (dict(images=dataset(PIXELS / 255, LABELS + 1)), "labels from 0 to 2"),
        (dict(images=dataset(PIXELS)), "Received: 0 to 255"),
        (dict(images=PIXELS.astype(str)), r"images of numbers for the input .*Received: <U3\."),
        (dict(images=PIXELS * 1j), r"images of numbers for the input .*Received: complex128\."),
        (dict(images=iter([PIXELS])), r"batched tf\.data\.Dataset\. Received: \['list_iterator'\]"),
    ],
)
def test_datasets_are_checked(options, message):
    with pytest.raises(ConversionError, match=message):
        quantize(network(), **options)


def test_calibration_takes_datasets(tmp_path):
    """Needed after the first convolution, which no quantizer follows."""
    source = network(layers.Rescaling(1 / 255), layers.Conv2D(4, 1, name="linear"))
    model, _ = quantize(source, 4, 4, residual_bits=None, images=PIXELS)
    floats = PIXELS.astype(np.float32)
    for i, calibration in enumerate((PIXELS, floats, dataset(floats, LABELS), dataset(PIXELS))):
        path = tmp_path / f"{i}.tflite"
        report = to_tflite(model, path, calibration=calibration, snap=False)
        assert list(report.calibrated) == ["linear"]
    assert len({(tmp_path / f"{i}.tflite").read_bytes() for i in range(4)}) == 1
