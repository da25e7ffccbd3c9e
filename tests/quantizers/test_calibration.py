import numpy as np
import pytest

import dlqat_tf
from dlqat_tf.quantizers import calibration
from dlqat_tf.quantizers.calibration import (
    calibrate,
    optimal_range,
    optimal_zero_point,
    set_range,
    typical,
)

import tensorflow as tf  # isort: skip


def error(values, alpha, highest):
    step = alpha / highest
    return np.square(np.rint(np.clip(values / step, 0, highest)) * step - values).mean()


def test_values_on_a_grid_are_represented_exactly():
    values = np.array([0, 1, 2, 3] * 10, np.float32)
    assert optimal_range(values, 0, 3) == pytest.approx(3.0)


def test_one_outlier_is_clipped():
    values = np.array([0.0, 1.0] * 1000 + [10.0], np.float32)
    assert optimal_range(values, 0, 3) < 5  # at 10 every 1 would round to 0


def test_range_is_best_among_its_neighbours():
    values = np.maximum(np.random.default_rng(0).standard_normal(20_000), 0)
    alpha = optimal_range(values, 0, 3)
    assert alpha == pytest.approx(1.94, abs=0.1)
    for factor in (0.8, 1.25, 4.0):
        assert error(values, alpha, 3) < error(values, factor * alpha, 3)


def test_negative_values_count_only_for_signed_grids():
    values = np.array([-4.0] * 10 + [1.0] * 10, np.float32)
    assert optimal_range(values, 0, 255) == pytest.approx(1.0, rel=0.02)
    assert optimal_range(values, -127, 127) == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize(
    ("values", "zero_point"),
    [(np.arange(16), 0), (np.arange(-1, 15), 1), (np.arange(-3, 13), 3), (np.arange(-8, 8), 8)],
)
def test_the_zero_point_of_values_on_a_grid(values, zero_point):
    assert optimal_zero_point(np.float32(values) / 7, 4) == zero_point


def test_two_bits_leave_what_is_little_below_zero():
    normal = tf.constant(np.random.default_rng(0).standard_normal(10_000), tf.float32)
    assert optimal_zero_point(tf.nn.swish(normal).numpy(), 2) == 0
    assert optimal_zero_point(tf.nn.swish(normal).numpy(), 4) == 1


def test_nothing_to_represent():
    assert optimal_range(-np.ones(5, np.float32), 0, 3) == 1.0


def test_an_image_of_another_size_is_left_out():
    values = np.random.default_rng(0).standard_normal((100, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(typical(values), values)
    values[7] *= 100
    np.testing.assert_array_equal(typical(values), np.delete(values, 7, axis=0))


def test_an_image_of_another_size_is_one_beyond_16_times_what_95_percent_stay_below():
    values = np.ones((100, 2), np.float32)
    values[7] = 3.9  # a mean square of 15.2, where the others have 1
    assert len(typical(values)) == 100
    values[7] = 4.1  # 16.8
    np.testing.assert_array_equal(typical(values), np.ones((99, 2)))
    values[:10] = 100.0  # a tenth of the images is none of chance: 95 % stay below 10,000
    assert len(typical(values)) == 100
    values[7] = 401.0  # 160,801
    np.testing.assert_array_equal(typical(values), np.delete(values, 7, axis=0))


@pytest.mark.parametrize(("size", "stays"), [(3.0, True), (5.0, False)])
def test_another_size_is_four_times_that_of_most(size, stays):
    values = np.ones((40, 2), np.float32)
    values[0] = size  # a mean square of 9 or 25, where 16 is the limit
    assert len(typical(values)) == (40 if stays else 39)


def test_few_images_and_zeros_stay():
    np.testing.assert_array_equal(typical(np.float32([[1.0], [100.0]])), [[1], [100]])
    assert len(typical(np.zeros((50, 2), np.float32))) == 50
    assert len(typical(np.full((50, 2), np.nan, np.float32))) == 50


def test_one_image_of_another_size_does_not_decide_a_range():
    """As in a network whose ranges all began at what a blank image made of it, and that died."""
    inputs = tf.keras.Input((4, 4, 1))
    x = tf.keras.layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones")(inputs)
    reference = tf.keras.Model(inputs, tf.keras.layers.ReLU(name="act")(x))
    model = tf.keras.Model(inputs, dlqat_tf.CGPACT(2, name="act")(x))
    images = np.random.default_rng(0).standard_normal((200, 4, 4, 1)).astype(np.float32)
    alone = calibrate(model, reference, images)["act"]
    images[0] *= 1000
    assert calibrate(model, reference, images)["act"] == pytest.approx(alone, rel=0.05)


def test_a_range_is_no_smaller_than_alpha_may_be():
    quantizer = dlqat_tf.CGPACT(2)
    quantizer.build(())
    assert set_range(quantizer, np.full(4, 1e-5, np.float32)) == 1e-3
    assert quantizer.alpha.numpy() == np.float32(1e-3)


@pytest.mark.parametrize("trained", [True, False])
def test_calibrate_sets_every_range_and_leaves_the_reference_alone(trained):
    model = dlqat_tf.resnet18(10, (8, 8, 1), 1, 2, width=4, residual_bits=8)
    reference = dlqat_tf.resnet18(10, (8, 8, 1), 32, 32, width=4, residual_bits=32)
    before = reference.get_weights()
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    ranges = calibrate(model, reference, images, trained=trained)
    assert len(ranges) == 17 + 8 + 3
    for name, alpha in ranges.items():
        assert model.get_layer(name).alpha.numpy() == np.float32(alpha)
    for a, b in zip(before, reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_reference_of_another_network_is_refused():
    inputs = tf.keras.Input((1,))
    model, other = (
        tf.keras.Model(inputs, dlqat_tf.CGPACT(bits, name=name)(inputs))
        for bits, name in ((2, "act"), (32, "other"))
    )
    with pytest.raises(ValueError, match=r"layer named 'act'.*other"):
        calibrate(model, other, np.ones((1, 1), np.float32))


def test_untrained_reference_uses_the_statistics_of_the_images():
    inputs = tf.keras.Input((1,))
    normed = tf.keras.layers.BatchNormalization(name="bn")(100.0 * inputs)
    model = tf.keras.Model(inputs, dlqat_tf.CGPACT(8, name="act")(normed))
    reference = tf.keras.Model(inputs, dlqat_tf.CGPACT(32, name="act")(normed))
    images = np.array([[-1.0], [1.0]], np.float32)
    assert calibrate(model, reference, images, trained=False)["act"] == pytest.approx(1, rel=0.05)
    assert calibrate(model, reference, images, trained=True)["act"] == pytest.approx(100, rel=0.05)


def test_images_are_run_in_equal_batches(monkeypatch):
    monkeypatch.setattr(calibration, "_BATCH_NUMBERS", 0)
    monkeypatch.setattr(calibration, "SAMPLE", 30)
    sizes = []

    class Seen(tf.keras.layers.Layer):
        def call(self, inputs):
            if inputs.shape[0]:
                sizes.append(inputs.shape[0])
            return inputs

    inputs = tf.keras.Input((4,))
    reference = tf.keras.Model(inputs, tf.keras.layers.ReLU(name="act")(Seen()(inputs)))
    model = tf.keras.Model(inputs, dlqat_tf.CGPACT(2, name="act")(inputs))
    images = np.tile(np.float32([0, 1, 2, 3]), (70, 1))
    seen = []
    monkeypatch.setattr(calibration, "optimal_range", lambda values, *_: seen.append(values) or 2.5)
    assert calibrate(model, reference, images) == {"act": 2.5}
    assert sizes == [35, 35]  # at least 32 are in one
    assert seen[0].shape == (30,)
    assert set(seen[0]) <= {0, 1, 2, 3}
    assert calibrate(model, reference, images[:32]) == {"act": 2.5}
    assert sizes[2:] == [32]


def test_batches_do_not_change_ranges_of_few_values(monkeypatch):
    model, reference = (dlqat_tf.resnet18(10, (8, 8, 1), 1, bits, width=4) for bits in (2, 32))
    images = np.random.default_rng(0).random((70, 8, 8, 1), np.float32)
    at_once = calibrate(model, reference, images)
    monkeypatch.setattr(calibration, "_BATCH_NUMBERS", 0)
    in_batches = calibrate(model, reference, images)
    for name, alpha in at_once.items():
        assert in_batches[name] == pytest.approx(alpha, rel=1e-5)


def chain(make, blocks=8):
    """A regression by residual blocks whose norms make activations of size 4, each rounded."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    x = inputs = tf.keras.Input((8,))
    for number in range(blocks + 1):
        norm = layers.BatchNormalization(gamma_initializer=tf.keras.initializers.Constant(4.0))
        branch = norm(layers.Dense(16)(x))
        x = make(name=f"act_{number}")(layers.Add()([x, branch]) if number else branch)
    return tf.keras.Model(inputs, layers.Dense(1)(layers.BatchNormalization()(x)))


@pytest.mark.parametrize(
    "quantizer", [dlqat_tf.PACT, dlqat_tf.DoReFaActivations, dlqat_tf.ABCNetActivations]
)
def test_deep_networks_whose_activations_start_from_images_learn(quantizer):
    x = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    y = np.abs(x[:, :1]) - x[:, 1:2]
    y = (y - y.mean()) / y.std()
    model = chain(lambda name: quantizer(2, name=name))
    assert len(calibrate(model, chain(tf.keras.layers.ReLU), x, trained=False)) == 9
    model.compile(tf.keras.optimizers.SGD(0.01, 0.9), "mse")
    losses = model.fit(x, y, 64, 30, verbose=0, shuffle=False).history["loss"]
    # Clipped to [0, 1], or with half of the gradient a layer, 0.8 and more were left.
    assert np.mean(losses[-5:]) < 0.6
