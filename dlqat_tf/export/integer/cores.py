"""Which convolutions are cheaper as binary planes than on int8 kernels, by class of ARM core.

A convolution of x-bit weights and y-bit codes is x times y binary ones, of which each takes a fixed
number of instructions. int8 kernels take fewer the newer the core is: none, four or eight products
of a lane at once. From counts of executed instructions and modelled cycles of both kinds of kernel
at 26 shapes; not measured on phones.
"""

from __future__ import annotations

import numpy as np

from dlqat_tf.export.integer.nodes import Convolution

TARGETS = ("armv8.0", "dotprod", "i8mm", "all")
"""Classes of cores: without the int8 dot product (Cortex-A53, A72, A73), with it (A55, A75 to A78,
X1), with int8 matrix products too (A710, X2 and later); "all" runs on planes whatever can."""
# Least products of a sum (window times input channels) for which so many planes pay.
_LEAST = {
    "armv8.0": {planes: 128 * planes for planes in range(1, 5)},
    "dotprod": {1: 576, 2: 1152},
    "i8mm": {1: 576},
}
_WORD, _LANES, _PIXELS = 32, 8, 4  # that binary kernels work on at once


def dearer(node: Convolution, planes: int, output: tuple[int, ...], target: str) -> str:
    """Return why a convolution is cheaper on int8 kernels, "" where it is cheaper as planes.

    Args:
        node: A convolution of one group that has planes.
        planes: How many: bits of its weights times bits of its input.
        output: Shape of its output, (rows, columns, channels).
        target: One of :data:`TARGETS`.
    """
    if target == "all":
        return ""
    rows, columns, channels_in, channels = node.weights.shape
    products, pixels = int(np.prod(node.weights.shape[:3])), output[0] * output[1]
    least = _LEAST[target].get(planes)
    few = pixels < _PIXELS and not (
        target == "armv8.0" and planes <= 2 and (rows, columns) == (3, 3)
    )
    if channels_in < _WORD:
        return f"{channels_in} input channels, planes pay from {_WORD} on"
    if channels % _LANES:
        return f"{channels} output channels, no multiple of {_LANES}"
    if few:
        return f"{pixels} output pixels, planes pay from {_PIXELS} on"
    if least is None:
        return f"{planes} planes, at most {max(_LEAST[target])} pay on {target}"
    if products < least:
        return f"{planes} planes of {products} products, on {target} they pay from {least} on"
    return ""
