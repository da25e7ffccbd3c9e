"""What is frozen computes as in inference, and none of its numbers moves."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import (
    CGPACT,
    PACT,
    ABCNetActivations,
    ABCNetWeights,
    DSQActivations,
    DSQWeights,
    HAWQActivations,
    HAWQWeights,
    INQWeights,
    IRNetWeights,
    LQNetActivations,
    LQNetWeights,
    LSQActivations,
    LSQWeights,
    QuantizationNetworksWeights,
    QuantizerProgress,
    SYQWeights,
)
from dlqat_tf.quantizers import DepthwiseWeights, TransposedWeights
from tests.quantizers.methods import fit, gradient_of, small_model

WEIGHTS = {
    "lsq": lambda: LSQWeights(2),
    "syq": lambda: SYQWeights(1),
    "lqnet": lambda: LQNetWeights(2),
    "dsq": lambda: DSQWeights(2),
    "quantization networks": lambda: QuantizationNetworksWeights(2),
    "irnet": IRNetWeights,
    "inq": INQWeights,
    "hawq": lambda: HAWQWeights(4),
    "abcnet": lambda: ABCNetWeights(2),
    "transposed": lambda: TransposedWeights(LQNetWeights(2)),
    "depthwise": lambda: DepthwiseWeights(QuantizationNetworksWeights(2)),
}
ACTIVATIONS = [
    *(HAWQActivations, LQNetActivations, LSQActivations, DSQActivations, ABCNetActivations),
    *(CGPACT, PACT),
]
KERNEL = np.float32([[[[-1.0, 0.7], [0.3, -0.2]]]])
X = np.float32([[-1.0, 0.2, 0.7, 1.4, 3.0]])


def numbers_of(quantizer):
    return [each.numpy() for each in quantizer.variables]


def check_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_frozen_weights_are_those_of_inference(name, started):
    quantizer = WEIGHTS[name]()
    for _ in range(1 + started):
        quantizer(KERNEL, training=started)
    expected, gradient = gradient_of(quantizer, KERNEL)
    quantizer.trainable = False
    before = numbers_of(quantizer)
    for training in (True, tf.constant(True)):
        other = 2 * KERNEL + 0.1  # which would move what follows the kernel
        quantizer(other, training=training)
        outputs, same = gradient_of(lambda x: quantizer(x, training=training), KERNEL)  # noqa: B023
        check_same([outputs, same], [expected, gradient])
    check_same(numbers_of(quantizer), before)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_frozen_activations_are_those_of_inference(cls, started):
    quantizer = cls(2)
    quantizer(X, training=started)
    expected, gradient = gradient_of(quantizer, X)
    quantizer.trainable = False
    before = numbers_of(quantizer)
    for training in (True, tf.constant(True)):
        quantizer(9 * X, training=training)
        outputs, same = gradient_of(lambda x: quantizer(x, training=training), X)  # noqa: B023
        np.testing.assert_allclose(outputs, expected, 1e-6)
        np.testing.assert_array_equal(same, gradient)
    check_same(numbers_of(quantizer), before)
    assert np.any(gradient)  # earlier layers learn


@pytest.mark.parametrize("name", ["lsq", "lqnet", "dsq", "quantization networks", "irnet", "syq"])
def test_a_kernel_is_trained_under_a_frozen_quantizer(name):
    quantizer = WEIGHTS[name]()
    model = small_model(quantizer)
    quantizer.trainable = False
    kernel = model.layers[1].kernel.numpy()
    fit(model)
    assert np.any(model.layers[1].kernel.numpy() != kernel)


def test_a_frozen_quantizer_within_another_stays():
    inner = LQNetWeights(2)
    quantizer = TransposedWeights(inner)
    quantizer(KERNEL)
    inner.trainable = False
    before = numbers_of(quantizer)
    quantizer(KERNEL, training=True)
    check_same(numbers_of(quantizer), before)


@pytest.mark.parametrize("frozen", ["quantizers", "layers", "model"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("lsq", LSQActivations),
        ("lqnet", LQNetActivations),
        ("dsq", DSQActivations),
        ("quantization networks", HAWQActivations),
        ("irnet", ABCNetActivations),
        ("inq", CGPACT),
    ],
)
def test_fit_moves_nothing_of_what_is_frozen(weights, activations, frozen):
    body = small_model(WEIGHTS[weights](), activations(2))
    conv, activation = body.layers[1], body.layers[3]
    if frozen == "model":
        body.trainable = False
    else:
        for each in (conv.kernel_quantizer if frozen == "quantizers" else conv, activation):
            each.trainable = False
    quantizers = [conv.kernel_quantizer, activation]
    before = [each for quantizer in quantizers for each in numbers_of(quantizer)]
    kernel = conv.kernel.numpy()
    inputs = tf.keras.Input((2, 2, 2))
    model = tf.keras.Model(inputs, lq.layers.QuantDense(3)(body(inputs)))
    model.compile(tf.keras.optimizers.SGD(0.1), "mse")
    depends = weights in ("quantization networks", "irnet", "inq")
    fit(model, 2, [QuantizerProgress(2)] if depends else [])
    check_same([each for quantizer in quantizers for each in numbers_of(quantizer)], before)
    if frozen != "quantizers":
        np.testing.assert_array_equal(conv.kernel.numpy(), kernel)
    if frozen == "model":
        images = np.random.default_rng(1).normal(size=(4, 2, 2, 2)).astype(np.float32)
        np.testing.assert_allclose(body(images, training=True), body(images), 1e-6)


def test_what_was_frozen_before_it_had_a_range_says_so():
    quantizer = LSQActivations(2, trainable=False)
    quantizer(X, training=True)
    with pytest.raises(ValueError, match="frozen before it had a range; unfreeze it and train it"):
        quantizer.grid()
