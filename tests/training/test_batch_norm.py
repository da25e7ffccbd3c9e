import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.training import data
from dlqat_tf.training.batch_norm import reestimate

BATCHES = np.float32([[[0], [2]], [[4], [8]], [[1], [1]]])  # means 1, 6, 1; variances 1, 4, 0


def model_of(norm, **call):
    inputs = tf.keras.Input((1,))
    return tf.keras.Model(inputs, norm(inputs, **call))


def test_statistics_become_the_means_over_batches():
    norm = tf.keras.layers.BatchNormalization(momentum=0.9)
    model = model_of(norm)
    norm.moving_mean.assign([77.0])  # of other weights: nothing is left of it
    count = reestimate(model, tf.data.Dataset.from_tensor_slices(BATCHES))
    assert count == 3
    np.testing.assert_allclose(norm.moving_mean, [8 / 3], rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, [5 / 3], rtol=1e-6)
    assert norm.momentum == 0.9


def test_labels_are_left_aside():
    norm = tf.keras.layers.BatchNormalization()
    data = tf.data.Dataset.from_tensor_slices((BATCHES, np.zeros((3, 2))))
    assert reestimate(model_of(norm), data.take(1)) == 1
    np.testing.assert_allclose(norm.moving_mean, [1.0])


def test_frozen_norms_stay():
    frozen = tf.keras.layers.BatchNormalization()
    frozen.trainable = False
    model = model_of(frozen)
    reestimate(model, tf.data.Dataset.from_tensor_slices(BATCHES))
    assert frozen.moving_mean.numpy().tolist() == [0.0]
    fixed = tf.keras.layers.BatchNormalization()
    reestimate(model_of(fixed, training=False), tf.data.Dataset.from_tensor_slices(BATCHES))
    assert fixed.moving_mean.numpy().tolist() == [0.0]


def test_momenta_come_back_after_an_error():
    norm = tf.keras.layers.BatchNormalization(momentum=0.9)
    with pytest.raises(ValueError, match="incompatible"):
        reestimate(model_of(norm), tf.data.Dataset.from_tensor_slices(np.zeros((2, 2, 5))))
    assert norm.momentum == 0.9
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate(model_of(norm), tf.data.Dataset.from_tensor_slices(BATCHES).take(0))


def test_the_benchmark_counts_images_and_not_batches():
    script = Path(__file__).parents[2] / "benchmarks" / "reestimation.py"
    images = data.load("digits")  # 360 to test on: 250 and 110
    right = iter([True, False])

    class Model:
        def predict_on_batch(self, batch):
            labels = next(given)
            return np.eye(11)[labels if next(right) else np.full_like(labels, 10)]

    given = (labels.numpy() for _, labels in images.test_batches(250))
    found = runpy.run_path(str(script))["_accuracy"](Model(), images)
    assert found == pytest.approx(100 * 250 / 360)
