"""Optimizers decay weights, and nothing that a quantizer learns."""

import gc
import subprocess
import sys
from pathlib import Path

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import CGPACT, PACT
from dlqat_tf.quantizers import ActivationQuantizer
from dlqat_tf.quantizers.weight_decay import _exempt
from dlqat_tf.tfmot import SATScheme

optimizers = tf.keras.optimizers
layers = tf.keras.layers


class StepAndOffset(ActivationQuantizer):
    """Another method: two learned scalars of its own."""

    def build(self, input_shape):
        self.step = self.add_weight("step", shape=(), initializer="ones")
        self.offset = self.add_weight("offset", shape=(), initializer="ones")
        super().build(input_shape)

    def quantize(self, values, training=None):
        return self.step * values + self.offset


def network(quantizer=None, **settings):
    """A dense layer, and a quantizer whose range is 2, in a model that learns nothing else."""
    model = tf.keras.Sequential(
        [tf.keras.Input((3,)), layers.Dense(2, use_bias=False), quantizer or CGPACT(2, 2.0)]
    )
    model.compile(loss=no_loss, **settings)
    return model


def no_loss(labels, predictions):
    """Zero, with gradients of zero: what moves is what decays."""
    return 0.0 * tf.reduce_sum(predictions, axis=1)


def changes(model):
    """Factor on each trainable variable, by its name, after one step."""
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    return {
        variable.name.split("/")[-1].split(":")[0]: float(np.mean(variable.numpy() / old))
        for variable, old in zip(model.trainable_variables, before, strict=True)
    }


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optimizers.AdamW(0.5, weight_decay=0.2),
        lambda: optimizers.SGD(0.5, weight_decay=0.2),
        lambda: optimizers.Adam(0.5, weight_decay=0.2, jit_compile=True),
        lambda: tf.keras.mixed_precision.LossScaleOptimizer(optimizers.SGD(0.5, weight_decay=0.2)),
    ],
)
def test_weights_decay_and_ranges_do_not(optimizer):
    # one step of decay: w - 0.5 * 0.2 * w
    assert changes(network(optimizer=optimizer())) == {"kernel": pytest.approx(0.9), "alpha": 1.0}


def test_the_default_of_adamw():
    kernel, alpha = changes(network(optimizer="adamw")).values()
    assert (kernel, alpha) == (pytest.approx(1 - 0.001 * 0.004, abs=2e-7), 1.0)


@pytest.mark.parametrize("quantizer", [PACT(2, 2.0), CGPACT(4, 2.0, signed=True), StepAndOffset(4)])
def test_whatever_a_quantizer_learns(quantizer):
    kernel, *learned = changes(
        network(quantizer, optimizer=optimizers.SGD(0.5, weight_decay=0.2))
    ).values()
    assert kernel == pytest.approx(0.9)
    assert learned == [1.0] * len(quantizer.trainable_variables)


def test_a_quantizer_inside_a_larq_layer():
    model = tf.keras.Sequential(
        [tf.keras.Input((3,)), lq.layers.QuantDense(2, input_quantizer=CGPACT(2, 2.0))]
    )
    model.layers[0].bias.assign([1.0, 1.0])
    model.compile(optimizers.AdamW(0.5, weight_decay=0.2), no_loss)
    decayed = changes(model)
    assert decayed == {"kernel": pytest.approx(0.9), "bias": pytest.approx(0.9), "alpha": 1.0}


def test_a_quantizer_inside_a_tfmot_wrapper(tmp_path):
    model = tf.keras.Sequential(
        [
            tf.keras.Input((3,)),
            layers.Dense(4, activation="relu", use_bias=False),
            layers.Dense(2, use_bias=False),
        ]
    )
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    model = tfmot.quantization.keras.quantize_apply(annotated, scheme=SATScheme(2, 2))
    model.compile(optimizers.AdamW(0.5, weight_decay=0.2), no_loss)
    model.save(tmp_path / "model.keras")
    custom = {"no_loss": no_loss}
    for each in (model, tf.keras.models.load_model(tmp_path / "model.keras", custom)):
        decayed = changes(each)
        alphas = [factor for name, factor in decayed.items() if name.endswith("alpha")]
        assert alphas == [1.0, 1.0]  # of the input and of the ReLU
        assert decayed["kernel"] == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_after_loading(name, tmp_path):
    network(optimizer=optimizers.AdamW(0.5, weight_decay=0.2)).save(tmp_path / name)
    loaded = tf.keras.models.load_model(tmp_path / name, {"no_loss": no_loss})
    assert changes(loaded) == {"kernel": pytest.approx(0.9), "alpha": 1.0}


TWO_REPLICAS = """
import dlqat_tf, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.quantizers.test_weight_decay import changes, network
with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
    model = network(optimizer=tf.keras.optimizers.SGD(0.5, weight_decay=0.2))
changes(model)
print([float(part) for part in model.layers[1].alpha.values])
"""


def test_on_every_replica_of_a_distribution_strategy():
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", TWO_REPLICAS]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=root)
    assert run.stdout.splitlines()[-1:] == ["[2.0, 2.0]"], run.stderr


def test_exclusions_of_the_user_still_hold():
    model = network(optimizer=optimizers.SGD(0.5, weight_decay=0.2))
    model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    assert changes(model) == {"kernel": 1.0, "alpha": 1.0}


def test_variables_of_others_decay_as_ever():
    optimizer = optimizers.SGD(0.5, weight_decay=0.2)
    alpha = tf.Variable(2.0, name="alpha")
    optimizer.apply_gradients([(tf.constant(0.0), alpha)])
    assert alpha.numpy() == pytest.approx(1.8)


def test_nothing_keeps_deleted_models_alive():
    gc.collect()
    before = len(_exempt)
    quantizer = CGPACT(2)
    quantizer.build((None, 3))
    assert len(_exempt) == before + 1
    del quantizer
    gc.collect()
    assert len(_exempt) == before
