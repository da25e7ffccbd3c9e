import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, SATWeights
from dlqat_tf.export import ExportError, lower, snap
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.precision import in_float32
from dlqat_tf.export.integer.simulate import Simulation
from tests.export.networks import (
    convolution,
    images_for,
    quantized,
    randomize,
    siamese_network,
    small_network,
)

layers = tf.keras.layers


def recurrent(*activations, norms=1, use_bias=False):
    """One convolution called twice, with its own batch norm each time or with one for both."""
    inputs = tf.keras.Input((6, 6, 8))
    convolve = quantized(8, 2, name="conv", use_bias=use_bias)
    named = [layers.BatchNormalization(name=name) for name in ("norm", "norm_2")[:norms]]
    x = activations[0](convolution(inputs, 8, 3, weight_bits=8, name="first"))
    for i, activation in enumerate(activations[1:]):
        x = activation(named[i % norms](convolve(x)))
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x))))


def assert_snapped_to(model):
    """Keras with the snapped biases computes the integers of the network that is not."""
    snapped, report = snap(model)
    images = images_for(model, 64)
    expected = Simulation(plan(lower(model))).logits(images)
    actual = snapped(
        tf.nest.map_structure(lambda x: x.astype(np.float32) / np.float32(255), images)
    )
    np.testing.assert_allclose(expected, actual.numpy(), rtol=1e-4, atol=1e-4)
    assert snap(snapped)[1].largest_steps < 1e-5
    return report


@pytest.mark.parametrize("nested", [False, True])
def test_a_tower_on_two_images_moves_once(nested):
    report = assert_snapped_to(siamese_network(nested=nested))
    shifts = {shift.layer.removeprefix("tower/"): shift.largest for shift in report.shifts}
    assert shifts["second"] == shifts["second_2"] > 0


def test_a_layer_that_reads_its_own_grid_moves_once():
    activation = CGPACT(2, 2.0)
    assert_snapped_to(recurrent(activation, activation, activation))


def test_calls_with_their_own_norms_move_those():
    model = recurrent(CGPACT(2, 2.0), CGPACT(3, 2.5), CGPACT(2, 1.9), norms=2, use_bias=True)
    report = assert_snapped_to(model)
    assert [shift.variable for shift in report.shifts] == ["first_bn", "norm", "norm_2"]


def test_calls_on_two_grids_cannot_move():
    model = recurrent(CGPACT(2, 2.0), CGPACT(2, 1.7), CGPACT(2, 2.0))
    with pytest.raises(ExportError, match=r"'norm' is called more than once.*snap=False"):
        snap(model)


def test_a_bias_that_one_call_moves_and_another_does_not():
    inputs = tf.keras.Input((6, 6, 8))
    convolve, activation = quantized(8, 2, name="conv"), CGPACT(2, 2.0)
    x = activation(convolution(inputs, 8, 3, weight_bits=8, name="first"))
    x = activation(layers.BatchNormalization()(convolve(activation(convolve(x)))))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x))))
    with pytest.raises(ExportError, match=r"'conv' is called more than once.*snap=False"):
        snap(model)


@pytest.mark.parametrize("scale", [True, False])
def test_norms_without_a_beta_move_their_mean(scale):
    inputs = tf.keras.Input((6, 6, 3))
    norm = layers.BatchNormalization(center=False, scale=scale, name="norm")
    x = CGPACT(2, 2.0)(norm(quantized(8, 8, use_bias=False)(inputs)))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x))))
    if scale:
        norm.gamma.assign(np.linspace(-3, 3, 8))
    report = assert_snapped_to(model)
    assert report.shifts[0].variable == "norm"


def test_the_report_has_the_largest_shift_either_way():
    model = small_network()
    snapped, report = snap(model)
    grids = {
        node.inputs[0]: node.grid
        for node in plan(lower(model))
        if hasattr(node, "grid") and node.inputs
    }
    signed = []
    for shift in report.shifts:
        before, after = (lower(each)[shift.layer].bias for each in (model, snapped))
        moved = after - before
        assert shift.largest == pytest.approx(np.abs(moved).max(), rel=1e-2)
        assert shift.steps == pytest.approx(shift.largest / float(grids[shift.layer].step))
        signed.append(moved.max() < np.abs(moved).max())
    assert any(signed)
    assert report.largest_steps == max(shift.steps for shift in report.shifts)


def test_a_call_in_float_cannot_move():
    inputs = tf.keras.Input((6, 6, 8))
    convolve, activation = quantized(8, 2, name="conv"), CGPACT(2, 2.0)
    x = convolve(activation(convolve(activation(quantized(8, 8)(inputs)))))
    model = randomize(tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ExportError, match=r"'conv' is called more than once.*snap=False"):
        snap(model)


def test_a_layer_named_like_the_second_call_is_another_layer():
    inputs = tf.keras.Input((6, 6, 8))
    activation, norm = CGPACT(2, 2.0), layers.BatchNormalization(name="norm")
    convolve = quantized(8, 2, name="conv", use_bias=False)
    x = activation(convolution(inputs, 8, 3, weight_bits=8, name="first"))
    x = activation(norm(convolve(activation(norm(convolve(x))))))
    x = CGPACT(2, 1.3)(layers.BatchNormalization(name="norm_2")(quantized(4, 2, name="last")(x)))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x))))
    report = assert_snapped_to(model)
    moved = {shift.layer: shift.variable for shift in report.shifts}
    assert moved == {"first": "first_bn", "conv": "norm", "conv_2": "norm", "last": "norm_2"}


def test_names_with_slashes_are_found():
    inputs = tf.keras.Input((6, 6, 3))
    convolve = lq.layers.QuantConv2D(4, 3, kernel_quantizer=SATWeights(8), name="block/conv")
    x = CGPACT(2, 2.0)(convolve(inputs))
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5)(layers.Flatten()(x))))
    assert assert_snapped_to(model).shifts[0].variable == "block/conv"


def policies(model) -> set:
    found = set()
    for layer in model.layers:
        found |= policies(layer) if isinstance(layer, tf.keras.Model) else {layer.dtype_policy.name}
    return found


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
@pytest.mark.parametrize(
    "build", [small_network, lambda: siamese_network(nested=True)], ids=["plain", "nested"]
)
def test_a_model_trained_under_16_bits_is_snapped_in_float32(policy, build):
    expected = build()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = build()
        model.set_weights(expected.get_weights())
        snapped, _ = snap(model)  # while the policy is still in force
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert policy in policies(model)
    assert policies(snapped) == {"float32"}
    images = tf.nest.map_structure(lambda x: x.astype(np.float32) / 255, images_for(model, 16))
    rounded = in_float32(model)
    assert policies(rounded) == {"float32"}
    if policy != "float16":  # whose variables are of 16 bits too
        np.testing.assert_array_equal(rounded(images), expected(images))
        np.testing.assert_array_equal(snapped(images), snap(expected)[0](images))
