"""What the monitors write, read back from their event files."""

import larq as lq
import numpy as np
import pytest
from tensorflow.python.summary.summary_iterator import summary_iterator

import dlqat_tf
from dlqat_tf import analysis, levels
from dlqat_tf.training.monitoring import MixtureMonitor, QuantizerMonitor

import tensorflow as tf  # isort: skip


def written(folder):
    """Scalars by (name, step), and the shapes of pictures by name."""
    scalars, pictures = {}, {}
    for file in sorted(folder.glob("events*")):
        for event in summary_iterator(str(file)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    encoded = value.tensor.string_val[2]
                    pictures[value.tag] = tf.io.decode_png(encoded).shape
                else:
                    scalars[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return scalars, pictures


def network():
    inputs = tf.keras.Input((2,))
    dense = lq.layers.QuantDense(
        2, use_bias=False, kernel_quantizer=dlqat_tf.SATWeights(1), name="dense"
    )
    x = dlqat_tf.CGPACT(2, alpha_init=3.0, name="act")(dense(inputs))
    dense.kernel.assign([[1.0, 1.0], [1.0, -1.0]])
    return tf.keras.Model(inputs, x)


def test_quantizer_monitor_by_hand(tmp_path):
    model = network()
    # Sums 4 and 0, then 6 and 2: of a range of 3 two of four are beyond, of a range of 5 one.
    monitor = QuantizerMonitor(tmp_path, np.array([[2.0, 2], [4, 2]], np.float32))
    monitor.set_model(model)
    monitor.on_train_begin()
    monitor.on_epoch_begin(3)
    monitor.on_epoch_end(3)
    monitor.on_epoch_begin(4)
    model.get_layer("dense").kernel.assign([[1.0, 1.0], [1.0, 0.5]])  # one of four flips
    model.get_layer("dense").kernel.assign([[1.0, 1.0], [0.5, -1.0]])  # and back: no flip counts
    model.get_layer("act").alpha.assign(5.0)
    monitor.on_epoch_end(4)
    monitor.on_epoch_begin(5)
    model.get_layer("dense").kernel.assign([[1.0, -1.0], [0.5, -1.0]])
    monitor.on_epoch_end(5)
    monitor.on_train_end()
    scalars, pictures = written(tmp_path)
    assert [scalars["flip_rate/dense", step] for step in (3, 4, 5)] == [0.0, 0.0, 0.25]
    assert [scalars["range/act", step] for step in (3, 4)] == [3.0, 5.0]
    assert [scalars["clip_share/act", step] for step in (3, 4)] == [0.5, 0.25]
    assert pictures.keys() == {"activation_ranges", "latent_weights"}
    assert all(height > 100 and width > 100 for height, width, _ in pictures.values())


def test_a_monitor_can_be_closed_before_and_after_training(tmp_path):
    monitor = QuantizerMonitor(tmp_path, np.zeros((1, 2), np.float32))
    monitor.close()
    monitor.on_train_begin()
    monitor.close()
    monitor.close()


def test_a_kernel_that_gets_codes_during_an_epoch_flips_from_the_next_one_on(tmp_path):
    quantizer = dlqat_tf.INQWeights(2)
    layer = lq.layers.QuantDense(2, use_bias=False, kernel_quantizer=quantizer, name="dense")
    model = tf.keras.Sequential([tf.keras.Input((2,)), layer])
    model(np.ones((1, 2), np.float32))
    monitor = QuantizerMonitor(tmp_path, np.ones((1, 2), np.float32))
    monitor.set_model(model)
    monitor.on_train_begin()
    monitor.on_epoch_begin(0)
    quantizer.advance(1.0, layer.kernel)  # freezes all of it
    monitor.on_epoch_end(0)
    monitor.on_epoch_begin(1)
    monitor.on_epoch_end(1)
    monitor.on_train_end()
    scalars, pictures = written(tmp_path)
    assert scalars == {("flip_rate/dense", 1): 0.0}
    assert pictures.keys() == {"latent_weights"}


def test_mixture_monitor_writes_the_statistics(tmp_path):
    inputs = tf.keras.Input((3,))
    x = tf.keras.layers.Dense(2)(inputs)
    model = tf.keras.Model(inputs, dlqat_tf.GaussianMixtureHead(4)(x))
    images = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    labels, loss = np.arange(8) % 4, dlqat_tf.GMLoss(0.5)
    model.compile("sgd", loss)
    model.fit(images, labels, verbose=0, callbacks=[MixtureMonitor(tmp_path, images, labels)])
    expected = analysis.mixture_statistics(
        analysis.features(model, images), labels, model.layers[-1].means, loss
    )
    scalars, _ = written(tmp_path)
    assert scalars == pytest.approx(
        {(f"mixture/{name}", 0): value for name, value in vars(expected).items()}, rel=1e-5
    )


def test_mixture_monitor_refuses_other_losses(tmp_path):
    inputs = tf.keras.Input((3,))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(4)(inputs))
    model.compile("sgd", "mse")
    monitor = MixtureMonitor(tmp_path, np.zeros((1, 3)), [0])
    monitor.set_model(model)
    with pytest.raises(ValueError, match="Received: LinearHead and loss='mse'"):
        monitor.on_train_begin()


def test_monitors_look_at_a_network_within_what_is_trained_and_change_nothing(tmp_path):
    images = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
    labels = np.arange(8) % 4
    network = dlqat_tf.resnet18(4, (8, 8, 3), 1, 2, "gml", width=2)
    teacher = dlqat_tf.resnet18(4, (8, 8, 3), 32, 32, "gml", width=2, residual_bits=32)
    before = network.get_weights()
    for monitor in (
        QuantizerMonitor(tmp_path / "quantizers", images, network),
        MixtureMonitor(tmp_path / "mixture", images, labels, dlqat_tf.GMLoss(), network),
    ):
        monitor.set_model(dlqat_tf.distill(network, teacher))
        monitor.on_train_begin()
        monitor.on_epoch_begin(0)
        monitor.on_epoch_end(0)
        monitor.on_train_end()
    for own, kept in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, kept)
    scalars, _ = written(tmp_path / "quantizers")
    assert {name.split("/")[0] for name, _ in scalars} == {"flip_rate", "range", "clip_share"}
    ranges = levels.activation_ranges(network)
    assert scalars["range/stem_act", 0] == pytest.approx(ranges["stem_act"][1])
    scalars, _ = written(tmp_path / "mixture")
    assert ("mixture/feature_norm", 0) in scalars
