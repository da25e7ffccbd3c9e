import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.quantizers.of_larq import is_of_larq, is_sign, steps_of, weight_grid

KERNEL = np.float32([[0.5, -0.2, 0.03], [-1.0, -0.6, 0.3]])  # three output channels


def scaled(x):
    """Three levels of a step for each channel, as a user may write it."""
    return tf.reduce_max(tf.abs(x), 0) * tf.sign(tf.round(x / 0.4))


@pytest.mark.parametrize(
    ("quantizer", "codes", "step", "bits"),
    [
        (lq.quantizers.SteSign(), [[1, -1, 1], [-1, -1, 1]], 1.0, 1),
        (lq.quantizers.ste_sign, [[1, -1, 1], [-1, -1, 1]], 1.0, 1),
        (
            lq.quantizers.MagnitudeAwareSign(),
            [[1, -1, 1], [-1, -1, 1]],
            [0.75, 0.4, 0.165],  # means of the magnitudes
            1,
        ),
        (lq.quantizers.SteTern(), [[1, -1, 0], [-1, -1, 1]], 1.0, 2),
        (lq.quantizers.SteTern(0.25), [[1, 0, 0], [-1, -1, 1]], 1.0, 2),
        (lq.quantizers.SteHeaviside(), [[1, 0, 1], [0, 0, 1]], 1.0, 1),
        # tanh / tanh(1): 0.61, -0.26, 0.04, -1, -0.71, 0.38, to the nearest of +-1/3 and +-1
        (lq.quantizers.DoReFa(2, mode="weights"), [[1, -1, 1], [-3, -3, 1]], 1 / 3, 2),
        (scaled, [[1, 0, 0], [-1, -1, 1]], [1.0, 0.6, 0.3], 2),
    ],
)
def test_codes_of_weights(quantizer, codes, step, bits):
    grid, found = weight_grid(quantizer, KERNEL)
    assert grid.codes.tolist() == codes
    np.testing.assert_allclose(grid.step, step, rtol=1e-6)
    assert found == bits
    np.testing.assert_allclose(grid.codes * grid.step, quantizer(tf.constant(KERNEL)), rtol=1e-6)


def test_weights_on_no_grid_are_refused():
    with pytest.raises(ValueError, match="sinh makes are not on equidistant levels, so"):
        weight_grid(tf.sinh, KERNEL)
    declared = lq.quantizers.NoOp(precision=1)
    with pytest.raises(ValueError, match=r"NoOp makes .* levels of 1 bits"):
        weight_grid(declared, KERNEL)
    grid, _ = weight_grid(declared, np.sign(KERNEL))  # as Bop trains them
    assert grid.codes.tolist() == [[1, -1, 1], [-1, -1, 1]]


@pytest.mark.parametrize(
    "quantizer",
    [
        lq.quantizers.DoReFa(1),
        lq.quantizers.DoReFa(3),
        lq.quantizers.SteHeaviside(),
        lq.quantizers.ste_heaviside,
        lq.quantizers.SteTern(0.3),
        lq.quantizers.ste_tern,
    ],
)
def test_steps_of_activations_are_what_the_quantizer_computes(quantizer):
    x = np.float32([-2, -0.31, -0.29, -0.04, 0, 0.04, 0.2, 0.29, 0.31, 0.45, 0.7, 0.95, 1, 3])
    steps = steps_of(quantizer)
    codes = np.rint((x * np.float32(steps.gain) + np.float32(steps.offset)) / steps.grid.step)
    values = np.clip(codes, steps.grid.lowest, steps.grid.highest) * steps.grid.step
    np.testing.assert_allclose(values, quantizer(tf.constant(x)), rtol=1e-6)


def test_what_is_known_of_activations():
    assert is_sign(lq.quantizers.swish_sign)
    assert is_sign(lq.quantizers.ApproxSign())
    assert not is_sign(lq.quantizers.SteHeaviside())
    assert is_of_larq(lq.quantizers.DoReFa(2))
    assert is_of_larq(lq.quantizers.ste_tern)
    assert not is_of_larq(tf.nn.relu)
    assert not is_of_larq(lq.quantizers.NoOp(2))
    with pytest.raises(ValueError, match="threshold that does not depend on them"):
        steps_of(lq.quantizers.SteTern(ternary_weight_networks=True))
    with pytest.raises(ValueError, match="mode='activations'"):
        steps_of(lq.quantizers.DoReFa(2, mode="weights"))
    with pytest.raises(ValueError, match="relu says no integer codes"):
        steps_of(tf.nn.relu)
