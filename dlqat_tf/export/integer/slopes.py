"""Functions of two slopes, as PReLU: one int8 operation between two grids.

TFLite's PRELU holds int8 slopes of one step, and rounds as its reference kernel whoever runs it,
which LEAKY_RELU does not: XNNPACK has 8 bits for that one's slope, and other kernels 31. It rounds
twice, first to a part of a step of the output that is the coarser the larger this step is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import function_of
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Island, Lookup, Node, PReLU
from dlqat_tf.export.integer.rounding import BuiltIn, Micro, Sloped
from dlqat_tf.quantizers import ActivationGrid

_layers = tf.keras.layers
_WIDEST = 127
_LEAST = 2.0**-40  # which no code tells from zero
_FARTHEST = 5  # codes that a slope is moved by
_TRIED = 128  # steps, up to 6 % longer
_MOVES = 16  # until codes and step stay what they are
_DIGITS = 16  # binary ones of a step, so that float32 holds its products with codes
_DEFAULT = 0.2  # the slope of TensorFlow's function


def slopes_of(layer) -> np.ndarray | None:
    """Return the slopes below zero of a layer or an activation; None where it has none.

    Args:
        layer: Or an activation.

    Returns:
        float32 that broadcast against one input, which is passed on from zero up.
    """
    if type(layer) is _layers.Activation:
        return slopes_of(layer.activation)
    if function_of(layer) not in ("leaky_relu", "prelu"):
        return None
    match layer:
        case _layers.PReLU():
            return np.float32(tf.convert_to_tensor(layer.alpha))
        case _layers.LeakyReLU():
            return np.float32([layer.alpha])
        case _layers.ReLU():
            is_plain = layer.max_value is None and not layer.threshold
            return np.float32([layer.negative_slope]) if is_plain else None
    return np.float32([_DEFAULT])


def codes_of_slopes(
    slopes: np.ndarray, source: ActivationGrid, target: ActivationGrid
) -> tuple[np.ndarray, np.float32] | None:
    """Return int8 codes of slopes, and their step, with which the operation rounds as Keras.

    The kernel rounds twice. One slope alone takes the highest code that suits it, and is held as it
    is. Several are moved to the nearest codes that suit, of at most five further on: those of codes
    times step have the same codes and the same step.

    Args:
        slopes: float32.
        source: Grid of the input.
        target: Grid of the output.

    Returns:
        Codes and step; None where there are none with which every code of the input becomes what
        float32 says.
    """
    if not np.all(_suits(np.ones(1), 1, source, target, from_zero=True)):
        return None
    slopes = np.where(np.abs(slopes) < _LEAST, np.float32(0), slopes)
    if slopes.size == 1:
        largest = float(np.abs(slopes).max())
        for code in range(_WIDEST, _WIDEST // 2, -1):
            step = np.float32(largest / code if largest else 1.0)
            codes = np.rint(slopes / step)
            if np.all(_suits(codes, step, source, target)):
                return codes.astype(np.int8), step
        return None
    moved = slopes
    for _ in range(_MOVES):
        held = _near_codes(moved, source, target)
        if held is None:
            return None
        codes, step = held
        before, moved = moved, np.float32(codes) * step
        if np.array_equal(moved, before):
            is_near = np.abs(slopes / step - codes).max() <= _FARTHEST
            return held if is_near else None
        # The largest may be another one, and so the step that it asks for.
    return None


def _near_codes(slopes: np.ndarray, source: ActivationGrid, target: ActivationGrid):
    """Return codes that suit, near to slopes, and their step; None where there are none."""
    largest = float(np.abs(slopes).max())
    mantissa, exponent = np.frexp(largest / _WIDEST if largest else 1.0)
    highest = _WIDEST * np.sign(slopes.flat[np.abs(slopes).argmax()])
    for i in range(_TRIED):
        digits = np.ceil(mantissa * 2**_DIGITS) + 16 * i
        step = np.float32(np.ldexp(digits / 2**_DIGITS, exponent))
        if np.all(_suits(np.array([highest]), step, source, target)):
            break
    else:
        return None
    every = np.arange(-_WIDEST, _WIDEST + 1)
    suiting = every[_suits(every, step, source, target)]
    distances = np.abs(slopes[..., None] / step - suiting)
    if distances.min(-1).max() > _FARTHEST:
        return None
    return suiting[distances.argmin(-1)].astype(np.int8), step


def _suits(
    slopes: np.ndarray,
    step: float,
    source: ActivationGrid,
    target: ActivationGrid,
    from_zero: bool = False,
) -> np.ndarray:
    """Return for which codes of slopes all kernels round inputs on one side as float32 does."""
    slopes = np.asarray(slopes, np.int64)
    ends = (0, source.highest + 1) if from_zero else (source.lowest, 0)
    codes = np.arange(*ends)[:, None]
    values = np.float32(codes) * source.step * np.float32(slopes * step)
    expected = np.rint(values * (np.float32(1) / target.step))
    ones = np.ones_like(slopes)
    value = Sloped(codes, source, ones if from_zero else slopes, np.float32(step))
    ends = target.lowest, target.highest
    every = [np.clip(kernels.sloped(value, target), *ends) for kernels in (Micro(), BuiltIn())]
    return np.all(every == np.clip(expected, *ends), axis=(0, 1))


def with_slopes(network: IntegerNetwork, grids: Callable) -> IntegerNetwork:
    """Return the network with functions of two slopes between two grids as :class:`PReLU`.

    Args:
        network: Whose codes lie on the grids of its file.
        grids: Returns the grid of every node's output.
    """
    known, readers = grids(network), network.consumers()
    found: dict[str, PReLU | None] = {}  # by the name of the function
    for node in network:
        if not isinstance(node, Island) or node.slopes is None:
            continue
        found[node.name] = None
        if len(readers[node.name]) != 1:
            continue
        (source,), (output,) = node.inputs, readers[node.name]
        if known[source] and _are_held(network.shapes[source], readers[output.name]):
            (rounding,) = readers[output.name]
            held = codes_of_slopes(node.slopes, known[source], rounding.grid)
            if held is None:
                continue
            codes, step = held
            found[node.name] = PReLU(
                name=output.name,
                inputs=node.inputs,
                layer=node.layers[0] if node.slopes.size > 1 else "",
                slopes=node.slopes,
                codes=codes,
                step=step,
            )
    gone = {name for name in found if _is_of_like_calls(network, found, name)}
    made = {found[name].name: found[name] for name in gone}
    nodes = (made.get(node.name, node) for node in network if node.name not in gone)
    return IntegerNetwork(tuple(nodes))


def _is_of_like_calls(network: IntegerNetwork, found: dict, name: str) -> bool:
    """Return whether a function has an operation, and all calls of its layer the same slopes.

    Slopes of a layer that is called on several grids stay as trained, in float.
    """
    first = found[name]
    if first is None or not first.layer:
        return first is not None
    calls = [each for each in found if network[each].layers[0] == first.layer]
    return all(
        found[each] is not None
        and np.array_equal(found[each].codes * found[each].step, first.codes * first.step)
        for each in calls
    )


def _are_held(shape: tuple[int, ...], rounding: list[Node]) -> bool:
    """Return whether the operation can give what alone reads it the codes that it wants."""
    if len(shape) > 3 or len(rounding) != 1 or not isinstance(rounding[0], Activation):
        return False
    grid = rounding[0].grid  # the operation has no ReLU to end it at zero
    is_filled = grid.lowest < 0 or grid.highest - grid.lowest == 255
    return is_filled and not isinstance(rounding[0], Lookup)
