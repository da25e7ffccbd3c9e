"""Float layers before signs: a sum in another order would turn some of them."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.export import parity, to_lce, to_tflite
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import AveragePool, Dense, Input, Output
from dlqat_tf.export.runtimes.float_nodes import FloatNodes
from tests.export.networks import randomize

layers = tf.keras.layers
BINARY = dict(input_quantizer="ste_sign", kernel_quantizer="ste_sign", use_bias=False)


def shortcut_network():
    """The shortcuts of BiRealNet: pools and 1x1 convolutions in float beside binary ones."""
    x = inputs = tf.keras.Input((12, 12, 3))
    x = layers.BatchNormalization()(layers.Conv2D(24, 5, use_bias=False, name="stem")(x))
    for i, strides in enumerate((1, 2)):
        y = lq.layers.QuantConv2D(24 * (i + 1), 3, strides, padding="same", **BINARY)(x)
        if i:
            x = layers.Conv2D(48, 1, name="shortcut")(layers.AveragePooling2D(name="pool")(x))
        x = layers.Add()([layers.BatchNormalization()(y), x])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return randomize(tf.keras.Model(inputs, layers.Dense(4, name="scores")(x)))


@pytest.mark.parametrize(
    ("export", "options", "runtime"),
    [
        (to_lce, {}, None),
        (to_lce, dict(batch_size=None), None),
        (to_tflite, {}, None),
        (to_tflite, {}, "builtin"),
        (to_tflite, dict(kernels="builtin"), None),
    ],
)
def test_the_file_equals_the_simulation_in_every_bit(tmp_path, export, options, runtime):
    model = shortcut_network()
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3)).astype(np.uint8)
    report = export(model, tmp_path / "model.tflite", **options)
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, report.path, images, runtime=runtime)
    assert found.logit_difference["simulation_file"] == 0
    assert found.first_diverging is None


def test_single_nodes_by_hand():
    values = Input(name="values", shape=(2, 2, 1), preprocessing=None)
    pool = AveragePool(
        name="pool", inputs=("values",), size=(2, 2), strides=(2, 2), padding="valid"
    )
    dense = Dense(
        name="dense", inputs=("pool",), weights=np.float32([[4, -4]]), bias=np.float32([0, 1]),
        step=None, bits=32, kernel="float",
    )  # fmt: skip
    network = IntegerNetwork((values, pool, dense, Output(name="end", inputs=("dense",))))
    run = FloatNodes(network, None, "xnnpack", "tflite", binarized=False)
    ones = np.float32([[[[0], [1]], [[2], [3]]], [[[4], [4]], [[4], [4]]]])
    assert run(pool, ones).ravel().tolist() == [1.5, 4.0]
    assert run(dense, np.float32([[[[1.5]]]])).ravel().tolist() == [6.0, -5.0]
