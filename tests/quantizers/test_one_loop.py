import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, PACT
from dlqat_tf.quantizers.one_loop import clip_and_round_16
from dlqat_tf.quantizers.ste import clip_and_round

SIXTEEN = ["bfloat16", "float16"]


def with_gradients(function, x, alpha, upstream):
    with tf.GradientTape() as tape:
        tape.watch([x, alpha])
        y = function(x, alpha)
    return [each.numpy() for each in (y, *tape.gradient(y, [x, alpha], upstream))]


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_by_hand(dtype):
    # A range of 3 and 2 bits have the step 1; the end belongs to the range, zero does not.
    x = tf.constant([-1.0, 0.0, 0.5, 0.75, 1.5, 3.0, 5.0], dtype)
    upstream = tf.constant([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype)
    y, from_x, from_alpha = with_gradients(
        lambda x, alpha: clip_and_round_16(x, alpha, 2), x, tf.constant(3.0), upstream
    )
    assert y.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert from_x.tolist() == [0, 0, 4, 8, 16, 32, 0]
    # (4 * (0 - 0.5) + 8 * (1 - 0.75) + 16 * (2 - 1.5)) / 3, and all of what is at the end or above
    assert from_alpha == pytest.approx((-2 + 2 + 8) / 3 + 32 + 64)


@pytest.mark.parametrize("in_a_graph", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    ("bits", "codes"),
    [
        (1, {}),
        (2, {}),
        (8, {}),
        (2, dict(signed=True)),
        (8, dict(signed=True)),
        (3, dict(zero_point=2)),
    ],
)
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_is_the_float32_quantizer_between_casts(dtype, bits, codes, calibrated, in_a_graph):
    generator = np.random.default_rng(0)
    x, upstream = (tf.constant(generator.normal(0, 2, (3, 5, 7)), dtype) for _ in range(2))
    alpha = tf.constant(1.7)
    options = dict(codes, calibrated=calibrated)

    def sixteen(x, alpha):
        return clip_and_round_16(x, alpha, bits, **options)

    def cast(x, alpha):
        wide = clip_and_round(tf.cast(x, tf.float32), alpha, bits, fused=True, **options)
        return tf.cast(wide, x.dtype)

    call = tf.function(sixteen) if in_a_graph else sixteen
    y, from_x, from_alpha = with_gradients(call, x, alpha, upstream)
    expected = with_gradients(cast, x, alpha, upstream)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(from_x, expected[1])
    assert from_alpha == pytest.approx(expected[2], rel=1e-4)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_alpha_is_summed_in_float32(dtype):
    # 2048 + 1 is 2048 in either 16-bit format
    upstream = tf.constant([2048.0] + [1.0] * 100, dtype)
    x = tf.fill([101], tf.constant(9.0, dtype))
    *_, from_alpha = with_gradients(
        lambda x, alpha: clip_and_round_16(x, alpha, 4), x, tf.constant(1.0), upstream
    )
    assert from_alpha == 2148.0


def test_nan_stays_and_infinity_is_clipped():
    x = tf.constant([np.nan, np.inf, -np.inf], tf.bfloat16)
    y = np.float32(clip_and_round_16(x, tf.constant(2.0), 2, signed=True))
    np.testing.assert_array_equal(y, [np.nan, 2.0, -2.0])


def test_second_derivatives_are_those_of_the_formula():
    # Between its jumps the output is linear in x and alpha: the gradient depends on the upstream
    # one alone. Of y^2 / 2 that is y, so the second derivatives are the squares of the first.
    x, alpha = tf.constant([0.75, 5.0], tf.bfloat16), tf.constant(3.0)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch([x, alpha])
        with tf.GradientTape() as tape:
            tape.watch([x, alpha])
            y = tf.cast(clip_and_round_16(x, alpha, 2), tf.float32)
            half = tf.reduce_sum(y * y) / 2
        from_x, from_alpha = tape.gradient(half, [x, alpha])
    assert np.float32(from_x).tolist() == [1.0, 0.0]
    assert float(from_alpha) == pytest.approx(1 * (1 - 0.75) / 3 + 3)
    assert np.float32(outer.gradient(from_x, x)).tolist() == [1.0, 0.0]
    assert float(outer.gradient(from_alpha, alpha)) == pytest.approx((0.25 / 3) ** 2 + 1, rel=1e-2)


@pytest.mark.parametrize("quantizer", [CGPACT, PACT])
@pytest.mark.parametrize(
    ("dtype", "training", "jit_compile", "used"),
    [
        ("bfloat16", True, False, True),
        ("float16", True, False, True),
        ("float32", True, False, False),
        ("bfloat16", False, False, False),
        ("bfloat16", True, True, False),  # XLA compiles the whole step already
    ],
)
def test_used_where_it_pays(quantizer, dtype, training, jit_compile, used):
    layer = quantizer(2, 3.0)
    layer.build((4,))

    @tf.function(jit_compile=jit_compile)
    def call(x):
        return layer(x, training=training)

    x = tf.constant([-1.0, 0.75, 1.75, 5.0], dtype)
    operations = {op.type for op in call.get_concrete_function(x).graph.get_operations()}
    assert ("PartitionedCall" in operations) is used
    np.testing.assert_array_equal(np.float32(call(x)), [0, 1, 2, 3])


def test_the_backward_pass_goes_on_behind_the_sum():
    """Else the float32 values of all layers wait for their sums at once."""

    @tf.function
    def step(x, alpha):
        with tf.GradientTape() as tape:
            tape.watch([x, alpha])
            y = clip_and_round_16(x, alpha, 2)
        return tape.gradient(y, [x, alpha])

    x, alpha = tf.constant([0.75, 1.75], tf.bfloat16), tf.constant(3.0)
    graph = step.get_concrete_function(x, alpha).graph
    (total,) = (op for op in graph.get_operations() if op.type == "Sum")
    waits = {op.name for op in total.outputs[0].consumers()} | {total.name}
    from_x = graph.outputs[0].op
    while from_x.type == "Identity" and not from_x.control_inputs:
        from_x = from_x.inputs[0].op
    assert {op.name for op in from_x.control_inputs} & waits


@pytest.mark.parametrize(
    ("layer", "from_alpha"),
    [
        # 0.75 becomes 1, and what is beyond the end counts with its sign
        (CGPACT(2, 3.0), (1 - 0.75) / 3),
        (PACT(2, 3.0), 0.0),
        (CGPACT(3, 3.0, signed=True), (1 - 0.75) / 3 - 1),
    ],
)
def test_settings_of_a_layer_reach_it(layer, from_alpha):
    x = tf.constant([0.75, -5.0], tf.bfloat16)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
    assert tape.gradient(y, layer.alpha).numpy() == pytest.approx(from_alpha)
