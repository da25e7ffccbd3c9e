"""Codes, ranges and clipped values of networks whose numbers a reader can check."""

import larq as lq
import numpy as np
import pytest

import dlqat_tf
from dlqat_tf import levels

import tensorflow as tf  # isort: skip


def network(**settings):
    """A dense layer of two inputs and two outputs, and a range of 3 with levels 0, 1, 2, 3."""
    inputs = tf.keras.Input((2,), name="values")
    x = lq.layers.QuantDense(
        2, use_bias=False, kernel_quantizer=dlqat_tf.SATWeights(1), name="dense", **settings
    )(inputs)
    x = dlqat_tf.CGPACT(2, alpha_init=3.0, name="act")(x)
    return tf.keras.Model(inputs, x)


def test_codes_are_those_of_the_kernel():
    model = network()
    model.get_layer("dense").kernel.assign([[0.5, -0.5], [0.1, 2.0]])
    (codes,) = levels.weight_codes(model).values()
    assert codes.tolist() == [[1, -1], [1, 1]]


def test_codes_of_planes_number_the_combinations_of_signs():
    layer = lq.layers.QuantConv2D(1, (1, 2), kernel_quantizer=dlqat_tf.SYQWeights(1), name="syq")
    model = tf.keras.Sequential([tf.keras.Input((1, 2, 1)), layer])
    layer.kernel.assign([[[[0.5]], [[-2.0]]]])
    assert levels.weight_codes(model)["syq"].ravel().tolist() == [1, -1]


def test_layers_without_a_number_for_each_level_are_left_out():
    ternary = lq.layers.QuantConv2D(1, 2, kernel_quantizer=dlqat_tf.SYQWeights(2))
    clamped = lq.layers.QuantConv2D(1, 1, kernel_quantizer=dlqat_tf.SATWeights(32))
    model = tf.keras.Sequential(
        [tf.keras.Input((2, 2, 1)), ternary, clamped, tf.keras.layers.Conv2D(1, 1)]
    )
    assert levels.weight_codes(model) == {}
    assert levels.rounded_kernels(model).keys() == {ternary.name}


def test_flip_rate_is_the_share_that_changed():
    assert levels.flip_rate(np.array([1, 1, -1, -1]), np.array([1, -1, -1, -1])) == 0.25


def test_ranges_are_the_outermost_levels():
    inputs = tf.keras.Input((2,))
    x = dlqat_tf.CGPACT(2, alpha_init=3.0, name="unsigned")(inputs)
    x = dlqat_tf.CGPACT(2, alpha_init=0.5, signed=True, name="signed")(x)
    x = dlqat_tf.LSQActivations(2, name="not_started")(x)
    x = dlqat_tf.CGPACT(32, name="not_rounded")(x)
    inner = tf.keras.Model(inputs, x, name="inner")
    outer = tf.keras.Sequential([tf.keras.Input((2,)), inner])  # nested ones are found too
    found = levels.activation_ranges(outer)
    assert found.keys() == {"inner/unsigned", "inner/signed"}
    assert found["inner/unsigned"] == pytest.approx((0.0, 3.0))
    assert found["inner/signed"] == pytest.approx((-0.5, 0.5))


def nested():
    """Three layers named "d" with a quantizer named "act" behind, two of them in nested models."""
    x = inputs = tf.keras.Input((2,))
    for value, name in enumerate(("a", "b", None), 1):
        dense = lq.layers.QuantDense(
            2, use_bias=False, kernel_quantizer=dlqat_tf.SATWeights(1), name="d"
        )
        act = dlqat_tf.CGPACT(2, alpha_init=float(value), name="act")
        if name:
            inner = tf.keras.Input((2,))
            x = tf.keras.Model(inner, act(dense(inner)), name=name)(x)
        else:
            x = act(dense(x))
        dense.kernel.assign(np.full((2, 2), value))
    return tf.keras.Model(inputs, x)


def test_layers_of_equal_names_in_nested_models():
    model = nested()
    kernels = levels.rounded_kernels(model)
    assert {name: each.kernel[0, 0].numpy() for name, each in kernels.items()} == {
        "a/d": 1,
        "b/d": 2,
        "d": 3,
    }
    assert levels.weight_codes(model).keys() == kernels.keys()
    ranges = levels.activation_ranges(model)
    highest = {name: highest for name, (_, highest) in ranges.items()}
    assert highest == pytest.approx({"a/act": 1, "b/act": 2, "act": 3})
    shares = levels.clip_shares(model, np.float32([[0.25, 0.25]]))
    assert shares.keys() == ranges.keys()
    named = {each.layer for each in dlqat_tf.summary(model).layers}
    assert {*kernels, *ranges} <= named


def test_a_layer_in_two_nested_models_counts_once():
    act = dlqat_tf.CGPACT(2, alpha_init=1.0, name="act")
    x = inputs = tf.keras.Input((2,))
    for name in ("a", "b"):
        inner = tf.keras.Input((2,))
        x = tf.keras.Model(inner, act(inner), name=name)(x)
    model = tf.keras.Model(inputs, x)
    # Of two values the first call clips one, the second none: one of four.
    assert levels.clip_shares(model, np.float32([[0.5, 2.0]])) == {"a/act": 0.25}
    assert levels.activation_ranges(model).keys() == {"a/act"}


def test_clip_shares_count_what_is_beyond_the_range():
    inputs = tf.keras.Input((4,))
    x = dlqat_tf.CGPACT(2, alpha_init=2.0, signed=True, name="signed")(inputs)
    x = dlqat_tf.CGPACT(2, alpha_init=1.5, name="unsigned")(x)
    model = tf.keras.Model(inputs, x)
    # Signed: -3 and 3 of eight are beyond +-2. It then rounds to -2, 0 and 2: of these the unsigned
    # one cuts the three of 2 (2, 3 and 1.5); -2 is rectified, not clipped.
    values = np.array([[-3.0, -2, -0.5, 0], [2, 3, 0.5, 1.5]], np.float32)
    assert levels.clip_shares(model, values) == {"signed": 2 / 8, "unsigned": 3 / 8}
    assert model.predict(values, verbose=0).max() == 1.5  # and the model is as it was
    assert "quantize" not in vars(model.get_layer("signed"))


def test_clip_shares_of_a_quantizer_inside_of_a_layer():
    inputs = tf.keras.Input((2,))
    quantizer = dlqat_tf.CGPACT(2, alpha_init=1.0)
    layer = lq.layers.QuantDense(1, input_quantizer=quantizer, name="dense")
    model = tf.keras.Model(inputs, layer(inputs))
    assert levels.clip_shares(model, np.array([[0.5, 2.0]], np.float32)) == {"dense/input": 0.5}
    assert levels.activation_ranges(model)["dense/input"] == pytest.approx((0.0, 1.0))


def test_clip_shares_leave_a_model_whole_that_cannot_run():
    model = network()
    with pytest.raises(ValueError, match="incompatible"):
        levels.clip_shares(model, np.zeros((1, 3), np.float32))
    assert "quantize" not in vars(model.get_layer("act"))


@pytest.mark.parametrize("function", [levels.weight_codes, levels.activation_ranges])
def test_a_file_is_no_model(function):
    with pytest.raises(ValueError, match=r"Expected a Keras model\. Received: str\. Load a file"):
        function("model.keras")
