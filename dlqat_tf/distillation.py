"""Knowledge distillation: a trained network shows a low-bit one what it thinks of each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import tensorflow as tf

from dlqat_tf.endings import end_of, ending_of
from dlqat_tf.graph import check_graph
from dlqat_tf.heads import CosineHead
from dlqat_tf.losses import AMS_SCALE

_SMALLEST = 1e-7  # probability, of a model that ends with a softmax


def distill(
    student: tf.keras.Model,
    teacher: tf.keras.Model,
    *,
    weight: float = 1.0,
    temperature: float = 4.0,
    cosine_scale: float = AMS_SCALE,
) -> tf.keras.Model:
    r"""Return a model that trains a student on labels and on a teacher's outputs.

    To the loss that the returned model is compiled with, training adds (Hinton, Vinyals and Dean
    2015, arXiv 1503.02531, section 2)

    .. math:: w \, T^2 \, \operatorname{KL}\bigl(\operatorname{softmax}(z^t / T) \,\|\,
        \operatorname{softmax}(z^s / T)\bigr),

    the mean over the batch, with the logits :math:`z^t` of the teacher in inference mode, which get
    no gradient, and :math:`z^s` of the student. The factor :math:`T^2` keeps the gradient's size
    for every temperature. Of a model with a softmax at its end, the logits are the logarithms of
    its probabilities. Outside of training nothing is added and the teacher does not run.

    The returned model has the student's own layers, inputs and outputs: fit it, then save or export
    the student. The teacher is no part of it: neither its summary, nor its weights, nor a
    checkpoint has any of it.

    >>> student, report = dlqat_tf.quantize(float_model, images=images)
    >>> trainer = dlqat_tf.distill(student, float_model)
    >>> trainer.compile("adam", loss=dlqat_tf.GMLoss(), metrics=["accuracy"])
    >>> trainer.fit(images, labels, epochs=10)
    >>> student.save("student.keras")

    Args:
        student: Functional or Sequential model with one output (batch, classes), logits or the
            probabilities of a softmax.
        teacher: One of the same inputs and classes, likewise. Its head may be another than the
            student's.
        weight: :math:`w > 0`.
        temperature: :math:`T > 0`; higher ones show more of the classes that are wrong.
        cosine_scale: What the cosines of a :class:`dlqat_tf.CosineHead` are multiplied by to be
            logits, the ``scale`` of the :class:`dlqat_tf.AMSLoss`.

    Raises:
        ValueError: A number is not above zero, a model has several outputs or is of another kind,
            or inputs or classes differ.
    """
    check_numbers(weight=weight, temperature=temperature, cosine_scale=cosine_scale)
    _check(student, teacher)
    distillation = _Distillation(
        teacher,
        weight,
        temperature,
        student_logits=_logits_of(student, cosine_scale),
        teacher_logits=_logits_of(teacher, cosine_scale),
    )
    return tf.keras.Model(student.inputs, distillation([student.outputs[0], *student.inputs]))


def check_numbers(**numbers: float) -> None:
    """Raise ValueError where one of the numbers is not finite or not above zero."""
    for name, value in numbers.items():
        if not isinstance(value, Real) or not 0 < value < math.inf:
            raise ValueError(f"Expected {name} to be finite and above zero. Received: {value!r}.")


def _check(student: tf.keras.Model, teacher: tf.keras.Model) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        check_graph(model)
        if len(model.outputs) != 1:
            raise ValueError(
                f"Expected a {role} with one output. Received: {len(model.outputs)}. Distil "
                "tf.keras.Model(model.inputs, model.outputs[0])."
            )
    for what in ("inputs", "outputs"):
        ours, theirs = (
            [tuple(tensor.shape[1:]) for tensor in getattr(model, what)]
            for model in (student, teacher)
        )
        if ours != theirs:
            raise ValueError(
                f"Expected student and teacher to have {what} of the same shapes. "
                f"Received: {ours} and {theirs}."
            )


def _logits_of(model: tf.keras.Model, cosine_scale: float) -> Callable:
    """Return what makes logits of a model's outputs."""
    (output,) = model.outputs
    end = end_of(output)
    operator = str(getattr(end, "symbol", "")).rsplit(".", 1)[-1]
    if ending_of(output) == "softmax" or operator == "softmax":
        return lambda outputs: tf.math.log(tf.maximum(outputs, _SMALLEST))
    scale = cosine_scale if isinstance(end, CosineHead) else 1.0
    return lambda outputs: scale * outputs


class _Distillation(tf.keras.layers.Layer):
    """Passes the student's outputs on, and adds the loss in training."""

    def __init__(self, teacher, weight, temperature, student_logits, teacher_logits):
        super().__init__(dtype="float32")
        self._teacher = lambda: teacher  # not an attribute, which Keras would track
        self._weight, self._temperature = weight, temperature
        self._student_logits, self._teacher_logits = student_logits, teacher_logits

    def call(self, inputs, training=None):
        outputs, *images = inputs
        if training:
            shown = self._teacher_logits(
                tf.cast(self._teacher()(images, training=False), tf.float32)
            )
            shown = tf.stop_gradient(shown / self._temperature)
            logits = self._student_logits(outputs) / self._temperature
            divergence = tf.reduce_sum(
                tf.nn.softmax(shown) * (tf.nn.log_softmax(shown) - tf.nn.log_softmax(logits))
            )
            # The share of a replica in a last batch may have no image.
            count = tf.cast(tf.reduce_prod(tf.shape(outputs)[:-1]), tf.float32)
            divergence = tf.math.divide_no_nan(divergence, count)
            self.add_loss(self._weight * self._temperature**2 * divergence)
        return outputs
