import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import LSQActivations, LSQWeights
from dlqat_tf.quantizers.lsq import learned_step
from tests.quantizers.methods import check_grid, fit, kernels, small_model


def test_values_and_gradients_by_hand():
    # Step 0.5, codes -2 to 1: x / s = -3, -1.2, 0.2, 0.9, 4.
    x = tf.constant([-1.5, -0.6, 0.1, 0.45, 2.0])
    step = tf.constant(0.5)
    upstream = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch([x, step])
        y = learned_step(x, step, -2, 1, 16)
    from_x, from_step = tape.gradient(y, [x, step], upstream)
    np.testing.assert_allclose(y, [-1, -0.5, 0, 0.5, 0.5])
    np.testing.assert_array_equal(from_x, [0, 2, 3, 4, 0])
    by_hand = 1 * -2 + 2 * (-1 + 1.2) + 3 * (0 - 0.2) + 4 * (1 - 0.9) + 5 * 1
    assert float(from_step) == pytest.approx(by_hand / 4, rel=1e-5)  # g = 1 / sqrt(16 * 1)


def test_n_is_the_weights_or_the_features_of_one_image():
    kernel = np.full((2, 8), 100.0, np.float32)  # beyond the highest code, 7
    weights = LSQWeights(4)
    weights.build(kernel.shape)
    weights.started.assign(1)
    images = np.full((5, 3, 4), 1000.0, np.float32)
    activations = LSQActivations(2)
    activations.build(images.shape)
    activations.started.assign(1)
    for quantizer, x, top, count in ((weights, kernel, 7, 16), (activations, images, 3, 12)):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(quantizer(x))
        expected = x.size * top / np.sqrt(count * top)
        assert float(tape.gradient(y, quantizer.step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_step_starts_from_the_first_batch_and_only_from_it(bits):
    quantizer, top = LSQActivations(bits), 2**bits - 1
    first, second = tf.constant([[1.0, -3.0]]), tf.constant([[90.0, 90.0]])
    quantizer(second)  # not training
    with pytest.raises(ValueError, match="has no integer grid: train it for a step first"):
        quantizer.grid()
    quantizer(first, training=True)
    expected = 2 * (1 + 0) / 2 / np.sqrt(top)  # of what is rectified
    assert float(quantizer.step) == pytest.approx(expected, rel=1e-6)
    quantizer(second, training=True)
    grid = quantizer.grid()
    assert grid.step == pytest.approx(expected, rel=1e-6)
    assert (grid.lowest, grid.highest) == (0, top)
    np.testing.assert_array_equal(quantizer(second), np.full((1, 2), np.float32(top) * grid.step))


@pytest.mark.parametrize("training", [True, tf.constant(True)])
def test_the_step_of_weights_follows_the_kernel_until_training(training):
    quantizer = LSQWeights(3)  # codes -4 to 3
    for kernel in (np.float32([[1, -1]]), np.float32([[3, -5]])):
        expected = 2 * np.abs(kernel).mean() / np.sqrt(3)
        assert quantizer.grid(kernel).step == pytest.approx(expected, rel=1e-6)
        check_grid(quantizer, kernel)
    quantizer(kernel, training=training)
    assert quantizer.grid(np.ones((1, 2))).step == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(kernel=kernels, bits=st.sampled_from(range(2, 9)))
def test_properties(kernel, bits):
    grid = check_grid(LSQWeights(bits), kernel)
    assert grid.codes.min() >= -(2 ** (bits - 1))
    assert grid.codes.max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model"])
def test_a_saved_model_does_not_start_anew(tmp_path, name):
    model = fit(small_model(LSQWeights(2), LSQActivations(2)))
    model.save(tmp_path / name)
    loaded = tf.keras.models.load_model(tmp_path / name)
    assert sum("started" in weight.name for weight in loaded.weights) == 2
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for each in (model, loaded):
        each.compile(tf.keras.optimizers.SGD(0.1), "mse")
        fit(each)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_starts_and_trains_under_a_strategy():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = small_model(LSQWeights(2), LSQActivations(2))
    fit(model, 2)
    values = [(weight.name, weight.numpy()) for weight in model.weights]
    assert [value for name, value in values if "started" in name] == [1, 1]
    assert all(value not in (0, 1) for name, value in values if name.endswith("step:0"))
    assert model.layers[3].grid().step == model.layers[3].step.numpy()


@pytest.mark.parametrize("bits", [1, 9, True, "2"])
def test_widths_of_weights(bits):
    with pytest.raises(ValueError, match=r"LSQ of weights defines 2, 3, 4, 5, 6, 7, 8 bits, and"):
        LSQWeights(bits)


def test_32_bits():
    x = np.float32([[-1.0, 0.3]])
    np.testing.assert_array_equal(LSQWeights(32)(x), x)
    np.testing.assert_array_equal(LSQActivations(32)(x), [[0, x[0, 1]]])
    with pytest.raises(ValueError, match="32 bits are not rounded"):
        LSQActivations(32).grid()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_training_has_the_values_and_gradients_of_the_formula(bits):
    """With values at both ends, between them and beyond, before a batch norm and behind one."""
    top, step = 2**bits - 1, 0.25
    quantizer = LSQActivations(bits)
    x = tf.constant(np.random.default_rng(0).normal(0, step * top, (6, 5, 5, 3)), tf.float32)
    x = tf.concat([x, tf.fill([6, 5, 5, 1], step * top), tf.zeros([6, 5, 5, 1])], axis=-1)
    quantizer.build(x.shape)
    quantizer.step.assign(step)
    quantizer.started.assign(1)
    upstream = tf.random.stateless_normal(x.shape, (0, 1))

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function()
        return y, *tape.gradient(y, [x, quantizer.step], upstream)

    expected = gradients(
        lambda: learned_step(x, tf.convert_to_tensor(quantizer.step), 0, top, 5 * 5 * 5)
    )
    for function in (gradients, tf.function(gradients, autograph=False)):
        found = function(lambda: quantizer(x, training=True))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-4)


REPLICAS = """
import math

import dlqat_tf
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def check(first, second, step):
    with strategy.scope():
        quantizer = dlqat_tf.LSQActivations(1)
        quantizer.build((None, 2))
    shares = [tf.reshape(tf.constant(share, tf.float32), (-1, 2)) for share in (first, second)]
    values = strategy.experimental_distribute_values_from_function(
        lambda context: shares[context.replica_id_in_sync_group]
    )
    strategy.run(tf.function(lambda x: quantizer(x, training=True)), (values,))
    for replica in range(2):
        steps, flags = map(strategy.experimental_local_results, (quantizer.step, quantizer.started))
        found = float(steps[replica]), float(flags[replica])
        assert found == (1 if step is None else step, step is not None), (first, second, found)


check([1, 1], [3, 3], 4)
for refused in ([], [math.inf, 1]):
    check([1, 1], refused, 2)
    check(refused, [1, 1], 2)
    check(refused, refused, None)
"""


def test_replicas_start_from_the_mean_of_their_steps():
    """2 * 1 and 2 * 3; of an empty share or one that overflowed, from the other one's alone.

    tf.distribute wants its devices named first.
    """
    subprocess.run([sys.executable, "-c", REPLICAS], check=True)
