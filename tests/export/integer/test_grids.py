import numpy as np
import pytest

from dlqat_tf.export.integer.grids import (
    code_of,
    grids,
    integer_merge,
    signs,
    single_activation,
    tail_of,
)
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Add,
    Concatenate,
    Input,
    MaxPool,
    Output,
    Pad,
    Sign,
)
from dlqat_tf.quantizers import ActivationGrid

HALVES = ActivationGrid(0, 3, np.float32(0.5))
IMAGES = Input(name="images", shape=(4, 4, 2))


def activation(name, source, grid=HALVES):
    return Activation(name=name, inputs=(source,), grid=grid, bits=2)


def pool(name, source):
    return MaxPool(name=name, inputs=(source,), size=(2, 2), strides=(2, 2), padding="valid")


@pytest.mark.parametrize(
    ("value", "code"), [(0.0, 0), (1.5, 3), (0.5, 1), (0.6, None), (2.0, None), (-0.5, None)]
)
def test_the_code_of_a_value(value, code):
    assert code_of(value, HALVES) == code


def test_what_moves_codes_keeps_their_grid():
    finer = ActivationGrid(0, 3, np.float32(0.25))
    network = IntegerNetwork(
        (
            IMAGES,
            activation("a", "images"),
            pool("pooled", "a"),
            activation("b", "images"),
            activation("c", "images", finer),
            Concatenate(name="same", inputs=("a", "b")),
            Concatenate(name="other", inputs=("a", "c")),
            Pad(name="held", inputs=("a",), amounts=((1, 1), (1, 1)), value=0.5),
            Pad(name="none", inputs=("a",), amounts=((1, 1), (1, 1)), value=0.6),
            Add(name="sum", inputs=("a", "b")),
        )
    )
    found = grids(network)
    assert [name for name, grid in found.items() if grid == HALVES] == [
        *("a", "pooled", "b", "same", "held"),
    ]
    assert found["c"] == finer
    assert [found[name] for name in ("other", "none", "sum")] == [None] * 3


def test_what_stays_a_sign():
    network = IntegerNetwork(
        (
            IMAGES,
            Sign(name="sign", inputs=("images",)),
            activation("a", "images"),
            pool("pooled", "sign"),
            Concatenate(name="signs", inputs=("sign", "sign")),
            Concatenate(name="mixed", inputs=("sign", "a")),
        )
    )
    assert signs(network) == {"sign", "pooled", "signs"}


def test_what_is_behind_the_last_rounding_and_what_rounds_a_sum():
    network = IntegerNetwork(
        (
            IMAGES,
            activation("a", "images"),
            activation("b", "images"),
            Add(name="sum", inputs=("a", "b")),
            activation("act", "sum"),
            Add(name="read twice", inputs=("a", "act")),
            activation("c", "read twice"),
            Add(name="last", inputs=("read twice", "c")),
            Output(name="output", inputs=("last",)),
        )
    )
    assert tail_of(network) == {"last", "output"}
    known, readers = grids(network), network.consumers()
    assert single_activation(network["sum"], readers) is network["act"]
    assert single_activation(network["read twice"], readers) is None
    merges = [node.name for node in network if integer_merge(node, known, readers)]
    assert merges == ["sum"]
