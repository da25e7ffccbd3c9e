import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, PACT, SATWeights
from dlqat_tf.quantizers.pact import ALPHA_MINIMUM, AtLeast

X = np.float32([-1, 0.2, 0.5, 1.1, 1.9, 2, 3])


def run(quantizer, x, training=None):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, training=training)
    return y, tape.gradient(y, x), x


def gradients_of_alpha(quantizer, values):
    gradients = []
    for value in values:
        with tf.GradientTape() as tape:
            y = quantizer(tf.constant([value]))
        gradients.append(float(tape.gradient(y, quantizer.alpha)))
    return gradients


@pytest.mark.parametrize("training", [None, False, True])
@pytest.mark.parametrize("quantizer", [CGPACT, PACT])
def test_golden_values_and_gradient(quantizer, training):
    y, gradient, _ = run(quantizer(2, alpha_init=2.0), X, training)
    np.testing.assert_allclose(y, [0, 0, 2 / 3, 4 / 3, 2, 2, 2], 1e-6)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [
        (CGPACT, [0, -0.1, 0.083333, 0.116667, 0.05, 1, 1]),
        (PACT, [0, 0, 0, 0, 0, 1, 1]),
    ],
)
def test_golden_gradient_of_alpha(quantizer, expected):
    quantizer = quantizer(2, alpha_init=2.0)
    quantizer.build(())
    np.testing.assert_allclose(gradients_of_alpha(quantizer, X), expected, atol=1e-6)


def test_golden_signed():
    # 3 bits: codes -3 to 3, step 2 / 3
    y, gradient, _ = run(CGPACT(3, 2.0, signed=True), np.float32([-3, -2, -0.6, 0.2, 1.2, 3]))
    np.testing.assert_allclose(y, [-2, -2, -2 / 3, 0, 4 / 3, 2], 1e-6)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(("signed", "expected"), [(False, [0, 0, 2.5]), (True, [-1, 0, 2.5])])
def test_32_bits_have_no_alpha(signed, expected):
    quantizer = CGPACT(32, signed=signed)
    np.testing.assert_array_equal(quantizer(tf.constant([-1.0, 0.0, 2.5])), expected)
    assert quantizer.alpha is None
    assert quantizer.weights == []
    with pytest.raises(ValueError, match="no integer grid: 32 bits are not rounded"):
        quantizer.grid()


def test_32_bits_have_no_zero_point():
    with pytest.raises(ValueError, match=r"zero_point to be an integer from 0 to 0 with bits=32"):
        CGPACT(32, zero_point=1)


def test_defaults():
    quantizer = CGPACT()
    assert (quantizer.bits, quantizer.alpha_init, quantizer.signed) == (2, 8.0, False)


@pytest.mark.parametrize(
    ("bits", "signed", "zero_point", "lowest", "highest"),
    [
        (1, False, 0, 0, 1),
        (2, False, 0, 0, 3),
        (8, False, 0, 0, 255),
        (2, True, 0, -1, 1),
        (8, True, 0, -128, 127),
        (2, False, 2, -2, 1),
        (4, False, 1, -1, 14),
    ],
)
def test_grid_is_what_inference_and_training_compute(bits, signed, zero_point, lowest, highest):
    quantizer = CGPACT(bits, 2.7, signed, zero_point=zero_point)
    with pytest.raises(ValueError, match="no integer grid: call it once first"):
        quantizer.grid()
    x = np.linspace(-6, 4, 1001, dtype=np.float32)
    y = quantizer(x).numpy()
    grid = quantizer.grid()
    assert (grid.lowest, grid.highest) == (lowest, highest)
    assert grid.step.dtype == np.float32
    assert grid.step == pytest.approx(2.7 / highest)
    codes = np.rint(y / grid.step).astype(np.int16)
    assert (codes.min(), codes.max()) == (lowest, highest)
    np.testing.assert_array_equal(codes * grid.step, y)
    assert (np.diff(y) >= 0).all()
    np.testing.assert_array_equal(quantizer(y), y)  # idempotent
    np.testing.assert_array_equal(quantizer(x, training=True), y)
    model = tf.keras.Sequential([tf.keras.Input(()), quantizer])
    np.testing.assert_array_equal(model.predict(x, verbose=0), y)


def network(alpha_init=1.0, **settings):
    return tf.keras.Sequential([tf.keras.Input((3,)), CGPACT(2, alpha_init, **settings)])


def test_alpha_stays_positive_in_fit_and_comes_back():
    model, x = network(), np.full((4, 3), 5.0)
    alpha = model.layers[0].alpha
    model.compile(tf.keras.optimizers.SGD(10.0), "mse")
    down = model.fit(x, np.full((4, 3), -100.0), epochs=3, verbose=0)
    assert alpha.numpy() == np.float32(ALPHA_MINIMUM)
    assert np.isfinite(down.history["loss"]).all()
    np.testing.assert_array_equal(model.predict(x, verbose=0), np.full((4, 3), alpha.numpy()))
    model.compile(tf.keras.optimizers.SGD(0.3), "mse")
    model.fit(x, np.full((4, 3), 2.0), epochs=20, verbose=0)
    assert alpha.numpy() == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("rate", [10.0, 1e6])
def test_alpha_can_come_back_in_a_loop_that_knows_no_constraints(rate):
    model, x = network(), tf.fill((4, 3), 5.0)
    alpha = model.layers[0].alpha

    def step(target, rate):
        with tf.GradientTape() as tape:
            y = model(x, training=True)
            loss = tf.reduce_mean(y - target if target < 0 else target - y)
        alpha.assign_sub(rate * tape.gradient(loss, alpha))
        return y.numpy()

    step(-1.0, rate)
    assert alpha.numpy() == 1.0 - rate
    assert model.layers[0].grid().step == np.float32(ALPHA_MINIMUM) / np.float32(3)
    np.testing.assert_array_equal(step(-1.0, 0.0), np.full((4, 3), ALPHA_MINIMUM, np.float32))
    step(+1.0, rate + 1)
    assert alpha.numpy() == 2.0
    np.testing.assert_array_equal(step(+1.0, 0.0), np.full((4, 3), 2.0))


def test_optimizers_apply_the_constraint_in_a_gradient_tape_loop():
    model = network()
    alpha = model.layers[0].alpha
    tf.keras.optimizers.SGD(1.0).apply_gradients([(tf.constant(50.0), alpha)])
    assert alpha.numpy() == np.float32(ALPHA_MINIMUM)


def input_quantizer(**settings):
    quantizer = CGPACT(2, **settings)
    layer = lq.layers.QuantDense(1, input_quantizer=quantizer, kernel_quantizer="sat_weights")
    return tf.keras.Sequential([tf.keras.Input((3,)), layer], name="outer"), quantizer


def layer_of_its_own(**settings):
    quantizer = CGPACT(2, name="act", **settings)
    return tf.keras.Sequential([tf.keras.Input((3,)), quantizer], name="outer"), quantizer


@pytest.mark.parametrize("alpha", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("make", "layer"), [(layer_of_its_own, "outer/act"), (input_quantizer, "outer/quant_dense")]
)
def test_a_range_that_is_not_finite_is_named(make, layer, alpha):
    tf.keras.backend.clear_session()
    model, quantizer = make()
    model.compile("sgd", "mse")
    quantizer.alpha.assign(alpha)
    x = np.ones((4, 3), np.float32)
    message = (
        rf"Layer '{layer}\S*' has a range \(alpha\) that is not finite: training has diverged, "
    )
    for run in (model, lambda x: model.predict(x, verbose=0), lambda x: model.fit(x, x, verbose=0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(x)
    with pytest.raises(ValueError, match=rf"no integer grid: its range \(alpha\) is {alpha}; trai"):
        quantizer.grid()


@pytest.mark.parametrize("training", [False, True])
def test_xla_drops_the_check_and_outputs_nan(training):
    quantizer = CGPACT(2, 2.0)
    call = tf.function(lambda x: quantizer(x, training=training), jit_compile=True)
    np.testing.assert_allclose(call(tf.constant(X)), [0, 0, 2 / 3, 4 / 3, 2, 2, 2], 1e-6)
    quantizer.alpha.assign(np.nan)
    assert np.isnan(call(tf.constant(X))).all()


def test_an_infinite_gradient_is_the_optimizers_business():
    # a loss scale that is too large makes it infinite, and the step is skipped
    quantizer = CGPACT(2, 2.0)
    with tf.GradientTape() as tape:
        y = quantizer(tf.constant([3.0])) * tf.constant(np.inf)
    assert not np.isfinite(tape.gradient(y, quantizer.alpha))


def test_weight_decay():
    assert network().losses == []
    (loss,) = network(2.0, alpha_regularizer=tf.keras.regularizers.L2(0.5)).losses
    assert loss == 0.5 * 2.0**2
    (loss,) = network(2.0, alpha_regularizer="l2").losses
    assert float(loss) == pytest.approx(0.01 * 2.0**2)


@pytest.mark.parametrize("trainable", [True, False])
def test_alpha_is_saved_with_the_model(tmp_path, trainable):
    model = network(signed=True, alpha_regularizer="l2")
    model.layers[0].alpha.assign(3.25)
    model.trainable = trainable  # Larq hides the non-trainable weights of a quantizer
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    assert loaded.layers[0].alpha.numpy() == 3.25
    x = np.random.default_rng(0).normal(size=(5, 3)) * 4
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.layers[0].alpha.assign(1.0)
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert loaded.layers[0].alpha.numpy() == 3.25


def test_a_zero_point_is_in_the_config():
    quantizer = CGPACT(4, zero_point=3)
    assert not quantizer.rectifies
    assert CGPACT.from_config(quantizer.get_config()).codes == (-3, 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_dtypes_train_around_a_zero_point(dtype):
    quantizer = CGPACT(4, 1.4, zero_point=1)
    x = tf.constant([-1.0, 0.25, 3.0], dtype)
    np.testing.assert_allclose(
        tf.cast(quantizer(x, training=True), tf.float32), [-0.1, 0.2, 1.4], rtol=0.01
    )


@pytest.mark.parametrize(
    ("zero_point", "signed", "most"),
    [(15, False, 14), (-1, False, 14), (True, False, 14), (1, True, 0)],
)
def test_a_zero_point_is_one_of_the_codes_but_the_highest(zero_point, signed, most):
    with pytest.raises(ValueError, match=f"zero_point to be an integer from 0 to {most} with"):
        CGPACT(4, signed=signed, zero_point=zero_point)


@pytest.mark.parametrize("cls", [CGPACT, PACT])
def test_config_round_trip(cls):
    quantizer = cls(5, 3.0, True, tf.keras.regularizers.L2(0.25), name="mine")
    config = quantizer.get_config()
    again = cls.from_config(config)
    assert again.get_config() == config
    assert (again.bits, again.alpha_init, again.signed, again.name) == (5, 3.0, True, "mine")
    assert again.alpha_regularizer.l2 == 0.25


def test_constraint_config_round_trip():
    constraint = AtLeast.from_config(AtLeast(0.5).get_config())
    np.testing.assert_array_equal(constraint(tf.constant([-1.0, 0.7])), np.float32([0.5, 0.7]))


def test_as_input_quantizer():
    layer = lq.layers.QuantConv2D(
        2, 1, input_quantizer=CGPACT(2, 2.0), kernel_quantizer=SATWeights(1), use_bias=False
    )
    with tf.GradientTape() as tape:
        y = layer(tf.fill((1, 3, 3, 1), 5.0))
    (alpha,) = [v for v in layer.trainable_weights if v.shape == ()]
    assert alpha is layer.input_quantizer.alpha
    assert len(layer.trainable_weights) == 2
    # every output is +-alpha
    np.testing.assert_array_equal(np.abs(y), np.full((1, 3, 3, 2), 2.0))
    assert tape.gradient(y, alpha).numpy() == y.numpy().sum() / 2


def test_alpha_of_an_input_quantizer_trains_and_is_saved(tmp_path):
    layer = lq.layers.QuantDense(1, input_quantizer=CGPACT(2, 2.0), kernel_quantizer=SATWeights(1))
    model = tf.keras.Sequential([tf.keras.Input((1,)), layer])
    model.compile(tf.keras.optimizers.SGD(0.1), "mse")
    model.fit(np.full((4, 1), 5.0), np.full((4, 1), 9.0), verbose=0)
    alpha = layer.input_quantizer.alpha.numpy()
    assert alpha != 2.0
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].input_quantizer.alpha.numpy() == alpha


@pytest.mark.parametrize("alpha_init", [0.0, -1.0, 0.0009, np.nan, np.inf])
def test_alpha_init_must_be_positive(alpha_init):
    with pytest.raises(ValueError, match=r"finite number of at least 0\.001\. Received: alpha_in"):
        CGPACT(2, alpha_init)


def test_signed_must_be_a_boolean():
    with pytest.raises(ValueError, match=r"signed to be a boolean\. Received: 1\."):
        CGPACT(2, signed=1)
