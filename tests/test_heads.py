import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlqat_tf import CosineHead, GaussianMixtureHead, LinearHead, SATWeights, SymmetricWeights

HEADS = [LinearHead, CosineHead, GaussianMixtureHead]
LATENT = np.float32([[1, 0, 2], [1, 0, 3]])  # the three classes are the columns


def built(cls, kernel=LATENT, weight_bits=None, **settings):
    head = cls(kernel.shape[1], weight_bits, **settings)
    head.build((None, kernel.shape[0]))
    head.kernel.assign(kernel)
    return head


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_bias(head):
    """The same head; a linear one with a bias that matters."""
    if isinstance(head, LinearHead):
        head.bias.assign(random(head.units, seed=7))
    return head


def test_linear_is_a_dense_layer():
    head = built(LinearHead)
    head.bias.assign([10, 20, 30])
    np.testing.assert_array_equal(head(np.float32([[1, 2]])), [[13, 20, 38]])


def test_linear_rounds_and_rescales_its_kernel():
    kernel = random(50, 4)
    head = built(LinearHead, kernel, 8)
    assert np.var(head.dense()[0], ddof=1) == pytest.approx(1 / 4, rel=1e-5)
    expected = SATWeights(8, scale_adjust=True)(kernel)
    np.testing.assert_array_equal(head.dense()[0], expected)


def test_cosine_by_hand():
    head = built(CosineHead, np.float32([[1, 1, -1], [0, 1, 2]]))
    # f / |f| = [.6, .8]; times [1, 0], [1, 1] / sqrt(2), [-1, 2] / sqrt(5)
    cosines = [[0.6, 0.989949, 0.447214]]
    np.testing.assert_allclose(head(np.float32([[3, 4]])), cosines, 1e-5)
    np.testing.assert_allclose(head(np.float32([[300, 400]])), cosines, 1e-5)
    np.testing.assert_allclose(head(np.float32([[0.003, 0.004]])), cosines, 1e-5)
    head.kernel.assign(head.kernel * [[1, 10, 0.1]])
    np.testing.assert_allclose(head(np.float32([[3, 4]])), cosines, 1e-5)


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_cosines_are_true_ones_after_rounding(bits):
    kernel, features = random(6, 3), random(5, 6, seed=1)
    quantized = SATWeights(bits)(kernel).numpy()
    expected = features @ quantized
    expected /= np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(quantized, axis=0)
    np.testing.assert_allclose(built(CosineHead, kernel, bits)(features), expected, atol=1e-6)


def test_dead_features_have_cosine_zero_and_finite_gradients():
    head = built(CosineHead)
    features = tf.zeros((1, 2))
    with tf.GradientTape() as tape:
        tape.watch(features)
        cosines = head(features)
    np.testing.assert_array_equal(cosines, np.zeros((1, 3)))
    for gradient in tape.gradient(cosines, [features, head.kernel]):
        assert np.isfinite(gradient).all()


def test_a_class_vector_of_zeros_has_cosine_zero():
    np.testing.assert_array_equal(built(CosineHead)(np.float32([[3, 4]]))[0, 1], 0.0)


def test_gaussian_mixture_by_hand():
    head = built(GaussianMixtureHead)
    # squared distances of [1, 2] to [1, 1], [0, 0] and [2, 3]: 1, 5 and 2
    np.testing.assert_allclose(head(np.float32([[1, 2]])), [[-0.5, -2.5, -1]], 1e-6)
    np.testing.assert_array_equal(head.means, LATENT.T)


def test_gaussian_mixture_rounds_its_means_without_changing_their_scale():
    kernel = 100 * random(6, 3)
    head = built(GaussianMixtureHead, kernel, 8)
    np.testing.assert_array_equal(head.means, SymmetricWeights(8)(kernel).numpy().T)
    assert np.abs(head.means).max() == pytest.approx(np.abs(kernel).max(), rel=1e-6)


vectors = st.floats(-1000, 1000, width=32)


@settings(max_examples=30, deadline=None)
@given(
    features=arrays(np.float32, (2, 3), elements=vectors),
    kernel=arrays(np.float32, (3, 2), elements=vectors),
)
def test_gaussian_mixture_is_never_positive(features, kernel):
    features[0] = kernel[:, 0]  # distance zero: where rounding could make it positive
    logits = built(GaussianMixtureHead, kernel)(features).numpy()
    assert logits.max() <= 0
    wide, means = features.astype(np.float64), kernel.T.astype(np.float64)
    expected = -np.square(wide[:, None] - means).sum(axis=2) / 2
    size = np.square(wide).sum() + np.square(means).sum()
    np.testing.assert_allclose(logits, expected, atol=1e-6 * size + 1e-6)


def test_gaussian_mixture_means_start_in_the_documented_range():
    head = GaussianMixtureHead(20)
    head.build((None, 100))
    limit = 2 * np.sqrt(3 / np.mean([100, 20]))
    assert 0.95 * limit < np.abs(head.kernel).max() <= limit


@pytest.mark.parametrize("bits", [None, 32, 8, 2])
def test_dense_is_the_head_up_to_scale_and_offset_of_each_image(bits):
    kernel, features = random(6, 4), random(50, 6, seed=1)
    for cls in HEADS:
        head = with_bias(built(cls, kernel, bits))
        weights, bias = head.dense()
        assert weights.dtype == bias.dtype == np.float32
        logits, dense = head(features).numpy(), features @ weights + bias
        np.testing.assert_array_equal(dense.argmax(1), logits.argmax(1))
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        if cls is LinearHead:
            identity = dense
        elif cls is CosineHead:
            identity = dense / norms
        else:
            identity = dense - norms**2 / 2
        np.testing.assert_allclose(identity, logits, atol=1e-5)


@pytest.mark.parametrize("cls", HEADS)
def test_grid_is_the_dense_kernel(cls):
    head = built(cls, random(6, 4), 8)
    grid = head.grid()
    assert grid.step.shape == (4,)
    assert grid.step.dtype == np.float32
    assert np.abs(grid.codes).max() == 127
    # two roundings in the cosine head, where the norm is a second factor
    np.testing.assert_allclose(grid.codes * grid.step, head.dense()[0], 2e-7, 0)


@pytest.mark.parametrize("cls", HEADS)
def test_unrounded_heads_have_no_grid(cls):
    with pytest.raises(ValueError, match="'head' has weight_bits=None, so it has no integer codes"):
        built(cls, name="head").grid()
    with pytest.raises(ValueError, match=r"\(bits=32\) does not round"):
        built(cls, weight_bits=32).grid()


@pytest.mark.parametrize("cls", HEADS)
def test_defaults_and_precision(cls):
    assert cls(3).weight_bits == 8
    for bits, precision in ((None, 32), (32, 32), (8, 8), (2, 2)):
        assert built(cls, weight_bits=bits).kernel.precision == precision


@pytest.mark.parametrize("cls", HEADS)
def test_summary_counts_the_bits_and_the_operations(cls):
    lines = []
    model = tf.keras.Sequential([tf.keras.Input((6,)), cls(4, 3)])
    lq.models.summary(model, print_fn=lines.append)
    assert "# 3-bit" in "\n".join(lines)
    assert lq.models.ModelProfile(model).op_count("mac") == 6 * 4


@pytest.mark.parametrize("argument", [{"activation": "softmax"}, {"use_bias": True}])
def test_what_a_dense_layer_has_and_a_head_has_not(argument):
    with pytest.raises(TypeError, match=f"LinearHead has no argument {next(iter(argument))}"):
        LinearHead(3, **argument)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("cls", HEADS)
def test_float32_under_a_mixed_policy(cls, policy):
    kernel = random(6, 4)
    features = tf.cast(random(5, 6, seed=1), policy.removeprefix("mixed_"))
    expected = built(cls, kernel, 8)(tf.cast(features, tf.float32))
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        logits = built(cls, kernel, 8)(features)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("cls", HEADS)
def test_features_may_be_integers(cls):
    head, features = built(cls), np.array([[3, 4]])
    np.testing.assert_array_equal(head(features), head(features.astype(np.float32)))


@pytest.mark.parametrize("cls", HEADS)
def test_kernel_initializer_and_regularizer(cls):
    head = cls(
        2,
        kernel_initializer=tf.keras.initializers.Constant(3.0),
        kernel_regularizer=tf.keras.regularizers.L2(0.5),
    )
    head.build((None, 5))
    np.testing.assert_array_equal(head.kernel, np.full((5, 2), 3.0))
    (loss,) = head.losses  # of the latent kernel; none of the bias
    assert loss == 0.5 * 9 * 10


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("bits", [None, 32, 8, 3])
def test_saved_and_loaded(cls, bits, tmp_path):
    head = cls(4, bits, kernel_initializer="he_normal", kernel_regularizer="l2", name="mine")
    model = tf.keras.Sequential([tf.keras.Input((6,)), head])
    with_bias(head)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is cls
    assert loaded.layers[0].get_config() == head.get_config()
    assert head.get_config()["units"] == 4
    assert head.get_config()["weight_bits"] == bits
    assert loaded.losses[0] == model.losses[0] > 0  # of the regularizer
    features = random(5, 6)
    np.testing.assert_array_equal(loaded(features), model(features))


@pytest.mark.parametrize("cls", HEADS)
def test_gradients_reach_features_and_kernel(cls):
    head, features = built(cls, random(6, 4), 8), tf.constant(random(5, 6, seed=1))
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = tf.reduce_sum(tf.square(head(features)))
    for gradient in tape.gradient(total, [features, *head.trainable_variables]):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("units", [0, -1, 2.0, True, "3", None])
def test_units_must_be_a_positive_integer(cls, units):
    with pytest.raises(ValueError, match=rf"positive integer\. Received: units={units!r}\."):
        cls(units)


@pytest.mark.parametrize("cls", HEADS)
def test_an_argument_that_there_is_not_has_a_close_name(cls):
    with pytest.raises(TypeError, match=r"no argument 'weight_bit'\. Did you mean 'weight_bits'\?"):
        cls(3, weight_bit=8)


@pytest.mark.parametrize(("cls", "bits"), [(LinearHead, 0), (CosineHead, 9), (LinearHead, True)])
def test_weight_bits_out_of_range(cls, bits):
    with pytest.raises(ValueError, match=rf"Received: bits={bits}\."):
        cls(3, bits)


def test_the_means_have_no_one_bit_form():
    with pytest.raises(ValueError, match=r"from 2 to 8.* bits=1\."):
        GaussianMixtureHead(3, 1)


@pytest.mark.parametrize("cls", HEADS)
def test_features_must_be_flat(cls):
    with pytest.raises(ValueError, match="expected ndim=2"):
        cls(3)(tf.zeros((1, 2, 2, 6)))
