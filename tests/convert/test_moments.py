import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import quantize
from dlqat_tf.convert.moments import Moments, distance, is_settled, settled
from tests.convert.networks import residual

layers = tf.keras.layers


def norm_with(mean, variance, epsilon=0.0):
    norm = layers.BatchNormalization(epsilon=epsilon)
    norm.build((None, len(mean)))
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    return norm


def test_moments_of_batches_by_hand():
    moments = Moments()
    moments.add(tf.constant([[1.0, 5.0], [3.0, 5.0]]))
    moments.add(tf.constant([[[5.0, 5.0], [7.0, 5.0]]]))
    np.testing.assert_allclose(moments.mean, [4, 5])
    np.testing.assert_allclose(moments.variance, [5, 0])


def test_a_settled_copy_has_the_statistics_of_its_inputs():
    norm = norm_with([0.0], [1.0])
    norm.gamma.assign([3.0])
    copy = settled(norm, [tf.constant([[1.0], [3.0]]), tf.constant([[5.0], [7.0]])])
    assert (copy.moving_mean, copy.moving_variance, copy.gamma) == ([4.0], [5.0], [3.0])
    assert (norm.moving_mean, norm.moving_variance) == ([0.0], [1.0])


def test_distance_by_hand():
    # Inputs of mean 1 and deviation 2 become x / 1 instead of (x - 1) / 2, which is 1 +- 2 instead
    # of +-1; the other channel is right.
    assert distance(norm_with([0, 4], [1, 9]), norm_with([1, 4], [4, 9])) == pytest.approx(1.0)
    # The epsilon counts: deviations 3 and 2.
    kept, other = norm_with([0], [5], epsilon=4.0), norm_with([0], [0], epsilon=4.0)
    assert distance(kept, other) == 0
    assert distance(other, kept) == pytest.approx(np.sqrt(5) * (1 / 2 - 1 / 3))


def test_few_images_have_statistics_of_their_own():
    assert is_settled(0.5, images=4)
    assert not is_settled(0.51, images=4)
    assert not is_settled(0.3, images=400)


def one_norm(training=None):
    """Two equal channels, class 0 where relu((x - mean) / deviation) > 0.25; averages 0 and 1."""
    inputs = tf.keras.Input((1, 1, 1))
    x = layers.Conv2D(2, 1, kernel_initializer="ones", use_bias=False)(inputs)
    x = layers.BatchNormalization(epsilon=0.04, name="norm")(x, training=training)
    x = layers.Flatten()(layers.ReLU(name="act")(x))
    model = tf.keras.Model(inputs, layers.Dense(2, name="last")(x))
    model.get_layer("last").set_weights([np.float32([[0.5, -0.5]] * 2), np.float32([0, 0.5])])
    return model


# Mean 0.4, variance 0.05, with the epsilon a deviation of 0.3: the outputs -1, -1/3, 1/3 and 1.
IMAGES = np.float32([0.1, 0.3, 0.5, 0.7]).reshape(4, 1, 1, 1)


@pytest.mark.parametrize("labels", [None, np.array([1, 1, 0, 0])])
def test_averages_that_have_not_settled_are_those_of_the_images(labels):
    source = one_norm()
    before = source.get_weights()
    model, report = quantize(source, 8, 8, "linear", images=IMAGES, labels=labels, batch_size=3)
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, [0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, [0.05, 0.05], rtol=1e-5)
    assert model.get_layer("act").alpha.numpy() == pytest.approx(1.0, abs=0.03)
    assert list(report.ranges) == ["act"]
    for one, other in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    # sqrt(0.05 * (1 / 0.3 - 1 / 1.02)^2 + (0.4 / 1.02)^2) is 0.66; the kept averages give class 0
    # to 0.3, too.
    (note,) = report.notes
    assert "the averages of 'norm' are off by 0.66 standard deviations" in note
    expected = "Its classes are those of training mode for 75.0% of the images."
    if labels is not None:
        expected = "It is right on 75.0% of the images, there on 100.0%."
    assert expected in note


def frozen():
    model = one_norm()
    model.get_layer("norm").trainable = False
    return model


def in_inference_mode():
    return one_norm(training=False)


def near():
    model = one_norm()
    model.get_layer("norm").moving_mean.assign([0.45, 0.45])
    model.get_layer("norm").moving_variance.assign([0.05, 0.05])
    return model


@pytest.mark.parametrize("make", [frozen, in_inference_mode, near])
def test_frozen_norms_and_settled_averages_are_kept(make):
    source = make()
    model, report = quantize(source, 8, 8, "linear", images=IMAGES)
    assert not [note for note in report.notes if "settled" in note]
    for name in ("moving_mean", "moving_variance"):
        ours, theirs = (getattr(each.get_layer("norm"), name) for each in (model, source))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(("mean", "is_near"), [(0.8, True), (5.0, False)])
def test_a_shared_norm_is_settled_where_its_averages_are_those_of_all_calls(mean, is_near):
    """Its calls read x and 3 x: means of 0.4 and 1.2, variances of 0.05 and 0.45."""
    inputs = tf.keras.Input((1, 1, 1))
    norm, read = layers.BatchNormalization(epsilon=0.04, name="norm"), []
    for gain in (1.0, 3.0):
        start = tf.keras.initializers.Constant(gain)
        x = layers.Conv2D(1, 1, kernel_initializer=start, activation="relu")(inputs)
        read.append(layers.Flatten()(norm(x)))
    norm.moving_mean.assign([mean])
    norm.moving_variance.assign([0.25])
    source = tf.keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(read)))
    model, report = quantize(source, 32, 32, "linear", images=IMAGES, residual_bits=32)
    assert any("settled" in note for note in report.notes) != is_near
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, [0.8], rtol=1e-5)
    np.testing.assert_allclose(model.get_layer("norm").moving_variance, [0.25], rtol=1e-5)


def test_training_goes_on_where_the_source_was(digits):
    tf.keras.utils.set_random_seed(0)
    source = residual()
    for layer in source.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.999
    crossentropy = tf.keras.losses.SparseCategoricalCrossentropy
    source.compile(tf.keras.optimizers.Adam(3e-3), crossentropy(), metrics=["accuracy"])
    source.fit(*digits[:2], batch_size=64, epochs=3, verbose=0)
    assert source.evaluate(*digits[2:], verbose=0)[1] < 0.5
    images, labels = digits[0][:256], digits[1][:256]
    model, report = quantize(source, 8, 8, "linear", images=images, labels=labels)
    assert "have not settled" in report.notes[0]
    model.compile(loss=crossentropy(from_logits=True), metrics=["accuracy"])
    assert model.evaluate(*digits[2:], verbose=0)[1] > 0.85
    with tf.GradientTape() as tape:
        loss = crossentropy(from_logits=True)(labels, model(images, training=True))
    in_training = crossentropy()(labels, source(images, training=True))
    assert float(loss) == pytest.approx(float(in_training), rel=0.3)
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert np.abs(gradient).max() < 10
