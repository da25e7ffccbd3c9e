import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

from dlqat_tf import CGPACT, PACT
from dlqat_tf.quantizers.rematerialize import (
    _source,
    _which_variance,
    is_of_norm,
    product_with_norm,
    rematerialize,
    replayed,
)

FORWARD = {"Identity", "IdentityN", "AddV2", "QuantizeAndDequantizeV2", "forward"}


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


def stream():
    """Blocks on a residual stream that no quantizer rounds: a sum of sums."""
    inputs = tf.keras.Input((6, 6, 3))
    x = convolution(inputs, "a")
    for name in ("b", "c", "d"):
        x = x + convolution(CGPACT(2, 1.5)(x), name)
    return tf.keras.Model(inputs, convolution(CGPACT(4, 4.0)(x), "end"))


def kind(op):
    """An operation's type, or the name of the function that it calls."""
    if op.type != "PartitionedCall":
        return op.type
    return op.get_attr("f").name.removeprefix("__inference_").rpartition("_")[0]


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


@pytest.mark.parametrize("build", [plain, lambda: residual(None), lambda: residual(8), stream])
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
            assert {kind(reader) for reader in output.consumers()} <= FORWARD

    for module in ("ste", "one_loop"):
        monkeypatch.setattr(f"dlqat_tf.quantizers.{module}.rematerialize", lambda x, after: x)
    _, expected = graph_and_gradients(copy(model))
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_two_gradients_read_is_computed_again_once_and_not_kept(policy):
    graph, _ = graph_and_gradients(residual(8))
    operations = graph.get_operations()
    norms = [op for op in operations if op.type == "FusedBatchNormV3"]
    again = [op for op in norms if not op.get_attr("is_training")]
    # a, b's branch and shortcut, c's branch; the end's is read by the loss.
    assert (len(norms) - len(again), len(again)) == (5, 4)
    assert len({op.inputs[0].ref() for op in again}) == 4
    rounded = [op for op in operations if kind(op) in ("QuantizeAndDequantizeV2", "forward")]
    assert len(rounded) == 6 + 3  # activations and branches, and the branches again
    if policy == "float32":
        forward = {op.name for op in operations[: operations.index(again[0])]}
        kept = [
            op
            for op in rounded[:6]
            if any(c.name not in forward for c in op.outputs[0].consumers())
        ]
        assert len(kept) == 3  # which convolutions read


def reached(op, but):
    """Yield the operations that read what one computes, and not those that wait for another."""
    seen, rest = set(), [op]
    while rest:
        for output in rest.pop().outputs:
            for reader in output.consumers():
                if reader not in seen and but not in reader.control_inputs:
                    seen.add(reader)
                    rest.append(reader)
                    yield reader


@pytest.mark.parametrize(
    ("build", "count"),
    [(plain, 2), (lambda: residual(None), 5), (lambda: residual(8), 5), (stream, 5)],
)
def test_filters_come_before_the_layers_below(build, count, policy):
    graph = graph_and_gradients(build())[0]
    pairs = [
        (of_inputs, of_filter)
        for of_inputs in graph.get_operations()
        for of_filter in graph.get_operations()
        if (of_inputs.type, of_filter.type) == ("Conv2DBackpropInput", "Conv2DBackpropFilter")
        and of_inputs.inputs[2] is of_filter.inputs[2]
    ]
    assert len(pairs) == count
    for of_inputs, of_filter in pairs:
        types = {op.type for op in reached(of_inputs, but=of_filter)}
        assert types <= {"Cast", "AddN", "AddV2", "Identity", "IdentityN"}


def test_filters_of_depthwise_convolutions_come_first_too():
    inputs = tf.keras.Input((6, 6, 3))
    x = CGPACT(2, 1.5)(convolution(inputs, "a"))
    model = tf.keras.Model(inputs, tf.keras.layers.DepthwiseConv2D(3)(x))
    operations = graph_and_gradients(model)[0].get_operations()
    waited_for = {each.type for op in operations for each in op.control_inputs}
    assert "DepthwiseConv2dNativeBackpropFilter" in waited_for


@pytest.mark.parametrize("gain", [1.0, -3.0])
def test_product_with_a_norm_by_hand(gain):
    """3 and 7 are normalised to -1 and 1."""
    x = tf.constant([3.0, 7.0], shape=(2, 1, 1, 1))
    upstream = tf.constant([2.0, 5.0], shape=(2, 1, 1, 1))

    @tf.function
    def both(x, upstream):
        y, *_ = tf.compat.v1.nn.fused_batch_norm(x, [gain], [-1.0], epsilon=1e-12)
        passed = tf.identity(y)
        assert is_of_norm(passed)
        assert not is_of_norm(x)
        total = product_with_norm(passed, passed, upstream)
        return total, tf.gradients(total, [x, upstream])[1] - passed

    total, difference = both(x, upstream)
    assert float(total) == pytest.approx(2 * (-gain - 1) + 5 * (gain - 1))
    np.testing.assert_array_equal(difference, np.zeros((2, 1, 1, 1)))


def test_what_is_kept_is_not_computed_again():
    with tf.Graph().as_default():
        x = tf.keras.layers.BatchNormalization()(tf.ones((2, 2, 2, 3)), training=True)
        passed = tf.identity(x)
        after = tf.constant(0.0)
        assert rematerialize(x, after) is not x
    with tf.Graph().as_default():
        x = tf.keras.layers.BatchNormalization()(tf.ones((2, 2, 2, 3)), training=True)
        passed, _ = tf.identity_n([x, tf.ones(2)])
        tf.nn.conv2d(passed, tf.ones((1, 1, 3, 1)), 1, "SAME")
        assert rematerialize(x, tf.constant(0.0)) is x


def test_another_graph_computes_again_for_itself():
    """What is computed in the body of a loop is no tensor of the graph around it."""
    with tf.Graph().as_default():
        x = tf.keras.layers.BatchNormalization()(tf.ones((2, 2, 2, 3)), training=True)
        once, twice = (rematerialize(x, tf.constant(0.0)) for _ in range(2))
        assert once is twice
        with FuncGraph("body").as_default() as body:
            assert rematerialize(x, tf.constant(0.0)).graph is body


def test_a_replay_keeps_no_graph_alive():
    double = tf.function(lambda x, factor: x * factor, jit_compile=True, autograph=False)

    @tf.function(autograph=False)
    def call(x):
        return replayed(double, x, tf.convert_to_tensor(2.0))

    graph = weakref.ref(call.get_concrete_function(tf.zeros([3])).graph)
    del call
    gc.collect()
    assert graph() is None


def test_xla_compiles_the_backward_pass():
    tf.keras.utils.set_random_seed(0)
    model = residual(8)
    _, gradients = graph_and_gradients(copy(model), jit_compile=True)
    _, expected = graph_and_gradients(copy(model))
    for one, other in zip(gradients, expected, strict=True):
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other) + 1e-6


@pytest.mark.parametrize("outer", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_xla_compiles_the_gradient_of_what_it_compiled(outer):
    """The tape is outside, where nothing tells that XLA compiles the gradient with the function."""
    tf.keras.utils.set_random_seed(0)
    model = residual(8)
    alphas = [each for each in model.trainable_variables if "alpha" in each.name]
    images = tf.constant(np.random.default_rng(0).random((8, 6, 6, 3)), tf.float32)

    def loss(images):
        return tf.reduce_mean(tf.square(model(images, training=True) - 1.0))

    def gradients(function):
        with tf.GradientTape() as tape:
            value = function(images)
        return tape.gradient(value, alphas)

    compiled = tf.function(loss, jit_compile=True)
    np.testing.assert_allclose(
        outer(lambda: gradients(compiled))(), gradients(loss), rtol=1e-3, atol=1e-6
    )


# Of one channel, at first, when they have followed the batches, and from other batches.
AVERAGES = {"fresh": (0.0, 1.0), "settled": (10.0, 5.0), "stale": (-1e3, 1e6)}


@pytest.mark.parametrize("averages", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize(
    ("quantizer", "from_alpha", "jit_compile"),
    [(CGPACT, 3.65, False), (CGPACT, 3.65, True), (PACT, 4.0, False)],
)
def test_gradients_by_hand_whatever_the_moving_averages(
    quantizer, from_alpha, jit_compile, momentum, averages
):
    # One channel, mean 10, variance 5: 3.3 * (x - 10) / sqrt(5 + 4) + 0.25 is -3.05, -0.85, 1.35
    # and 3.55, which a range of 3 and 2 bits round to 0, 0, 1 and 3. With the upstream gradients 1,
    # 2, 3, 4 the range gets 3 * (1 - 1.35) / 3 + 4, the calibrated part not under PACT; the scale
    # gets 3 * (11 - 10) / 3 and the offset 3.
    x = tf.reshape(tf.constant([7.0, 9.0, 11.0, 13.0]), (2, 2, 1, 1))
    constant = tf.keras.initializers.Constant
    norm = tf.keras.layers.BatchNormalization(
        momentum=momentum,
        epsilon=4.0,
        gamma_initializer=constant(3.3),
        beta_initializer=constant(0.25),
        moving_mean_initializer=constant(averages[0]),
        moving_variance_initializer=constant(averages[1]),
    )
    rounding = quantizer(2, 3.0)
    norm.build(x.shape)
    rounding.build(x.shape)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            y = rounding(norm(x, training=True), training=True)
            loss = tf.reduce_sum(tf.reshape(y, [-1]) * [1.0, 2.0, 3.0, 4.0])
        return tape.gradient(loss, [rounding.alpha, norm.gamma, norm.beta])

    gradients = [float(tf.squeeze(each)) for each in step(x)]
    np.testing.assert_allclose(gradients, [from_alpha, 1.0, 3.0], rtol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("factor", [1.0, 0.1, 0.0])
def test_batch_norm_again_is_the_same_bit_for_bit(factor, dtype):
    @tf.function
    def function(x):
        moving = [] if factor == 1.0 else [10.0] * 5
        y = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.range(1.0, 6.0),
            offset=tf.range(5.0),
            mean=moving,
            variance=moving,
            epsilon=1e-3,
            exponential_avg_factor=factor,
            is_training=True,
        ).y
        again = rematerialize(y, after=tf.reduce_sum(y))
        return y, again, tf.constant(again is y)

    x = np.random.default_rng(0).normal(3.0, 0.1, (7, 5, 3, 5))
    y, again, same = function(tf.cast(x, dtype))
    assert not same
    np.testing.assert_array_equal(y, again)


def test_which_variance_a_kernel_saved_by_hand():
    # 1 / sqrt(5 + 4) is a third, whether the kernel saved the variance 5 (on a CPU) or the third
    third = np.float32(1 / 3)
    assert _which_variance(tf.constant(5.0), tf.constant(third), 4.0) == 5.0
    gpu = _which_variance(tf.constant(third), tf.constant(third), 4.0)
    assert float(gpu) == pytest.approx(5.0, rel=1e-6)
    # 1 / sqrt(0.91 + 0.3) is 0.909: near, but not what the gradient kernel reads
    gpu = _which_variance(tf.constant(0.91), tf.constant(0.91), 0.3)
    assert float(gpu) == pytest.approx(1 / 0.91**2 - 0.3, rel=1e-6)


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
        frozen = tf.keras.layers.BatchNormalization(trainable=False)
        by_hand = tf.keras.layers.BatchNormalization(synchronized=True)
        other = tf.tanh(tf.ones((2, 2, 2, 3)))
        near = norm(other, training=True)
        tf.nn.conv2d(other, tf.ones((1, 1, 3, 1)), 1, "SAME")  # which keeps it
        for x in (
            other,
            _source(near).op.outputs[1],  # not the values, but their average
            norm(other, training=False),
            frozen(other, training=True),
            by_hand(other, training=True),
            near + near + near,  # a sum of sums
            other + other,  # no batch norm
            # a sum with something that would have to be kept in its place
            norm(other, training=True) + tf.sin(tf.ones((2, 2, 2, 3))),
        ):
            assert rematerialize(x, after=tf.constant(0.0)) is x
