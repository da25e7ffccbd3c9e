import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import AMSLoss, CosineHead, GaussianMixtureHead, GMLoss, LinearHead, MarginWarmup

# The paper's equation 4, in which an image's loss does not depend on the others of its batch.
equation_4 = functools.partial(GMLoss, fit_power=0)
LOSSES = [
    AMSLoss(),
    equation_4(),
    equation_4(likelihood_weight=0.3),
    AMSLoss(0.2, 5.0),
    GMLoss(0.0),
]
Reduction = tf.keras.losses.Reduction


def predictions(loss, batch=4, classes=3):
    """Predictions from -1 to 0, which suit both losses."""
    return -np.random.default_rng(0).random((batch, classes)).astype(np.float32)


def reference(loss, label, values):
    """The loss of one image by its definition, in float64."""
    values = np.asarray(values, np.float64)
    if isinstance(loss, AMSLoss):
        logits, target = loss.scale * values, loss.scale * (values[label] - loss.margin)
    else:
        logits, target = values.copy(), (1 + loss.alpha) * values[label]
    logits[label] = target
    largest = logits.max()
    entropy = largest + np.log(np.exp(logits - largest).sum()) - target
    return entropy - getattr(loss, "likelihood_weight", 0.0) * values[label]


def with_gradient(loss, labels, values):
    values = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(labels, values)
    return total.numpy(), tape.gradient(total, values).numpy()


def head_gradients(head, kernel, features, loss, label):
    head.build((None, 2))
    head.kernel.assign(kernel)
    features = tf.constant([features])
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = loss([label], head(features))
    return total.numpy(), *tape.gradient(total, [features, head.kernel])


def test_golden_gaussian_mixture():
    distances = np.float32([[0.5, 2.5, 1.0]])  # so z = -.85, -2.5, -1 at alpha = .7
    total, gradient = with_gradient(GMLoss(alpha=0.7, fit_power=0), [0], -distances)
    assert total == pytest.approx(0.719184, abs=1e-6)
    # p - 1[k = y], times 1.7 for the true class; p = .48715, .093557, .419293
    np.testing.assert_allclose(gradient, [[-0.871845, 0.093557, 0.419293]], atol=2e-6)
    # lambda adds lambda * d_y
    with_likelihood = GMLoss(alpha=0.7, likelihood_weight=0.1, fit_power=0)([0], -distances)
    assert float(with_likelihood) == pytest.approx(0.719184 + 0.1 * 0.5, abs=1e-6)


def test_gaussian_mixture_margin_follows_the_fit():
    # Two images of true-class probabilities 0.8 and 0.4, so the mean is 0.6 and its square 0.36.
    logits = np.log(np.float32([[0.8, 0.2], [0.6, 0.4]])) - 1  # distances are above zero
    total, gradient = with_gradient(GMLoss(alpha=0.5, fit_power=2), [0, 1], logits)
    share, targets = 0.5 * 0.36, np.float32([logits[0, 0], logits[1, 1]])
    lowered = targets * (1 + share)
    others = np.float32([logits[0, 1], logits[1, 0]])
    expected = np.log1p(np.exp(others - lowered))
    assert total == pytest.approx(expected.mean(), abs=1e-6)
    # The share is a constant in the gradient: (p - 1) (1 + share) of the true class, over 2 images.
    wrong = 1 - np.exp(-expected)
    np.testing.assert_allclose(
        [gradient[0, 0], gradient[1, 1]], -wrong * (1 + share) / 2, atol=1e-6
    )
    one_hot = GMLoss(alpha=0.5, fit_power=2)(np.eye(2, dtype=np.float32), logits)
    assert float(one_hot) == pytest.approx(float(total), abs=1e-6)


def test_golden_gaussian_mixture_through_the_head():
    total, from_features, from_kernel = head_gradients(
        GaussianMixtureHead(3, None), [[1, 0, 2], [1, 0, 3]], [1.0, 2.0], GMLoss(fit_power=0), 0
    )
    assert total == pytest.approx(0.719184, abs=1e-6)
    np.testing.assert_allclose(from_features, [[0.325736, 1.104025]], atol=2e-6)
    expected = [[0, -0.871846], [0.093557, 0.187114], [-0.419293, -0.419293]]
    np.testing.assert_allclose(tf.transpose(from_kernel), expected, atol=2e-6)


def test_golden_additive_margin():
    cosines = np.float32([[0.6, 0.989949, 0.447214]])
    total, gradient = with_gradient(AMSLoss(margin=0.35, scale=30.0), [1], cosines)
    assert total == pytest.approx(0.265999, abs=2e-5)
    # s (p - 1[k = y]) with z = 18, 19.198485, 13.416408
    p = np.exp([18 - 19.198485, 0, 13.416408 - 19.198485])
    p /= p.sum()
    np.testing.assert_allclose(gradient, [30 * (p - [0, 1, 0])], atol=2e-4)


def test_golden_additive_margin_through_the_head():
    total, from_features, from_kernel = head_gradients(
        CosineHead(3, None), [[1, 1, -1], [0, 1, 2]], [3.0, 4.0], AMSLoss(), 1
    )
    assert total == pytest.approx(0.265999, abs=2e-6)
    np.testing.assert_allclose(from_features, [[0.719110, -0.539332]], atol=1e-5)
    # s (p_k - 1[k = y]) (f / |f| - cos_k w_k / |w_k|) / |w_k|: at right angles to each w_k
    vectors, cosines = np.float64([[1, 0], [1, 1], [-1, 2]]), [0.6, 0.989949, 0.447214]
    p = np.exp([18 - 19.198485, 0, 13.416408 - 19.198485])
    outer = 30 * (p / p.sum() - [0, 1, 0])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (np.float64([0.6, 0.8]) - np.c_[cosines] * vectors / norms) / norms
    np.testing.assert_allclose(tf.transpose(from_kernel), np.c_[outer] * expected, atol=1e-4)


def test_defaults():
    assert (AMSLoss().margin, AMSLoss().scale) == (0.35, 30.0)
    assert (GMLoss().alpha, GMLoss().likelihood_weight, GMLoss().fit_power) == (0.7, 0.0, 8.0)
    assert (AMSLoss().name, GMLoss().name) == ("ams_loss", "gm_loss")


def test_no_margin_is_cross_entropy():
    values, labels = predictions(None), [0, 2, 1, 1]
    entropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        AMSLoss(margin=0, scale=7.0)(labels, values), entropy(labels, 7 * values), 1e-6
    )
    head = GaussianMixtureHead(3, None)
    features = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    logits = head(features)
    means = head.kernel.numpy().T
    dense = features @ means.T - np.square(means).sum(axis=1) / 2
    np.testing.assert_allclose(GMLoss(alpha=0)(labels, logits), entropy(labels, dense), 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float16])
def test_every_form_of_hard_labels(loss, dtype):
    values, labels = predictions(loss), np.array([0, 2, 1, 1])
    expected = np.mean([reference(loss, *pair) for pair in zip(labels, values, strict=True)])
    _, gradient = with_gradient(loss, labels, values)
    for form in (labels, labels[:, None], np.eye(3)[labels]):
        total, this_gradient = with_gradient(loss, form.astype(dtype), values)
        assert total == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(this_gradient, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_are_the_expectation_of_hard_ones(loss):
    values = predictions(loss, batch=1)
    shares = np.float32([0.7, 0.1, 0.2])
    total, gradient = with_gradient(loss, shares[None], values)
    hard = [with_gradient(loss, [label], values) for label in range(3)]
    assert total == pytest.approx(shares @ [each for each, _ in hard], rel=1e-5)
    np.testing.assert_allclose(
        gradient, sum(s * each for s, (_, each) in zip(shares, hard, strict=True)), 1e-4, 1e-6
    )


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        (equation_4(), [0.0, -30.0, -35.0]),  # one class dominates
        (equation_4(), [-1e4, 0.0, -2e4]),
        (equation_4(), [-1e4, -1e4, -1.0001e4]),
        (equation_4(0.7, 0.1), [0.0, -1e4, -1e4]),
        (AMSLoss(), [1.0, -1.0, -0.9]),
        (AMSLoss(scale=1000.0), [1.0, -1.0, 0.999]),
        (AMSLoss(), [1.0, 1.0, 1.0]),  # three are the largest
    ],
)
def test_stable_when_one_class_dominates(loss, values):
    for label in range(3):
        expected = reference(loss, label, values)
        for labels in ([label], np.float32(np.eye(3)[[label]])):
            total, gradient = with_gradient(loss, labels, np.float32([values]))
            assert total == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert np.isfinite(gradient).all()
    shares = np.array([0.5, 0.3, 0.2])
    expected = shares @ [reference(loss, label, values) for label in range(3)]
    total = loss(shares[None], np.float32([values]))
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [AMSLoss, equation_4])
def test_reductions_and_sample_weights(loss):
    values, labels, weights = predictions(loss), [0, 2, 1, 1], [1.0, 0.0, 2.0, 5.0]
    each = np.array([reference(loss(), *pair) for pair in zip(labels, values, strict=True)])
    np.testing.assert_allclose(loss(reduction=Reduction.NONE)(labels, values), each, 1e-5)
    for reduction, expected in (
        (Reduction.SUM, each @ weights),
        (Reduction.SUM_OVER_BATCH_SIZE, each @ weights / 4),
        (Reduction.AUTO, each @ weights / 4),
        (Reduction.NONE, each * weights),
    ):
        for form in (labels, np.eye(3)[labels]):
            total = loss(reduction=reduction)(form, values, sample_weight=weights)
            np.testing.assert_allclose(total, expected, 1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_float32_inside(dtype):
    # float16 ends at 65504; 1.7 * 60000 is beyond it
    values = tf.cast([[-60000.0, -3.0, 0.0]], dtype)
    exact = tf.cast(values, tf.float32)
    assert GMLoss()([0], values).dtype == tf.float32
    assert equation_4()([0], values) == equation_4()([0], exact) > 1e5
    cosines = tf.cast([[0.9, 0.3, -0.2]], dtype)
    assert AMSLoss()([1], cosines) == AMSLoss()([1], tf.cast(cosines, tf.float32))


@pytest.mark.parametrize(
    ("loss", "defaults"),
    [
        (AMSLoss(0.2, 5.0, Reduction.SUM, "mine"), {"margin": 0.2, "scale": 5.0}),
        (
            GMLoss(0.3, 0.1, Reduction.SUM, "mine", fit_power=2),
            {"alpha": 0.3, "likelihood_weight": 0.1, "fit_power": 2.0},
        ),
    ],
)
def test_config_round_trip(loss, defaults):
    config = loss.get_config()
    assert config == {"reduction": "sum", "name": "mine", **defaults}
    assert type(loss).from_config(config).get_config() == config
    serialized = tf.keras.losses.serialize(loss)
    assert tf.keras.losses.deserialize(serialized).get_config() == config


def network(head, loss, optimizer=None, jit=None, **settings):
    model = tf.keras.Sequential([tf.keras.Input((4,)), head])
    optimizer = optimizer or tf.keras.optimizers.SGD(0.0)
    model.compile(optimizer, loss, jit_compile=jit, **settings)
    return model


@pytest.mark.parametrize(
    ("head", "loss"),
    [(CosineHead, AMSLoss(0.2, 5.0)), (GaussianMixtureHead, GMLoss(0.3, 0.1))],
)
def test_saved_and_loaded_with_the_model(head, loss, tmp_path):
    model = network(head(3), loss)
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 3
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(loss)
    assert loaded.loss.get_config() == loss.get_config()
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (GMLoss(), r"gm_loss expected negated distances.*dlqat_tf\.GaussianMixtureHead"),
        (AMSLoss(), r"ams_loss expected cosines in \[-1, 1\].*dlqat_tf\.CosineHead"),
    ],
)
def test_predictions_of_another_head_fail_at_the_first_batch(loss, message):
    head = tf.keras.layers.Dense(3, kernel_initializer="ones")  # predicts 4, 4, 4
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        network(head, loss).fit(np.ones((2, 4)), np.zeros(2), verbose=0)


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize(
    ("head", "loss"), [(CosineHead, AMSLoss()), (GaussianMixtureHead, GMLoss())]
)
def test_labels_out_of_range_fail_at_the_first_batch(head, loss, label):
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected labels from 0 to 2"):
        network(head(3), loss).fit(np.ones((2, 4)), np.array([0, label]), verbose=0)


@pytest.mark.parametrize(
    ("loss", "values"),
    [(AMSLoss(), [[1.02, 0, 0]]), (AMSLoss(), [[0, 0, -1.02]]), (GMLoss(), [[-5.0, 0.01, -1]])],
)
def test_predictions_out_of_range(loss, values):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{loss.name} expected"):
        loss([0], np.float32(values))


@pytest.mark.parametrize("loss", [AMSLoss(), GMLoss()])
@pytest.mark.parametrize("shares", [[0.5, 0.4, 0.0], [1.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
def test_soft_labels_that_do_not_sum_to_1(loss, shares):
    sentence = f"{loss.name} expected soft labels that sum to 1 for each image. Received sums from "
    with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
        loss(np.float32([[1, 0, 0], shares]), predictions(loss, batch=2))
    # half of the last bit of 16-bit floats is no mistake
    assert np.isfinite(loss(np.float32([[0.5, 0.4995, 0]]), predictions(loss, batch=1)))


@pytest.mark.parametrize("loss", [AMSLoss(), GMLoss()])
def test_soft_labels_below_0(loss):
    sentence = f"{loss.name} expected soft labels of at least 0. Received labels from -0.5 to 1.5"
    with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
        loss(np.float32([[1, 0, 0], [1.5, -0.5, 0.0]]), predictions(loss, batch=2))


@pytest.mark.parametrize("labels", [[0.0, 0.5], np.int64([0, 2**32])])
def test_labels_that_are_no_classes(labels):
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels from 0 to 2, whole numbers"):
        GMLoss()(labels, predictions(GMLoss(), batch=2))


def test_the_sentence_of_an_eager_check():
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"^gm_loss expected labels from 0 to 2, whole .*\. Received labels from -1 to 4\.$",
    ):
        GMLoss()([0, -1, 4], np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(
    ("head", "loss", "labels", "message"),
    [
        (GaussianMixtureHead, GMLoss(), [0, 3], "expected labels from 0 to 2"),
        (CosineHead, AMSLoss(), [0, -1], "expected labels from 0 to 2"),
        (CosineHead, AMSLoss(), [[0, 0, 1], [0, 1, 1]], "expected soft labels that sum to 1"),
        (CosineHead, AMSLoss(), [[0, 0, 1], [0, -1, 2]], "expected soft labels of at least 0"),
        (tf.keras.layers.Dense, GMLoss(), [0, 2], "expected negated distances of zero or below"),
        (tf.keras.layers.Dense, AMSLoss(), [0, 2], r"expected cosines in \[-1, 1\]"),
    ],
)
def test_under_xla_the_loss_is_nan_and_the_weights_stay(head, loss, labels, message):
    settings = {} if head is not tf.keras.layers.Dense else {"kernel_initializer": "ones"}
    model = network(head(3, **settings), loss, optimizer=tf.keras.optimizers.SGD(1.0), jit=True)
    images, labels = np.ones((2, 4), np.float32), np.array(labels)
    before = model.get_weights()
    assert np.isnan(model.fit(images, labels, verbose=0).history["loss"]).all()
    for now, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, old)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"^{loss.name} {message}"):
        loss(labels, model(images))


@pytest.mark.parametrize("settings", [{}, {"jit": True}, {"run_eagerly": True}])
@pytest.mark.parametrize(
    ("head", "loss", "message"),
    [
        (GaussianMixtureHead, AMSLoss(), "ams_loss expected cosines .* Received: the negated dist"),
        (LinearHead, AMSLoss(), r"dlqat_tf\.CosineHead\. Received: the logits of 'mine' \(Linear"),
        (CosineHead, GMLoss(), r"gm_loss expected negated .*\.GaussianMixtureHead\. .* cosines of"),
    ],
)
def test_the_outputs_of_another_head_are_refused_before_a_step(head, loss, message, settings):
    model = network(head(3, name="mine"), loss, **settings)
    with pytest.raises(ValueError, match=message):
        model.fit(np.zeros((2, 4)), np.zeros(2), verbose=0)
    assert model.optimizer.iterations == 0


def test_another_head_is_refused_wherever_the_model_came_from(tmp_path):
    inner = network(CosineHead(3), "mse")
    inner.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    nested = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(4), inner])
    linear = tf.keras.layers.Activation("linear", dtype="float32")
    ended = tf.keras.Sequential([tf.keras.Input((4,)), CosineHead(3), linear])
    for model in (loaded, nested, ended):
        model.compile("sgd", GMLoss())
        with pytest.raises(ValueError, match="gm_loss expected negated distances"):
            model.fit(np.zeros((2, 4)), np.zeros(2), verbose=0)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("ending", ["layer", "activation"])
def test_probabilities_are_no_cosines(ending, activation, policy):
    # They are from 0 to 1, as cosines may be.
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        layers = tf.keras.layers
        own = activation if ending == "activation" else None
        end = [] if own else [layers.Activation(activation)]
        model = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(3, own), *end])
        model.compile("sgd", AMSLoss())
        message = r"ams_loss expected cosines in .*CosineHead\. Received: probabilities, of a softm"
        with pytest.raises(ValueError, match=message):
            model.fit(np.zeros((2, 4)), np.zeros(2), verbose=0)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_heads_and_layers_of_the_users_own_are_judged_by_their_values():
    class Mine(LinearHead):
        gives = None

    small = tf.keras.initializers.Constant(-0.1)
    negated = tf.keras.layers.Lambda(lambda cosines: cosines - 2.0)
    for layers, loss in (
        ([Mine(3, None, small)], AMSLoss()),
        ([CosineHead(3), negated], GMLoss()),
        ([tf.keras.layers.Dense(3, kernel_initializer=small)], GMLoss()),
    ):
        model = tf.keras.Sequential([tf.keras.Input((4,)), *layers])
        assert np.isfinite(loss([0, 2], model(IMAGES)))


@pytest.mark.parametrize("loss", [AMSLoss(), GMLoss()])
def test_nan_predictions_show_as_a_nan_loss(loss):
    assert np.isnan(loss([0], np.float32([[np.nan, -1, -1]])))


@pytest.mark.parametrize("loss", [AMSLoss(), GMLoss()])
@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (2, 3, 1)])
def test_labels_of_another_shape(loss, shape):
    with pytest.raises(ValueError, match=r"expected labels of shape .* \(batch, 3\)\. Received"):
        loss(np.zeros(shape), predictions(loss, batch=2))


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "0.35", True, None])
@pytest.mark.parametrize(
    ("name", "create"),
    [
        ("margin", lambda value: AMSLoss(margin=value)),
        ("scale", lambda value: AMSLoss(scale=value)),
        ("alpha", lambda value: GMLoss(alpha=value)),
        ("likelihood_weight", lambda value: GMLoss(likelihood_weight=value)),
        ("fit_power", lambda value: GMLoss(fit_power=value)),
        ("epochs", lambda value: MarginWarmup(value)),
    ],
)
def test_numbers_out_of_range(name, create, value):
    with pytest.raises(ValueError, match=f"Expected {name} to be a finite number"):
        create(value)


def test_scale_zero_is_no_loss_but_other_zeros_are_values():
    with pytest.raises(ValueError, match=r"scale to be a finite number above 0\. Received: 0"):
        AMSLoss(scale=0)
    assert AMSLoss(margin=0).margin == GMLoss(alpha=0).alpha == 0.0
    assert AMSLoss(margin=np.float32(0.5)).margin == 0.5


class Recorder(tf.keras.callbacks.Callback):
    """Keeps the loss of each training step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


IMAGES, LABELS = tf.ones((2, 4)), tf.constant([0, 2])


def batches(count=2):
    return tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(count)


def fit(model, *callbacks, count=2, **settings):
    """Share of the margin that each step of a fit ran with."""
    recorder = Recorder()
    model.fit(batches(count), callbacks=[*callbacks, recorder], verbose=0, **settings)
    return shares(model, recorder.losses)


def shares(model, losses):
    """Share of the margin behind each loss, of a model whose weights do not change."""
    (loss,) = tf.nest.flatten(model.loss)
    logits = model(IMAGES)
    grid = np.arange(0, 1 + 1e-9, 1 / 16)

    def at(share):
        changed = {"margin": loss.margin} if isinstance(loss, AMSLoss) else {"alpha": loss.alpha}
        changed = {name: value * share for name, value in changed.items()}
        return float(type(loss).from_config({**loss.get_config(), **changed})(LABELS, logits))

    curve = np.array([at(share) for share in grid])
    assert (np.diff(curve) > 1e-4).all()
    nearest = [int(np.abs(curve - loss).argmin()) for loss in losses]
    np.testing.assert_allclose(losses, curve[nearest], 1e-5)
    return grid[nearest].tolist()


@pytest.mark.parametrize("settings", [{}, {"jit": True}, {"run_eagerly": True}])
@pytest.mark.parametrize(
    ("head", "loss"), [(GaussianMixtureHead, equation_4(0.8)), (CosineHead, AMSLoss())]
)
def test_warmup_is_a_linear_ramp(head, loss, settings):
    model = network(head(3), loss, **settings)
    assert fit(model, MarginWarmup(2), epochs=3) == [0, 0.25, 0.5, 0.75, 1, 1]


def test_warmup_of_half_an_epoch():
    model = network(CosineHead(3), AMSLoss())
    assert fit(model, MarginWarmup(0.5), count=4) == [0, 0.5, 1, 1]


def test_no_warmup():
    assert fit(network(CosineHead(3), AMSLoss()), MarginWarmup(0)) == [1, 1]


def test_warmup_follows_the_optimizer():
    model = network(GaussianMixtureHead(3), equation_4())
    model.optimizer.iterations.assign(3)
    assert fit(model, MarginWarmup(2), epochs=2) == [0.75, 1, 1, 1]


def test_warmup_with_steps_per_epoch():
    model = network(GaussianMixtureHead(3), equation_4())
    assert fit(model, MarginWarmup(2, steps_per_epoch=4)) == [0, 0.125]


def test_warmup_with_several_steps_in_one_execution():
    model = network(GaussianMixtureHead(3), equation_4(), steps_per_execution=2)
    assert fit(model, MarginWarmup(1), count=4) == [0, 0.5]


def test_validation_is_at_the_full_margin():
    model = network(CosineHead(3), AMSLoss())
    history = model.fit(
        batches(), epochs=4, validation_data=batches(), callbacks=[MarginWarmup(3)], verbose=0
    ).history
    full = float(AMSLoss()(LABELS, model(IMAGES)))
    np.testing.assert_allclose(history["val_loss"], full, 1e-5)
    assert history["loss"][0] < history["loss"][1] < full


def test_a_fit_that_ends_inside_the_ramp_leaves_the_full_margin(tmp_path):
    model = network(GaussianMixtureHead(3), equation_4())
    saved = tf.keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
    assert fit(model, saved, MarginWarmup(4)) == [0, 0.125]
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        assert shares(each, [each.evaluate(batches(), verbose=0)]) == [1]
        assert fit(each, MarginWarmup(4)) == [0.25, 0.375]  # goes on
        assert fit(each) == [1, 1]


class Interrupt(tf.keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_the_full_margin():
    model = network(GaussianMixtureHead(3), equation_4())
    for callbacks in ([Interrupt(), MarginWarmup(4)], [MarginWarmup(4), Interrupt()]):
        with pytest.raises(KeyboardInterrupt):
            fit(model, *callbacks)
        assert shares(model, [model.evaluate(batches(), verbose=0)]) == [1]
        assert fit(model) == [1, 1]


def test_a_step_that_fails_leaves_the_full_margin():
    model = network(GaussianMixtureHead(3), equation_4())
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected labels from 0 to 2"):
        model.fit(np.ones((2, 4)), np.array([0, 3]), callbacks=[MarginWarmup(4)], verbose=0)
    assert shares(model, [model.evaluate(batches(), verbose=0)]) == [1]
    assert fit(model) == [1, 1]


@pytest.mark.parametrize("container", [lambda loss: [loss], lambda loss: {"mine": loss}])
def test_warmup_of_a_loss_in_a_list_or_dict(container, tmp_path):
    model = network(GaussianMixtureHead(3, name="mine"), container(equation_4()))
    assert fit(model, MarginWarmup(2)) == [0, 0.25]
    model.save(tmp_path / "model.keras")
    assert fit(tf.keras.models.load_model(tmp_path / "model.keras"), MarginWarmup(2)) == [0.5, 0.75]


def test_warmup_of_several_outputs():
    inputs = tf.keras.Input((4,))
    heads = [GaussianMixtureHead(3, name="a"), CosineHead(3, name="b"), LinearHead(3, name="c")]
    model = tf.keras.Model(inputs, [head(inputs) for head in heads])
    losses = {"a": equation_4(), "b": AMSLoss(), "c": "mse"}
    model.compile(tf.keras.optimizers.SGD(0.0), losses)
    labels = {"a": LABELS, "b": LABELS, "c": tf.zeros((2, 3))}
    data = tf.data.Dataset.from_tensors((IMAGES, labels))
    first = model.fit(data, callbacks=[MarginWarmup(1)], verbose=0).history
    second = model.fit(data, callbacks=[MarginWarmup(1)], verbose=0).history
    outputs = model(IMAGES)
    for name, index, create in (("a", 0, equation_4), ("b", 1, AMSLoss)):
        without, full = create(0.0), create()
        np.testing.assert_allclose(first[f"{name}_loss"], without(LABELS, outputs[index]), 1e-5)
        np.testing.assert_allclose(second[f"{name}_loss"], full(LABELS, outputs[index]), 1e-5)
    assert first["c_loss"] == second["c_loss"]


def test_warmup_needs_a_loss_with_a_margin():
    model = network(tf.keras.layers.Dense(3), "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="expected a model compiled with AMSLoss or GMLoss"):
        fit(model, MarginWarmup(1))


def test_warmup_needs_to_know_the_length_of_an_epoch():
    data = tf.data.Dataset.from_generator(
        lambda: iter([(np.ones((2, 4)), [0, 2])]),
        output_signature=(tf.TensorSpec((2, 4)), tf.TensorSpec((2,), tf.int32)),
    )
    model = network(CosineHead(3), AMSLoss())
    with pytest.raises(ValueError, match=r"cannot tell how many steps .* pass steps_per_epoch"):
        model.fit(data, callbacks=[MarginWarmup(1)], verbose=0)
    model.fit(data, callbacks=[MarginWarmup(1, steps_per_epoch=1)], verbose=0)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_per_epoch_must_be_positive(steps):
    with pytest.raises(ValueError, match="steps_per_epoch to be a finite number above 0"):
        MarginWarmup(1, steps)


SHARES = """
import dlqat_tf
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
shares = [[[0.5, 0.5, 0.8], [0.2]], [[0.6], []]]
for pair, mean in zip(shares, (0.5, 0.6)):
    def share(context):
        of_true = tf.constant(pair[context.replica_id_in_sync_group], tf.float32)
        return tf.math.log(tf.stack([of_true, 1 - of_true], 1))

    predictions = strategy.experimental_distribute_values_from_function(share)
    loss = dlqat_tf.GMLoss(fit_power=1)
    fit = strategy.run(lambda x: loss.fit(x, tf.zeros(tf.shape(x)[:1], tf.int32)), (predictions,))
    for each in strategy.experimental_local_results(fit):
        assert abs(float(each) - mean) < 1e-6, float(each)
"""


def test_the_fit_is_that_of_all_replicas_images():
    """Shares of 3 and 1 images, of 1 and none; tf.distribute wants its devices named first."""
    subprocess.run([sys.executable, "-c", SHARES], check=True)
