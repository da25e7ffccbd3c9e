import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import (
    DSQActivations,
    DSQWeights,
    HAWQActivations,
    LQNetActivations,
    LQNetWeights,
    QuantizationNetworksWeights,
)
from dlqat_tf.quantizers import DepthwiseWeights
from dlqat_tf.training import data
from dlqat_tf.training.batch_norm import reestimate
from tests.quantizers.methods import fit, small_model
from tests.tfmot.networks import applied, network

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


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (LQNetWeights(2), LQNetActivations(2)),
        (DSQWeights(2), HAWQActivations(2)),
        (QuantizationNetworksWeights(2), DSQActivations(2)),
        (DepthwiseWeights(LQNetWeights(2)), LQNetActivations(2)),
    ],
    ids=["lqnet", "dsq and hawq", "quantization networks and dsq", "depthwise"],
)
def test_statistics_are_those_of_the_network_that_is_deployed(weights, activations):
    model = small_model(weights, activations)
    fit(model)
    norm = model.layers[2]
    batches = np.random.default_rng(1).normal(0, 3, (3, 4, 2, 2, 2)).astype(np.float32)
    before = {each.name: each.numpy() for each in model.variables}
    reestimate(model, tf.data.Dataset.from_tensor_slices(batches))
    moved = {name for name, value in before.items() if np.any(value != model_value(model, name))}
    assert moved == {norm.moving_mean.name, norm.moving_variance.name}
    outputs = tf.keras.Model(model.input, norm.input)
    deployed = np.stack([outputs(batch, training=False) for batch in batches])
    np.testing.assert_allclose(norm.moving_mean, deployed.mean((0, 1, 2, 3)), 1e-4, 1e-5)


def model_value(model, name):
    (variable,) = [each for each in model.variables if each.name == name]
    return variable.numpy()


def test_quantizers_of_tf_mot_stay():
    model = applied(network(), 2, 2, method="lqnet")
    before = {each.name: each.numpy() for each in model.variables}
    reestimate(model, tf.data.Dataset.from_tensors(np.ones((4, 8, 8, 3), np.float32)))
    moved = {name for name, value in before.items() if np.any(value != model_value(model, name))}
    assert moved
    assert all("moving_" in name for name in moved)


def test_quantizers_train_again_after_an_error():
    quantizer = LQNetActivations(2)
    model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1), quantizer])
    before = quantizer.basis.numpy()
    with pytest.raises(ValueError, match="incompatible"):
        reestimate(model, tf.data.Dataset.from_tensors(np.zeros((2, 5))))
    quantizer(np.ones((2, 1)), training=True)
    assert np.any(quantizer.basis != before)
