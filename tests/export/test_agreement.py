"""Decisions of one output and of several."""

import numpy as np
import pytest

from dlqat_tf.export.agreement import AccuracyChange, compared, labels_of, mean_of
from dlqat_tf.export.integer.errors import ExportError

PAIRS = [("keras", "file"), ("simulation", "file")]


def forms(keras, file):
    return {name: np.float32(each) for name, each in dict(keras=keras, file=file).items()}


def test_scores_of_classes():
    # Twice the logits and one more, but for the last image, whose arg-max is another.
    keras, file = [[1, 2], [3, 1], [0, 1]], [[3, 5], [7, 3], [2, 1]]
    found = compared("scores", forms(keras, file), PAIRS[:1], np.array([1, 0, 1]), 0.0)
    assert found.top1 == {"keras": 100.0, "file": pytest.approx(200 / 3)}
    assert found.agreement == {"keras_file": pytest.approx(200 / 3)}
    # Of three images one is decided worse.
    change = found.change["keras_file"]
    assert change.points == pytest.approx(-100 / 3)
    assert change.error == pytest.approx(100 * np.sqrt((1 / 3 - 1 / 9) / 3))
    assert str(change) == "-33.33 ± 27.22"
    # (-1, 1) / sqrt 2 and (1, -1) / sqrt 2
    assert found.difference == {"keras_file": pytest.approx(np.sqrt(2))}


@pytest.mark.parametrize(("border", "right"), [(0.0, 75.0), (0.5, 50.0)])
def test_one_score_is_on_one_side_of_the_border(border, right):
    scores = np.float32([[-1], [0.25], [1], [0.75]])
    found = compared(
        "score", {"file": scores, "simulation": scores}, PAIRS[1:], [0, 1, 1, 0], border
    )
    assert found.top1["file"] == right
    assert found.difference == {"simulation_file": 0.0}


def test_one_value_for_each_image_without_an_axis_is_a_score():
    values = forms([0.5, -1.0], [0.5, 1.5])
    found = compared("value", values, PAIRS[:1], np.array([1, 1]), 0.0)
    assert found.agreement == {"keras_file": 50.0}
    assert found.top1 == {"keras": 50.0, "file": 100.0}
    assert found.difference == {"keras_file": 2.5}


def test_a_decision_at_each_position():
    keras = np.zeros((2, 1, 2, 3), np.float32)
    keras[0, 0, :, 1] = 1
    file = keras.copy()
    file[1, 0, 1, 2] = 1
    found = compared("map", forms(keras, file), PAIRS[:1], np.array([[[1, 1]], [[0, 0]]]), 0.0)
    assert found.top1 == {"keras": 100.0, "file": 75.0}
    # Of two images one by half of its positions: the mean of 0 and -50, give or take 25 / sqrt 2.
    assert found.change["keras_file"] == AccuracyChange(-25.0, pytest.approx(25 / np.sqrt(2)))
    assert found.agreement == {"keras_file": 75.0}
    with pytest.raises(ExportError, match=r"Expected 4 labels for 2 images.*'map'.*Received: 2"):
        compared("map", forms(keras, file), PAIRS[:1], np.array([0, 1]), 0.0)


def test_ties_are_scores_that_are_equal_up_to_rounding():
    # Of the file's, and of the two best alone: 4 + 2^-20 is within 1e-6 of 4, 4 + 2^-16 is not.
    file = [[4, 4, 0], [4, 4 + 2**-20, 0], [4, 4 + 2**-16, 0], [4, 0, 0], [0, 0, 0]]
    found = compared("scores", forms(np.eye(5, 3), file), PAIRS[:1], None, 0.0)
    assert found.ties == 60.0
    assert found.change == {}  # there are no labels
    score = np.float32([[0.5], [0.5 + 2**-23], [0.75], [0.0]])
    assert compared("score", forms(score, score), PAIRS[:1], None, 0.5).ties == 50.0


def test_labels_by_output():
    assert labels_of(None, ["a", "b"]) == [None, None]
    assert labels_of({"b": 1}, ["a", "b"]) == [None, 1]
    assert labels_of([1, None], ["a", "b"]) == [1, None]
    assert labels_of([1, 0, 1], ["a"]) == [[1, 0, 1]]
    with pytest.raises(ExportError, match=r"of a, b\. Received: labels for c"):
        labels_of({"c": 1}, ["a", "b"])
    with pytest.raises(ExportError, match="labels of each output, a, b"):
        labels_of(np.zeros(2), ["a", "b"])


def test_accuracy_of_several_outputs_is_the_mean_of_those_with_labels():
    right, wrong = [[0, 1]], [[1, 0]]
    each = [
        compared("a", forms(right, right), PAIRS[:1], [1], 0.0),
        compared("b", forms(right, wrong), PAIRS[:1], [1], 0.0),
        compared("c", forms(right, wrong), PAIRS[:1], None, 0.0),
    ]
    assert mean_of(each) == {"keras": 100.0, "file": 50.0}
    assert mean_of(each[2:]) == {}
