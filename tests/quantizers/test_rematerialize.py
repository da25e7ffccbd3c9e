import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT
from dlqat_tf.quantizers.rematerialize import rematerialize

FORWARD = {"Identity", "IdentityN", "Cast", "AddV2", "QuantizeAndDequantizeV2"}


@pytest.fixture(params=["float32", "mixed_bfloat16"])
def policy(request):
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf.keras.mixed_precision.set_global_policy("float32")


def convolution(x, name):
    layers = tf.keras.layers
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn", momentum=0.9)(x)


def plain():
    inputs = tf.keras.Input((6, 6, 3))
    x = CGPACT(2, 1.5, name="last")(convolution(inputs, "a"))
    return tf.keras.Model(inputs, convolution(x, "end"))


def residual(bits):
    """A block whose shortcut is a convolution, then one whose shortcut is the identity."""
    inputs = tf.keras.Input((6, 6, 3))
    x = CGPACT(2, 1.5)(convolution(inputs, "a"))
    for name in ("b", "c"):
        branch = convolution(x, f"{name}_branch")
        shortcut = convolution(x, f"{name}_shortcut") if name == "b" else x
        if bits:
            branch = CGPACT(bits, 2.0, signed=True)(branch)
            if name == "b":
                shortcut = CGPACT(bits, 2.5, signed=True)(shortcut)
        x = CGPACT(3, 1.7, name="last" if name == "c" else None)(branch + shortcut)
    return tf.keras.Model(inputs, convolution(x, "end"))


def graph_and_gradients(model, **options):
    images = np.random.default_rng(0).random((8, 6, 6, 3)).astype(np.float32)

    @tf.function(**options)
    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(model(images, training=True), tf.float32) - 1))
        return tape.gradient(loss, model.trainable_variables)

    gradients = [gradient.numpy() for gradient in step(images)]
    return step.get_concrete_function(images).graph, gradients


def copy(model):
    twin = tf.keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


@pytest.mark.parametrize("build", [plain, lambda: residual(None), lambda: residual(8)])
def test_backward_pass_keeps_no_batch_norm_output_and_gradients_are_the_same(
    build, policy, monkeypatch
):
    tf.keras.utils.set_random_seed(0)
    model = build()
    graph, gradients = graph_and_gradients(copy(model))
    outputs = [
        op.outputs[0]
        for op in graph.get_operations()
        if op.type == "FusedBatchNormV3" and op.get_attr("is_training")
    ]
    assert len(outputs) >= 2
    for output in outputs:
        if "end_bn" not in output.op.name:  # what follows it is the loss
            assert {reader.type for reader in output.consumers()} <= FORWARD

    monkeypatch.setattr("dlqat_tf.quantizers.ste.rematerialize", lambda x, after: x)
    _, expected = graph_and_gradients(copy(model))
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_xla_compiles_the_backward_pass():
    tf.keras.utils.set_random_seed(0)
    model = residual(8)
    _, gradients = graph_and_gradients(copy(model), jit_compile=True)
    _, expected = graph_and_gradients(copy(model))
    for one, other in zip(gradients, expected, strict=True):
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other) + 1e-6


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_batch_norm_again_by_hand(factor):
    # one channel with values 1, 3, 5, 7: mean 4, variance 5; (x - 4) / sqrt(5 + 4) * 6 + 1
    @tf.function
    def function(x):
        moving = [] if factor == 1.0 else [10.0]
        y = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=[6.0],
            offset=[1.0],
            mean=moving,
            variance=moving,
            epsilon=4.0,
            exponential_avg_factor=factor,
            is_training=True,
        ).y
        again = rematerialize(y, after=tf.reduce_sum(y))
        return y, again, tf.constant(again is y)

    x = tf.reshape(tf.constant([1.0, 3.0, 5.0, 7.0]), (2, 2, 1, 1))
    y, again, same = function(x)
    assert not same
    np.testing.assert_allclose(tf.reshape(y, -1), [-5, -1, 3, 7], rtol=1e-5)
    np.testing.assert_allclose(again, y, rtol=1e-4)


def test_waits_for_the_backward_pass():
    with tf.Graph().as_default():
        x = tf.keras.layers.BatchNormalization()(tf.ones((2, 2, 2, 3)), training=True)
        after = tf.constant(0.0)
        again = rematerialize(x, after=after)
        # TensorFlow states it once on each path, on the first operation that is computed again.
        waiting, waits = [again.op], False
        while waiting:
            op = waiting.pop()
            waits |= after.op in op.control_inputs
            waiting += [each.op for each in op.inputs if each is not x]
        assert waits


def test_what_is_out_of_reach_stays():
    x = tf.ones((2, 2, 2, 3))
    assert rematerialize(x, after=x) is x  # eager
    with tf.Graph().as_default():
        norm = tf.keras.layers.BatchNormalization()
        other = tf.tanh(tf.ones((2, 2, 2, 3)))
        for x in (
            other,
            norm(other, training=False),
            # a sum with something that would have to be kept in its place
            norm(other, training=True) + tf.sin(tf.ones((2, 2, 2, 3))),
        ):
            assert rematerialize(x, after=tf.constant(0.0)) is x
