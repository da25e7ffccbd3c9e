"""What the tests of all methods share."""

import larq as lq
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dlqat_tf import LinearHead, SATWeights

kernels = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6),
)


def gradient_of(quantizer, x, upstream=None):
    """Return outputs and gradient by the input."""
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
    return y.numpy(), tape.gradient(y, x, upstream).numpy()


def check_grid(quantizer, kernel):
    """Check that calls, eager and in a graph, are the grid's codes times its step."""
    grid, values = quantizer.grid(kernel), quantizer(kernel).numpy()
    np.testing.assert_array_equal(grid.codes * grid.step, values)
    np.testing.assert_array_equal(tf.function(quantizer)(kernel), values)
    assert grid.codes.dtype == np.int16
    assert grid.step.dtype == np.float32
    return grid


def small_model(kernel_quantizer, activation=None, constraint=None):
    """A convolution of 1x1 on 2 channels, its activation, and the mean."""
    inputs = tf.keras.Input((2, 2, 2))
    conv = lq.layers.QuantConv2D(
        4, 1, kernel_quantizer=kernel_quantizer, use_bias=False, kernel_constraint=constraint
    )
    x = tf.keras.layers.BatchNormalization()(conv(inputs))
    if activation is not None:
        x = activation(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    x = lq.layers.QuantDense(3, kernel_quantizer=SATWeights(8))(x)
    model = tf.keras.Model(inputs, x)
    model.compile(tf.keras.optimizers.SGD(0.1, 0.9), "mse")
    return model


def network(method, weight_bits, activation_bits):
    """Two convolutions of a method of the registry on images, and a head."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = inputs
    for number in (1, 2):
        conv = lq.layers.QuantConv2D(
            8,
            3,
            padding="same",
            use_bias=False,
            kernel_quantizer=SATWeights(8) if number == 1 else method.weights(weight_bits),
            kernel_constraint=method.kernel_constraint and method.kernel_constraint(),
        )
        x = tf.keras.layers.BatchNormalization()(conv(x))
        name = f"act_{number}"
        x = method.activations(activation_bits, alpha_init=2.0, regularizer=None, name=name)(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, LinearHead(5)(x))


def images(count=32):
    """Images for it."""
    return np.random.default_rng(0).random((count, 6, 6, 3), np.float32)


def fit(model, epochs=1, callbacks=(), initial_epoch=0):
    """Train for two steps an epoch on the same 8 images."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(8, 2, 2, 2)).astype(np.float32)
    targets = generator.normal(size=(8, 3)).astype(np.float32)
    model.fit(
        images,
        targets,
        4,
        epochs,
        callbacks=list(callbacks),
        verbose=0,
        shuffle=False,
        initial_epoch=initial_epoch,
    )
    return model
