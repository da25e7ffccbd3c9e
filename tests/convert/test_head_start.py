"""What a mixture head starts from, of one feature, by hand."""

import numpy as np
import pytest

from dlqat_tf import GaussianMixtureHead
from dlqat_tf.convert.head_start import class_means, fill_mixture

# The classifier's scores are 0 and f - 18: means one apart around 18.
KERNEL, BIAS = np.array([[0.0, 1.0]]), np.array([0.0, -18.0])
LABELS = np.array([0, 0, 1, 1])


def started(features, labels=LABELS, bits=None):
    head = GaussianMixtureHead(2, bits, name="scores")
    head.build((None, 1))
    note = fill_mixture(head, KERNEL, BIAS, np.reshape(features, (-1, 1)), labels)
    return head.kernel.numpy()[0].tolist(), note


def test_means_of_the_classifier_where_classes_scatter_unequally():
    """Means 8 and 21 put 16 into the wrong class, by (16 - 8)^2 / 2 against (21 - 16)^2 / 2."""
    means, note = started([0.0, 16.0, 20.0, 22.0])
    assert means == pytest.approx([17.5, 18.5])
    # The mean of log(1 + exp(-x)) for x = 18, 2, 2, 4, and 19.5 / 4.
    assert note == (
        "'scores' starts from the means that its classifier amounts to: a cross-entropy of 0.068 "
        "on these images, with the means of the classes 4.88."
    )


def test_means_of_the_classes_where_the_classifier_is_wrong():
    means, note = started([-1.0, 1.0, 9.0, 11.0])  # of class 1 it is wrong by 9 and by 7
    assert means == pytest.approx([0.0, 10.0])
    assert "from the means of the classes" in note
    assert "its classifier amounts to 4." in note


def test_means_of_the_classifier_without_labels():
    means, note = started([-1.0, 1.0, 9.0, 11.0], labels=None)
    assert means == pytest.approx([17.5, 18.5])
    assert note == ""


def test_losses_are_those_of_the_rounded_means():
    """Codes of two bits are -1, 0 and 1: 17.5 and 18.5 become one mean, 8 and 21 are 0 and 21."""
    note = started([0.0, 16.0, 20.0, 22.0], bits=2)[1]
    assert "a cross-entropy of 0.693 on" in note
    assert note.endswith("28.9.")  # (16^2 - 5^2) / 2 / 4


def test_a_class_without_images_moves_with_the_others():
    """They move by -17.5 and -8.5, so it moves by -13."""
    columns = np.array([[17.5, 18.5, 20.0]])
    means = class_means(columns, np.array([[-1.0], [1.0], [9.0], [11.0]]), LABELS)
    assert means.tolist() == [[0.0, 10.0, 7.0]]
    assert columns.tolist() == [[17.5, 18.5, 20.0]]
