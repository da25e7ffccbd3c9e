"""What stays float computes in files as Keras does in inference."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.convert.calls import Calls
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.float_part import FloatPart, computation_of

layers = tf.keras.layers
IMAGES = np.random.default_rng(0).random((3, 12, 10, 2)).astype(np.float32)


def model_of(layer):
    inputs = tf.keras.Input(IMAGES.shape[1:], name="images")
    return tf.keras.Model(inputs, layer(inputs))


@tf.keras.utils.register_keras_serializable("tests")
class Doubling(layers.Layer):
    """Doubles values in training, which is what it does where nobody says the mode."""

    def call(self, x, training=True):
        return 2 * x if training else x


@tf.keras.utils.register_keras_serializable("tests")
class Around(layers.Layer):
    """Holds a layer that has a mode, and has none itself."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)


CROPS = {
    "largest window": lambda: layers.RandomCrop(8, 8),  # 10 x 10, resized
    "same proportions": lambda: layers.RandomCrop(6, 5),
    "wide": lambda: layers.RandomCrop(3, 7),  # 4 x 10: int(10 * 3 / 7)
    "too small": lambda: layers.RandomCrop(16, 8),
    "too small for the middle": lambda: layers.CenterCrop(16, 8),
    "the middle": lambda: layers.CenterCrop(9, 8),
    "within a layer": lambda: Around(layers.RandomCrop(8, 8)),
}


@pytest.mark.parametrize("kind", CROPS)
def test_crops_are_those_of_inference(kind):
    layer = CROPS[kind]()
    model = model_of(layer)
    part = FloatPart(computation_of(layer.inbound_nodes[0]), [IMAGES.shape[1:]], [layer])
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(part.run([IMAGES])[0], expected, rtol=1e-5)
    # In Keras the layer goes on cropping at random in training.
    inner = getattr(layer, "inner", layer)
    assert "call" not in vars(inner)


@pytest.mark.parametrize("kind", ["convolutional", "of each step"])
def test_loops_over_time_are_steps(kind):
    """Rows of images as steps; Keras loops for a layer of one's own on one image, not on three."""
    if kind == "convolutional":
        parts = [layers.ConvLSTM1D(2, 3, name="steps")]
    else:
        each = Around(layers.Conv1D(2, 3))
        parts = [layers.TimeDistributed(each), layers.Reshape((12, 16)), layers.GRU(2)]
    model = model_of(tf.keras.Sequential(parts))
    part = FloatPart(lambda tensors: [model(*tensors)], [IMAGES.shape[1:]], [model])
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(part.run([IMAGES])[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Doubling, lambda: Around(Doubling())])
def test_what_is_told_no_mode_computes_as_in_inference(make):
    layer = make()
    model = model_of(layer)
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), IMAGES)
    part = FloatPart(computation_of(layer.inbound_nodes[0]), [IMAGES.shape[1:]], [layer])
    np.testing.assert_array_equal(part.run([IMAGES])[0], IMAGES)
    # Where conversion runs the model on images, too.
    call = Calls(model, Overrides({}), partial=False).every[-1]
    np.testing.assert_array_equal(call.apply(layer, [tf.constant(IMAGES)])[0], IMAGES)
