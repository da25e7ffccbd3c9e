"""Distillation: its loss by hand, and that a student learns from its teacher what labels hide."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf


def linear(weights, **kwargs):
    """A model whose logits are the inputs times a matrix."""
    weights = np.float32(weights)
    inputs = tf.keras.Input((len(weights),))
    layer = tf.keras.layers.Dense(weights.shape[1], use_bias=False, **kwargs)
    model = tf.keras.Model(inputs, layer(inputs))
    layer.set_weights([weights])
    return model


TEACHER = [[np.log(3.0), 0.0]]  # for an input of 1: probabilities 3/4 and 1/4
STUDENT = [[0.0, 0.0]]  # and 1/2 and 1/2
ONE = np.ones((1, 1), np.float32)
# 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2)
DIVERGENCE = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)


def added_loss(student, teacher, **kwargs):
    trainer = dlqat_tf.distill(student, teacher, **kwargs)
    trainer(ONE, training=True)
    (loss,) = trainer.losses
    return float(loss)


def test_the_loss_by_hand():
    student, teacher = linear(STUDENT), linear(TEACHER)
    assert added_loss(student, teacher, weight=1.0, temperature=1.0) == pytest.approx(DIVERGENCE)
    assert added_loss(student, teacher, weight=0.5, temperature=1.0) == pytest.approx(
        DIVERGENCE / 2
    )
    # At temperature 2 the teacher's probabilities are sqrt(3) : 1.
    p = np.sqrt(3) / (np.sqrt(3) + 1)
    soft = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    assert added_loss(student, teacher, weight=1.0, temperature=2.0) == pytest.approx(4 * soft)


@pytest.mark.parametrize(("images", "expected"), [(2, DIVERGENCE), (0, 0.0)])
def test_it_is_the_mean_of_the_images(images, expected):
    """Of a replica without an image in a last batch it is 0, which adds nothing to the others."""
    trainer = dlqat_tf.distill(linear(STUDENT), linear(TEACHER), temperature=1.0)
    trainer(np.ones((images, 1), np.float32), training=True)
    assert float(trainer.losses[0]) == pytest.approx(expected)


def test_of_scores_at_positions_it_is_the_mean_too():
    student, teacher = (
        tf.keras.Sequential(
            [tf.keras.layers.Dense(2, use_bias=False, weights=[np.float32(w)], input_shape=(3, 1))]
        )
        for w in (STUDENT, TEACHER)
    )
    trainer = dlqat_tf.distill(student, teacher, temperature=1.0)
    trainer(np.ones((2, 3, 1), np.float32), training=True)
    assert float(trainer.losses[0]) == pytest.approx(DIVERGENCE)


@pytest.mark.parametrize(
    "ended",
    [
        lambda weights: linear(weights, activation="softmax"),
        lambda weights: tf.keras.Sequential([linear(weights), tf.keras.layers.Softmax()]),
        lambda weights: tf.keras.Sequential([linear(weights, activation="softmax")]),  # nested
        lambda weights: tf.keras.Model(
            (model := linear(weights)).inputs, tf.nn.softmax(model.outputs[0])
        ),
    ],
    ids=["activation", "layer", "nested", "operator"],
)
def test_probabilities_of_a_softmax_are_no_logits(ended):
    student, teacher = ended(STUDENT), ended(TEACHER)
    assert added_loss(student, linear(TEACHER), temperature=1.0) == pytest.approx(DIVERGENCE)
    assert added_loss(linear(STUDENT), teacher, temperature=1.0) == pytest.approx(DIVERGENCE)
    assert added_loss(teacher, linear(TEACHER)) == pytest.approx(0, abs=1e-6)
    trainer = dlqat_tf.distill(student, teacher)
    assert trainer(ONE).numpy().tolist() == [[0.5, 0.5]]  # the student's outputs stay what they are
    with tf.GradientTape() as tape:
        trainer(ONE, training=True)
        (loss,) = trainer.losses
    # T^2 / T (softmax(z / T) - softmax(z_teacher / T)) at temperature 4.
    p = 3**0.25 / (3**0.25 + 1)
    gradient = tape.gradient(loss, student.trainable_weights[0])
    np.testing.assert_allclose(gradient, [[4 * (0.5 - p), 4 * (p - 0.5)]], rtol=1e-5)


def test_cosines_are_scaled():
    inputs = tf.keras.Input((2,))
    head = dlqat_tf.CosineHead(2, weight_bits=None)
    cosine = tf.keras.Model(inputs, head(inputs))
    head.kernel.assign([[1.0, 0.0], [0.0, 1.0]])
    images = np.float32([[1, 0]])  # cosines 1 and 0
    flat = linear([[0.0, 0.0], [0.0, 0.0]])
    nested = tf.keras.Sequential([cosine])
    for student, teacher in ((cosine, flat), (flat, cosine), (nested, flat), (flat, nested)):
        losses = []
        for scale in (1e-6, 3.0):
            trainer = dlqat_tf.distill(student, teacher, temperature=1.0, cosine_scale=scale)
            trainer(images, training=True)
            losses.append(float(trainer.losses[0]))
        assert losses[0] == pytest.approx(0, abs=1e-6)
        q = 1 / (1 + np.exp(-3))
        p = [q, 1 - q]
        expected = (
            -0.5 * np.log(4 * q * (1 - q))
            if teacher is flat
            else np.sum(p * np.log(2 * np.array(p)))
        )
        assert losses[1] == pytest.approx(expected, rel=1e-5)


def test_inference_adds_nothing_and_does_not_ask_the_teacher():
    calls = []

    class Recorded(tf.keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    inputs = tf.keras.Input((1,))
    teacher = tf.keras.Model(inputs, linear(TEACHER)(Recorded()(inputs)))
    trainer = dlqat_tf.distill(linear(STUDENT), teacher)
    calls.clear()
    assert trainer(ONE, training=False).numpy().tolist() == [[0.0, 0.0]]
    assert not trainer.losses
    assert not calls


def test_the_teacher_stays_and_is_not_part_of_the_trainer():
    student, teacher = linear(STUDENT), linear(TEACHER)
    trainer = dlqat_tf.distill(student, teacher)
    trainer.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.fit(np.ones((8, 1)), np.zeros(8), verbose=0)
    assert len(trainer.weights) == 1
    assert teacher.get_weights()[0].tolist() == np.float32(TEACHER).tolist()
    assert student.get_weights()[0].tolist() != STUDENT
    assert teacher.trainable


def test_a_student_learns_from_its_teacher_what_labels_hide():
    """Labels are all 0; the teacher knows two classes, and the student learns them."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(256, 2)).astype(np.float32)
    teacher = linear([[4.0, -4.0], [0.0, 0.0]])
    student = linear([[0.0, 0.0], [0.1, 0.0]])
    trainer = dlqat_tf.distill(student, teacher, weight=10.0)
    trainer.compile(
        tf.keras.optimizers.SGD(0.02),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    trainer.fit(x, np.zeros(256), epochs=20, verbose=0)
    agree = student.predict(x, verbose=0).argmax(1) == teacher.predict(x, verbose=0).argmax(1)
    assert agree.mean() > 0.9


@pytest.mark.parametrize(
    ("head", "loss"),
    [("linear", None), ("cosine", dlqat_tf.AMSLoss()), ("gml", dlqat_tf.GMLoss())],
)
def test_every_head_trains_with_its_loss(head, loss):
    loss = loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student = dlqat_tf.resnet18(10, (8, 8, 1), head=head, stem="imagenet", width=2)
    teacher = dlqat_tf.resnet18(10, (8, 8, 1), 32, 32, head, "imagenet", 2, residual_bits=32)
    trainer = dlqat_tf.distill(student, teacher)
    trainer.compile("sgd", loss, metrics=["accuracy"])
    history = trainer.fit(np.zeros((4, 8, 8, 1)), np.arange(4), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert "accuracy" in history


def test_a_wrong_loss_is_still_refused():
    student = dlqat_tf.resnet18(10, (8, 8, 1), head="gml", stem="imagenet", width=2)
    trainer = dlqat_tf.distill(student, student)
    trainer.compile("sgd", dlqat_tf.AMSLoss())
    with pytest.raises(ValueError, match="CosineHead"):
        trainer.fit(np.zeros((4, 8, 8, 1)), np.arange(4), verbose=0)


@pytest.mark.parametrize("name", ["weight", "temperature", "cosine_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan, "1"])
def test_numbers_are_above_zero(name, value):
    with pytest.raises(ValueError, match=f"Expected {name} to be finite and above zero"):
        dlqat_tf.distill(linear(STUDENT), linear(TEACHER), **{name: value})


def test_models_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"outputs of the same shapes.*\(2,\).*\(3,\)"):
        dlqat_tf.distill(linear(STUDENT), linear([[0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="inputs of the same shapes"):
        dlqat_tf.distill(linear(STUDENT), linear([[0.0, 0.0], [0.0, 0.0]]))
    model = linear(STUDENT)
    twice = tf.keras.Model(model.inputs, [model.outputs[0], model.outputs[0]])
    with pytest.raises(ValueError, match=r"teacher with one output\. Received: 2"):
        dlqat_tf.distill(linear(STUDENT), twice)
