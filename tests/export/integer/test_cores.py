import numpy as np
import pytest

from dlqat_tf.export.integer.cores import dearer
from dlqat_tf.export.integer.nodes import Convolution


def convolution(rows=3, channels_in=128, channels=128):
    weights = np.ones((rows, rows, channels_in, channels), np.int16)
    return Convolution(
        name="x", weights=weights, step=np.ones(channels), bias=np.zeros(channels), bits=1
    )


@pytest.mark.parametrize(
    ("target", "planes", "channels_in", "pays"),
    [
        # 3 x 3 windows: 576 products of 64 channels, 1152 of 128
        ("armv8.0", 4, 64, True),  # from 512 on
        ("armv8.0", 4, 56, False),  # 504
        ("armv8.0", 5, 512, False),
        ("dotprod", 1, 64, True),
        ("dotprod", 1, 63, False),
        ("dotprod", 2, 128, True),
        ("dotprod", 2, 127, False),
        ("dotprod", 3, 512, False),
        ("i8mm", 1, 64, True),
        ("i8mm", 1, 63, False),
        ("i8mm", 2, 512, False),
        ("all", 9, 1, True),
    ],
)
def test_planes_pay_where_sums_are_long_enough_for_their_number(target, planes, channels_in, pays):
    reason = dearer(convolution(channels_in=channels_in), planes, (7, 7, 128), target)
    assert (reason == "") == pays
    assert pays or target in reason


def test_planes_work_on_words_of_channels_and_on_groups_of_outputs_and_pixels():
    assert "31 input channels" in dearer(convolution(7, 31), 1, (9, 9, 128), "i8mm")
    assert dearer(convolution(7, 32), 1, (9, 9, 128), "i8mm") == ""
    assert "12 output channels" in dearer(convolution(3, 128, 12), 1, (9, 9, 12), "i8mm")
    assert "3 output pixels" in dearer(convolution(), 1, (1, 3, 128), "dotprod")
    assert dearer(convolution(), 1, (2, 2, 128), "dotprod") == ""


def test_without_the_dot_product_one_pixel_is_enough_for_two_planes_of_3_by_3():
    assert dearer(convolution(), 2, (1, 1, 128), "armv8.0") == ""
    assert "1 output pixels" in dearer(convolution(), 3, (1, 1, 128), "armv8.0")
    assert "1 output pixels" in dearer(convolution(1, 512), 2, (1, 1, 128), "armv8.0")
