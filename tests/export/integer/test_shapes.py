"""Shapes of operations, against counting by hand and against TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.nodes import Add, AveragePool, Concatenate, Pad, Transpose, Upsample
from dlqat_tf.export.integer.shapes import (
    missing_rows,
    output_shape,
    output_size,
    same_padding,
)


@pytest.mark.parametrize(
    ("size", "window", "stride", "dilation", "same", "valid", "missing", "padding"),
    [
        (5, 3, 1, 1, 5, 3, 2, (1, 1)),  # windows around each of 5
        (5, 3, 2, 1, 3, 2, 2, (1, 1)),  # at -1, 1, 3
        (6, 3, 2, 1, 3, 2, 1, (0, 1)),  # at 0, 2, 4, the last over one row beyond
        (5, 3, 1, 2, 5, 1, 4, (2, 2)),  # rows 0, 2 and 4 of each window
        (4, 1, 2, 1, 2, 2, -1, (0, 0)),  # at 0 and 2; row 3 is left
    ],
)
def test_windows_by_hand(size, window, stride, dilation, same, valid, missing, padding):
    assert output_size(size, window, stride, dilation, "same") == same
    assert output_size(size, window, stride, dilation, "valid") == valid
    assert missing_rows(size, window, stride, dilation) == missing
    assert same_padding(size, window, stride, dilation) == padding


@given(
    size=st.integers(5, 12),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
)
def test_windows_as_tensorflow_has_them(size, window, stride, dilation, padding):
    if stride > 1:
        dilation = 1  # which TensorFlow does not combine
    rows, kernel = np.zeros((1, size, 1)), np.zeros((window, 1, 1))
    found = tf.nn.conv1d(rows, kernel, stride, padding.upper(), dilations=dilation)
    assert output_size(size, window, stride, dilation, padding) == found.shape[1]


@pytest.mark.parametrize(
    ("node", "inputs", "expected"),
    [
        (
            AveragePool(name="", size=(2, 3), strides=(2, 1), padding="valid"),
            [(5, 5, 4)],
            (2, 3, 4),
        ),
        (Concatenate(name=""), [(2, 2, 3), (2, 2, 4)], (2, 2, 7)),
        (Pad(name="", amounts=((1, 0), (2, 3))), [(4, 4, 2)], (5, 9, 2)),
        (Upsample(name="", size=(2, 3)), [(2, 2, 5)], (4, 6, 5)),
        (Transpose(name="", order=(2, 0, 1)), [(4, 5, 6)], (6, 4, 5)),
        (Add(name=""), [(4, 4, 3), (1, 1, 3)], (4, 4, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_operations_by_hand(node, inputs, expected):
    assert output_shape(node, inputs) == expected


def test_summands_of_other_ranks_are_named():
    with pytest.raises(ExportError, match=r"'sum' computes with .* \(4, 3\), \(3,\)"):
        output_shape(Add(name="sum"), [(4, 3), (3,)])
