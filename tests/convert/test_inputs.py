"""What inputs take, and where their values are rounded."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import ConversionError, InputQuantizer, Preprocessing, quantize
from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.preprocessing import NAMED, RAW, UNIT, ChannelAffine

layers = tf.keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3)).astype(np.float32)


def network(*front, shape=(6, 6, 3)):
    return tf.keras.Sequential(
        [
            tf.keras.Input(shape, name="input"),
            *front,
            layers.Flatten(name="flat"),
            layers.Dense(4, activation="relu", name="hidden"),
            layers.Dense(3, name="scores"),
        ]
    )


def quantizers(model):
    return [layer for layer in model.layers if isinstance(layer, InputQuantizer)]


def test_pixels_are_codes_as_they_are():
    assert not quantizers(quantize(network(), images=PIXELS / 255)[0])
    assert not quantizers(quantize(network(layers.Rescaling(1 / 255)), images=PIXELS)[0])
    assert not quantizers(quantize(network(), preprocessing=UNIT)[0])


@pytest.mark.parametrize(
    ("front", "images", "preprocessing", "alpha", "signed"),
    [
        # -1 to 1 in codes to 127; 1 to 11 in codes to 255; -10 to 5: -10 / 128 a code.
        (layers.Rescaling(1 / 127.5, -1.0), PIXELS, RAW, 1.0, True),
        (layers.Rescaling(10 / 255, 1.0), PIXELS, RAW, 11.0, False),
        (layers.Rescaling(15 / 255, -10.0), PIXELS, RAW, 10 * 127 / 128, True),
        # Fractions from 0 to 1 are pixels that were divided before.
        (layers.Rescaling(2.0, -1.0), PIXELS / 255, UNIT, 1.0, True),
        (layers.Rescaling(2.0, -1.0), None, RAW, 509.0, True),
        (layers.Normalization(mean=100.0, variance=25.0), PIXELS, RAW, 31.0, True),
    ],
)
def test_range_of_prepared_pixels(front, images, preprocessing, alpha, signed):
    model, report = quantize(network(front), images=images)
    (quantizer,) = quantizers(model)
    assert quantizer.name == "input_codes"
    assert quantizer.preprocessing == preprocessing
    assert float(quantizer.alpha) == pytest.approx(alpha)
    assert (quantizer.signed, quantizer.bits, quantizer.trainable) == (signed, 8, False)
    assert "input_codes" not in report.ranges
    assumed = "'input' is taken to be pixels from 0 to 255" in "".join(report.notes)
    assert assumed == (images is None)


def test_the_quantizer_is_behind_all_that_prepares():
    """Operators become a layer that can be saved; a reversal of the channels is one of them."""
    inputs = tf.keras.Input((6, 6, 3), name="input")
    x = tf.keras.applications.resnet50.preprocess_input(inputs)
    x = layers.Dense(3)(layers.Flatten()(layers.Dropout(0.1)(x)))
    model, report = quantize(tf.keras.Model(inputs, x), images=PIXELS)
    kinds = [type(layer) for layer in model.layers[1:4]]
    assert kinds == [ChannelAffine, ChannelAffine, InputQuantizer]
    (quantizer,) = quantizers(model)
    step = float(quantizer.alpha) / 127
    rounded = tf.keras.Model(model.input, quantizer.output)(PIXELS)
    assert np.abs(rounded - NAMED["caffe"](PIXELS)).max() <= 0.501 * step
    assert report.conversions[0].became == "ChannelAffine"
    assert "outputs rounded by input_codes" in report.conversions[1].note


def test_measurements_have_the_range_of_the_images():
    values = np.float32([[-3, 1, 2], [1, 2, 6.35], [0, 0, 0]])
    model, report = quantize(network(shape=(3,)), images=values)
    (quantizer,) = quantizers(model)
    assert (quantizer.preprocessing, quantizer.signed, quantizer.trainable) == (None, True, True)
    assert report.ranges["input_codes"] == pytest.approx(6.35, rel=0.02)
    model, _ = quantize(network(shape=(3,)), images=np.abs(values))
    assert not quantizers(model)[0].signed
    model, _ = quantize(network(shape=(3,)), images=values, residual_bits=32)
    assert quantizers(model)[0].bits == 32
    overrides = {"input": {"residual_bits": 5}}
    model, _ = quantize(network(shape=(3,)), images=values, overrides=overrides)
    assert quantizers(model)[0].bits == 5


def test_measurements_are_normalised_before_they_are_rounded():
    for norm in (layers.BatchNormalization(name="norm"), layers.Normalization(mean=1, variance=4)):
        model, _ = quantize(network(norm, shape=(3,)), images=np.float32([[1, 2, 3], [3, 4, 5]]))
        (quantizer,) = quantizers(model)
        before = quantizer.input.node.layer
        assert before.name == norm.name
    assert type(before) is ChannelAffine


def test_features_of_unequal_size_are_noted():
    """One step of 8 bits for all: of 1000 / 127 here."""
    values = np.float32([[-1000, 0, 0], [1000, 31, 5]])
    _, report = quantize(network(shape=(3,)), images=values)
    assert any("they share: 2 of 3 of 'input'. Put" in note for note in report.notes)
    _, report = quantize(network(shape=(3,)), images=values[:, :1] * np.float32([1, 1, 0]))
    assert not any("differ by less" in note for note in report.notes)
    # What a concatenation brings together shares its step too.
    inputs = [tf.keras.Input((2,), name=name) for name in ("large", "small")]
    source = tf.keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(inputs)))
    _, report = quantize(source, images=[values[:, :2] * 100, values[:, 1:]])
    assert any("1 of 2 of 'large', 2 of 2 of 'small'. Put" in note for note in report.notes)


@pytest.mark.parametrize(
    ("images", "preprocessing", "note"),
    [
        (PIXELS, RAW, ""),
        (PIXELS * 0.99, RAW, 'they are no images, pass preprocessing="values"'),
        (PIXELS / 255, UNIT, ""),
        (PIXELS - 80, None, "from -80 to 175, which are not pixels: files take these values"),
    ],
)
def test_what_a_model_prepares_need_not_be_pixels(images, preprocessing, note):
    """Such as spectrograms, which often come before a Normalization."""
    model, report = quantize(network(layers.Normalization(mean=3.0, variance=4.0)), images=images)
    (quantizer,) = quantizers(model)
    assert quantizer.preprocessing == preprocessing
    assert note in "".join(report.notes)
    assert bool(note) == bool(report.notes)


def test_images_may_be_said_to_be_none():
    model, _ = quantize(network(), images=PIXELS, preprocessing="values")
    (quantizer,) = quantizers(model)
    assert (quantizer.preprocessing, quantizer.signed) == (None, False)


def test_preprocessing_by_name():
    inputs = [tf.keras.Input((6, 6, 3), name=name) for name in ("left", "right")]
    x = layers.Concatenate()([layers.Flatten()(each) for each in inputs])
    source = tf.keras.Model(inputs, layers.Dense(3)(x))
    images = [PIXELS / 255, PIXELS / 127.5 - 1]
    model, _ = quantize(source, images=images, preprocessing={"right": "tf"})
    (quantizer,) = quantizers(model)
    assert (quantizer.name, quantizer.preprocessing) == ("right_codes", NAMED["tf"])
    with pytest.raises(ConversionError, match=r"by input name, of left, right\. Received: top"):
        quantize(source, preprocessing={"top": "tf"})


@pytest.mark.parametrize(
    ("front", "images", "preprocessing", "message"),
    [
        ([], PIXELS, "caffe", r"from -123\.68 to 151\.061 .*Prepare the images as preproc"),
        ([], None, "imagenet", "For the input 'input'.*\"values\" stands for inputs that are no"),
        ([], None, Preprocessing((1.0, 2.0)), "mean to be one number or 3, one for each channel"),
        ([layers.Rescaling(1 / 255)], PIXELS / 255, None, "rescales by 1 / 255 itself: pass the"),
        ([layers.Rescaling(2.0)], PIXELS * 2, RAW, "from 0 to 255 .*prepares pixels itself"),
    ],
)
def test_what_does_not_fit_is_refused(front, images, preprocessing, message):
    with pytest.raises(ConversionError, match=message):
        quantize(network(*front), images=images, preprocessing=preprocessing)


def test_preparation_is_of_float32_under_any_policy():
    """Of bfloat16, which has 8 bits, 255 / 256 would be as good as 1."""
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        source = network(
            layers.Rescaling(1 / 127.5, -1.0), layers.Normalization(mean=0.1, variance=1)
        )
        model, _ = quantize(source, images=PIXELS)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    rounded = tf.keras.Model(model.input, quantizers(model)[0].output)
    values = rounded(np.arange(255 - 107, 256, dtype=np.float32).reshape(1, 6, 6, 3)).numpy()
    assert len(np.unique(values)) > 90
    assert dlqat_tf.export.lower(model)["input_codes"].codes.max() == 105  # 0.9 / 1.1 * 128


def words(*behind, dtype=None, **options):
    """A classifier of texts of four words, of which there are 5,000."""
    tf.keras.utils.set_random_seed(0)
    return tf.keras.Sequential(
        [
            tf.keras.Input((4,), dtype=dtype, name="words"),
            layers.Embedding(5000, 6, name="embedding", **options),
            *behind,
            layers.Dense(4, activation="relu", name="hidden"),
            layers.Dense(3, name="scores"),
        ]
    )


WORDS = np.random.default_rng(0).integers(0, 5000, (16, 4))


@pytest.mark.parametrize(
    ("source", "export"),
    [
        (lambda: words(layers.GlobalAveragePooling1D()), to_tflite),
        (lambda: words(layers.Conv1D(4, 2), layers.Flatten(), dtype="int32"), to_tflite),
        (lambda: words(layers.Reshape((24,)), dtype="int64"), to_lce),
    ],
)
def test_words_are_looked_up_by_their_numbers(tmp_path, source, export):
    """Rounded to 256 codes they would be other words."""
    source = source()
    model, report = quantize(source, 8, 8, None, images=WORDS)
    assert not quantizers(model)
    assert any("'Embedding' has no quantized form" in note for note in report.notes)
    expected = source(WORDS).numpy()
    np.testing.assert_allclose(model(WORDS), expected, atol=0.05 * np.abs(expected).max())
    exported = export(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    assert parity(snapped, exported.path, WORDS).failures() == []


def test_numbers_of_words_beside_values_of_one_input():
    inputs = tf.keras.Input((6,), name="both")
    looked_up = layers.Flatten()(layers.Embedding(5000, 4, name="embedding")(inputs[:, :2]))
    x = layers.Concatenate()([looked_up, layers.Dense(4, activation="relu")(inputs[:, 2:])])
    source = tf.keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(ConversionError, match=r"input of its own for 'embedding' \(Embedding\)"):
        quantize(source, head=None)


def test_layers_that_read_a_mask_are_refused():
    source = words(layers.GlobalAveragePooling1D(name="mean"), mask_zero=True)
    with pytest.raises(ConversionError, match=r"'mean' .*reads a mask.* mask_zero=False"):
        quantize(source, head=None, images=WORDS)
