import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf.quantizers.ste import clip_and_round, codes_of, divide_exactly, ste_round

WIDTHS = [
    *((bits, dict()) for bits in range(1, 9)),
    *((bits, dict(signed=True)) for bits in range(2, 9)),
    *((bits, dict(zero_point=z)) for bits, z in ((2, 1), (2, 2), (3, 3), (4, 1), (4, 8), (8, 128))),
]


def values_and_gradients(x, alpha, upstream=None, **settings):
    x, alpha = tf.constant(x, tf.float32), tf.constant(alpha, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([x, alpha])
        y = clip_and_round(x, alpha, **settings)
    gradients = tape.gradient(y, [x, alpha], upstream)
    return y.numpy(), gradients[0].numpy(), gradients[1].numpy()


def test_ste_round_is_half_to_even_with_gradient_one():
    x = tf.constant([-1.5, -0.5, 0.4, 0.5, 1.5, 2.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = ste_round(x)
    np.testing.assert_array_equal(y, [-2, 0, 0, 0, 2, 2])
    np.testing.assert_array_equal(tape.gradient(y, x, tf.range(6.0)), range(6))


def test_ste_round_keeps_nan():
    assert np.isnan(ste_round(tf.constant(np.nan)))


@pytest.mark.parametrize(("bits", "highest"), [(1, 1), (8, 255)])
def test_unsigned_codes(bits, highest):
    assert codes_of(bits) == (0, highest)


@pytest.mark.parametrize(("bits", "codes"), [(2, (-1, 1)), (4, (-7, 7)), (8, (-128, 127))])
def test_signed_codes(bits, codes):
    assert codes_of(bits, signed=True) == codes


@pytest.mark.parametrize(("bits", "zero_point", "codes"), [(4, 1, (-1, 14)), (2, 2, (-2, 1))])
def test_codes_around_a_zero_point(bits, zero_point, codes):
    assert codes_of(bits, zero_point=zero_point) == codes


@settings(max_examples=40, deadline=None)
@given(x=st.floats(2**-10, 2**10, width=32), divisor=st.integers(1, 255))
def test_divide_exactly_in_a_graph_too(x, divisor):
    quotient = np.float32(x) / np.float32(divisor)
    assert divide_exactly(tf.constant(x), divisor) == quotient
    assert tf.function(lambda x: divide_exactly(x, divisor))(tf.constant(x)) == quotient


@pytest.mark.parametrize("fused", [False, True])
def test_unsigned_by_hand(fused):
    # range 3 with 2 bits: the levels are 0, 1, 2, 3
    x = [-1.0, 0.0, 0.25, 1.5, 2.5, 2.75, 3.0, 4.0]
    y, from_x, _ = values_and_gradients(x, 3.0, bits=2, fused=fused)
    np.testing.assert_array_equal(y, [0, 0, 0, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(from_x, [0, 0, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("fused", [False, True])
def test_signed_by_hand(fused):
    # range 3 with 3 bits: the levels are -3 to 3
    x = [-4.0, -3.0, -2.5, -0.25, 0.0, 1.75, 3.0, 4.0]
    y, from_x, _ = values_and_gradients(x, 3.0, bits=3, signed=True, fused=fused)
    np.testing.assert_array_equal(y, [-3, -3, -2, 0, 0, 2, 3, 3])
    np.testing.assert_array_equal(from_x, [0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("fused", [False, True])
def test_zero_point_by_hand(fused):
    # range 3 with 3 bits, of which two codes are below zero: step 3 / 5, the levels -1.2 to 3
    x = [-2.0, -1.25, -1.0, -0.25, 0.0, 1.0, 3.0, 4.0]
    y, from_x, from_alpha = values_and_gradients(x, 3.0, bits=3, zero_point=2, fused=fused)
    np.testing.assert_allclose(y, [-1.2, -1.2, -1.2, 0, 0, 1.2, 3, 3], rtol=1e-6)
    np.testing.assert_array_equal(from_x, [0, 0, 1, 1, 1, 1, 1, 0])
    # -2/5 at both below the range, (y - x) / 3 within, and 1 at the two that are 3 or more
    assert from_alpha == pytest.approx(-0.8 + (-0.2 + 0.25 + 0.2) / 3 + 2, abs=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("x", "signed", "calibrated", "expected"),
    [
        # range 3, step 1
        (4.0, False, True, 1.0),
        (3.0, False, True, 1.0),
        (1.75, False, True, (2 - 1.75) / 3),
        (1.75, False, False, 0.0),
        (-1.0, False, True, 0.0),
        (-1.0, False, False, 0.0),
        (4.0, True, True, 1.0),
        (-4.0, True, True, -1.0),
        (-4.0, True, False, -1.0),
        (-1.75, True, True, (-2 + 1.75) / 3),
        (-1.75, True, False, 0.0),
    ],
)
def test_gradient_of_alpha_by_hand(x, signed, calibrated, expected, fused):
    bits = 3 if signed else 2
    _, _, from_alpha = values_and_gradients(
        [x], 3.0, bits=bits, signed=signed, calibrated=calibrated, fused=fused
    )
    assert from_alpha == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("bits", "options"), WIDTHS)
@settings(max_examples=10, deadline=None)
@given(
    x=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    alpha=st.floats(2**-9, 16, width=32),
)
def test_grid_nearest_level_gradients_and_fusion(x, alpha, bits, options):
    alpha, (lowest, highest) = np.float32(alpha), codes_of(bits, **options)
    low = alpha * np.float32(lowest / highest)
    # codes and ties beside random values: where float32 could go wrong
    levels = np.arange(lowest, highest + 1, dtype=np.float32) * (alpha / np.float32(highest))
    levels[-1] = alpha  # the gradient of alpha jumps here; so no value one rounding away from it
    levels[0] = low
    x = np.concatenate([x, levels, levels + alpha / highest / 2]).astype(np.float32)
    upstream = np.cos(np.arange(x.size)).astype(np.float32)
    y, from_x, from_alpha = values_and_gradients(x, alpha, upstream, bits=bits, **options)

    codes = np.rint(y / (alpha / np.float32(highest))).astype(np.float32)
    np.testing.assert_array_equal(codes * (alpha / np.float32(highest)), y)
    assert codes.min() >= lowest
    assert codes.max() <= highest
    clipped = np.clip(np.float64(x), low, alpha)
    assert np.abs(codes - clipped * highest / alpha).max() <= 0.5 + 1e-4

    inside = (x >= low if lowest else x > 0) & (x <= alpha)
    inside &= np.abs(x) >= np.finfo(np.float32).tiny * (not lowest)
    np.testing.assert_array_equal(from_x, upstream * inside)
    error = np.clip(codes, lowest, highest) / highest - clipped / np.float64(alpha)
    per_value = np.where(x >= alpha, 1, np.where(x <= low, lowest / highest, error))
    np.testing.assert_allclose(from_alpha, upstream @ per_value, atol=1e-4)

    fused = values_and_gradients(x, alpha, upstream, bits=bits, **options, fused=True)
    for one, other in zip(fused, (y, from_x, from_alpha), strict=True):
        np.testing.assert_array_equal(one, other)
    in_graph = tf.function(clip_and_round)(x, alpha, bits, **options)
    np.testing.assert_array_equal(in_graph, y)


@pytest.mark.parametrize("fused", [False, True])
def test_nan_and_infinity_in_the_forward_pass(fused):
    y, _, _ = values_and_gradients([np.nan, np.inf, -np.inf], 3.0, bits=2, fused=fused)
    np.testing.assert_array_equal(y, [np.nan, 3, 0])
