"""Parts of a model without an integer form, and how they are put together."""

import dlqat_tf  # noqa: F401, I001  (first: it decides which Keras is used)
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT
from dlqat_tf.export import ExportError, lower
from dlqat_tf.export.integer.nodes import Island
from dlqat_tf.export.integer.simulate import Simulation

layers = tf.keras.layers
IMAGES = np.arange(2 * 2 * 2 * 2, dtype=np.uint8).reshape(2, 2, 2, 2)


def islands(network):
    return [(node.inputs, node.layers) for node in network if isinstance(node, Island)]


def test_layers_without_an_integer_form_that_follow_each_other_are_one_island():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    x = layers.LayerNormalization(name="norm")(inputs)
    x = layers.Lambda(lambda x: x * 2.0, name="twice")(x)
    outputs = layers.Activation("tanh", name="tanh")(x)
    network = lower(tf.keras.Model(inputs, outputs))
    assert islands(network) == [(("images",), ("norm", "twice", "tanh"))]
    (values,) = Simulation(network).outputs(IMAGES)
    # A pair of values a and a + 1 / 255 has mean a + d and variance d^2 with d = 1 / 510.
    half = 1 / 510
    expected = np.tanh(2 * np.array([-half, half]) / np.sqrt(half**2 + 1e-3))
    np.testing.assert_allclose(values, np.broadcast_to(expected, values.shape), rtol=1e-3)


def test_what_runs_in_integers_between_two_parts_of_one_island_parts_it():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    first = layers.Activation("tanh", name="first")(inputs)
    codes = CGPACT(2, 1.0, name="codes")(first)
    outputs = layers.Lambda(lambda pair: pair[0] - pair[1], name="second")([first, codes])
    network = lower(tf.keras.Model(inputs, outputs))
    assert islands(network) == [(("images",), ("first",)), (("first", "codes"), ("second",))]
    (values,) = Simulation(network).outputs(IMAGES)
    tanh = np.tanh(IMAGES / np.float32(255))
    np.testing.assert_allclose(values, tanh - np.rint(tanh * 3) / 3, rtol=1e-5, atol=1e-6)


def test_several_outputs_of_one_layer():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    left, right = layers.Lambda(lambda x: tf.split(tf.abs(x), 2, axis=-1), name="halves")(inputs)
    network = lower(tf.keras.Model(inputs, [CGPACT(2, 1.0)(right), left]))
    assert islands(network) == [(("images",), ("halves",))]
    right, left = Simulation(network).outputs(IMAGES)
    np.testing.assert_allclose(left, IMAGES[..., :1] / np.float32(255))
    assert right.shape == left.shape
    assert right.max() == 0  # 15 / 255 is nearer to 0 than to 1 / 3


def test_an_activation_without_an_integer_form_leaves_its_convolution_in_integers():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    outputs = layers.Conv2D(3, 1, activation="swish", name="conv")(inputs)
    network = lower(tf.keras.Model(inputs, outputs))
    assert islands(network) == [(("conv",), ("conv_activation",))]


class Doubled(layers.Layer):
    """A user's layer with weights of its own."""

    def build(self, shape):
        self.scale = self.add_weight("scale", (shape[-1],), initializer="ones")

    def call(self, x, training=None):
        return x * self.scale * (1.0 if training else 2.0)


def test_a_users_layer_runs_in_inference_mode():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    network = lower(tf.keras.Model(inputs, Doubled()(inputs)))
    (values,) = Simulation(network).outputs(IMAGES)
    np.testing.assert_allclose(values, 2 * IMAGES / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_that_would_be_known_at_run_time_only_are_those_of_one_image(batch):
    inputs = tf.keras.Input((2, 2, 2), name="images")
    layer = layers.Conv2DTranspose(2, 2, 2, output_padding=0, kernel_initializer="ones", name="up")
    network = lower(tf.keras.Model(inputs, layer(inputs)))
    assert network["up/island"].part.batch == 1
    images = np.repeat(IMAGES[:1], batch, axis=0)
    (values,) = Simulation(network).outputs(images)
    expected = np.repeat(np.repeat(images.sum(-1, keepdims=True) / 255, 2, 1), 2, 2)
    np.testing.assert_allclose(values, np.repeat(expected, 2, -1), rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda x: tf.linalg.inv(x), r"'odd'.*no operation MatrixInverse"),
        (lambda x: x + tf.random.normal(tf.shape(x)), "'odd'.*random numbers"),
        (
            lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: (y + 1,), (x,))[0],
            "'odd'.*loops or branches",
        ),
        (lambda x: tf.boolean_mask(x, x[:, 0, 0, 0] > 0), "'odd'"),
    ],
)
def test_what_tflite_has_no_form_of_is_named(layer, message):
    inputs = tf.keras.Input((2, 2, 2), name="images")
    x = layers.Activation("tanh", name="fine")(inputs)
    model = tf.keras.Model(inputs, layers.Lambda(layer, name="odd")(x))
    with pytest.raises(ExportError, match=message) as raised:
        lower(model)
    assert "'fine'" not in str(raised.value)


def test_what_computes_in_training_mode_is_named():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    outputs = layers.GaussianNoise(1.0, name="odd")(inputs, training=True)
    with pytest.raises(ExportError, match=r"'odd' \(GaussianNoise\).*training=True"):
        lower(tf.keras.Model(inputs, outputs))


def test_a_mask_from_outside_is_named():
    inputs = tf.keras.Input((2, 2, 2), name="images")
    x = layers.Reshape((4, 2))(layers.ReLU()(inputs))
    x = layers.Masking(name="mask")(x)
    outputs = layers.GlobalAveragePooling1D(name="odd")(x)
    with pytest.raises(ExportError, match=r"'odd' \(GlobalAveragePooling1D\).*mask"):
        lower(tf.keras.Model(inputs, outputs))
