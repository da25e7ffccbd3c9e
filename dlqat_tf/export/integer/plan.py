"""Decides which kernel runs each node.

A value is either *coded* (integers on a grid) or float. Integer kernels need coded inputs and a
grid for their output, so a convolution runs on them when one activation quantizer directly follows.
Where training saw no rounding none is added, except where asked for by calibration images: the
nodes between run in float.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dlqat_tf._progress import steps
from dlqat_tf.export.integer.adds import with_exact_adds
from dlqat_tf.export.integer.bilinear import with_bilinear
from dlqat_tf.export.integer.binary_forms import (
    no_planes,
    with_clipped_sums,
    with_dense_as_convolutions,
)
from dlqat_tf.export.integer.calibrated import rounded_to_ranges, with_ranges
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.grids import (
    code_of,
    free_levels,
    grids,
    integer_merge,
    levels_of,
    signs,
    single_activation,
    tail_of,
)
from dlqat_tf.export.integer.integers import (
    add_multipliers,
    is_integer,
    product_ratio,
    rounding_of,
)
from dlqat_tf.export.integer.kernels import DEPTHWISE
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Convolution,
    Levels,
    Multiply,
    Node,
    Output,
    Sign,
    TransposedConvolution,
    Weighted,
)
from dlqat_tf.export.integer.regrid import with_common_grids, with_integer_pools
from dlqat_tf.export.integer.slopes import with_slopes
from dlqat_tf.export.integer.storing import stored

# Relative: steps that moved by less keep their codes, and by more their values, as a step of 8 bits
# that meets one of 2 bits does.
_SMALL = 1e-4


def plan(
    network: IntegerNetwork,
    *,
    calibrate: Callable[[IntegerNetwork, list[str]], dict[str, tuple[float, float]]] | None = None,
    plane_limit: int = 0,
    target: str = "all",
    int4: bool = False,
    library: str = "xnnpack",
    floats: bool = False,
    clear: bool = True,
) -> IntegerNetwork:
    """Return the network with the kernel and the stored bias of every node decided.

    Args:
        network: What :func:`dlqat_tf.export.integer.lower.lower` returns.
        calibrate: Given a network and names of nodes, returns the lowest and highest output of
            each, measured on images. None: a convolution that needs a range is an error, or runs
            in float where ``plane_limit`` is set or where signs follow.
        plane_limit: Largest product of weight and activation bits that runs as binary planes;
            0 for stock kernels only.
        target: Which layers of those run as planes: all, or those that are cheaper so on a class of
            cores (:mod:`dlqat_tf.export.integer.cores`) or that int8 kernels cannot run.
        int4: Store hidden weights of up to 3 bits as int4.
        library: Whose kernels the biases are for, see
            :attr:`dlqat_tf.export.integer.nodes.Weighted.library`.
        floats: Run every layer with weights in float.
        clear: Choose biases by the rounding thresholds around them, see
            :func:`dlqat_tf.export.integer.storing.stored`, steps of what is concatenated so that
            they have a common one, see :mod:`dlqat_tf.export.integer.meetings`, and steps of what
            is added so that kernels hold their ratios, see :mod:`dlqat_tf.export.integer.adds`;
            else all are as trained, up to what the kernel can hold.

    Raises:
        ExportError: A layer has no kernel that computes what was trained; names it.
    """
    if not plane_limit:
        _check_stock(network)
        network = rounded_to_ranges(network, calibrate, floats)
    trained = grids(network)
    network = with_integer_pools(with_common_grids(network, clear))
    network = with_bilinear(with_slopes(network, grids), grids)
    if plane_limit:
        network = with_dense_as_convolutions(network, levels_of, plane_limit)
    planned = _with_kernels(network, plane_limit, target, library, floats)
    missing = _without_range(planned)
    if calibrate is None and not plane_limit:
        planned = _in_float(planned, [name for name in missing if _signs_follow(planned, name)])
        missing = _without_range(planned)
    if not missing:
        network = planned
    elif calibrate is not None:
        network = with_ranges(planned, missing, calibrate)
    elif plane_limit:
        network = _without_int8(planned, missing, _with_kernels(network, plane_limit, "all"))
    else:
        raise _no_range(missing)
    if int4:
        network = _with_int4(network, floats)
    _check_kernels(network)
    if clear:
        network = with_exact_adds(network)
    readers = network.consumers()
    network = with_clipped_sums(network, lambda node: rounding_of(node, readers) is not None)
    return _with_stored_biases(network, clear, trained)


def _check_stock(network: IntegerNetwork) -> None:
    """Raise ExportError where stock kernels have no form of a node."""
    for node in network:
        if isinstance(node, Levels):
            raise ExportError(
                f"Layer {node.name!r} has activation levels that are no grid, which stock kernels "
                "do not have and Larq Compute Engine (LCE) computes by thresholds: export with "
                "to_lce."
            )


def _check_kernels(network: IntegerNetwork) -> None:
    """Raise ExportError where an integer kernel cannot compute what a node says."""
    known, readers = grids(network), network.consumers()
    for node in network:
        if integer_merge(node, known, readers):
            target, sources = readers[node.name][0], [known[name] for name in node.inputs]
            multiplier = product_ratio if isinstance(node, Multiply) else add_multipliers
            multiplier(node.name, sources, target.grid)
        if is_integer(node) and isinstance(node, Convolution):
            grid = known[node.inputs[0]]
            if code_of(node.pad_value, grid) is None:
                raise ExportError(
                    f"Layer {node.name!r} pads with {node.pad_value:g}, and its input has only the "
                    f"multiples of {grid.step:g} from {grid.lowest} to {grid.highest}: pad with 0."
                )


def _with_kernels(
    network: IntegerNetwork,
    plane_limit: int,
    target: str,
    library: str = "xnnpack",
    floats: bool = False,
) -> IntegerNetwork:
    known, tail, by_name = grids(network), tail_of(network), {n.name: n for n in network}
    levels, of_signs = free_levels(network), signs(network)

    def kernel_of(node: Weighted) -> tuple[str, str]:
        """Return a layer's kernel and, where binary ones were a choice, why that one."""
        why = ""
        if floats:
            return "float", why
        if plane_limit:
            why = "not a convolution"
            if isinstance(node, Convolution):
                source = by_name[node.inputs[0]]
                on = known[source.name] or levels[source.name]
                why = no_planes(node, source, on, plane_limit, target, network.shapes)
            if not why:
                return "planes", "cheaper so" if target != "all" else "all that can are"
        elif _sums_signs(node, of_signs):
            return "sums", why
        if node.step is None or known[node.inputs[0]] is None or node.name in tail:
            return "float", why
        if plane_limit and isinstance(node, TransposedConvolution):
            return "float", "its int8 kernel there rounds twice"
        return "int8", why

    def placed(node: Node) -> Node:
        if not isinstance(node, Weighted):
            return node
        kernel, why = kernel_of(node)
        return replace(node, kernel=kernel, why=why, library=library)

    return IntegerNetwork(tuple(map(placed, network)))


def _sums_signs(node: Weighted, of_signs: set[str]) -> bool:
    """Return whether a layer's sums of signs times codes are integers that float32 holds."""
    codes = np.abs(node.weights.reshape(-1, node.weights.shape[-1]))
    is_exact = node.step is not None and node.free is None and float(node.pad_value).is_integer()
    return node.inputs[0] in of_signs and is_exact and codes.sum(axis=0).max() < 2**24


def _without_int8(
    network: IntegerNetwork, names: list[str], widest: IntegerNetwork
) -> IntegerNetwork:
    """Run nodes as planes, where ``widest`` does, or in float: int8 kernels would need a range."""
    why = "no activation rounds its output, so int8 kernels would need calibration images"

    def other(node: Node) -> Node:
        if node.name not in names:
            return node
        planes = widest[node.name].kernel == "planes"
        return replace(node, kernel="planes" if planes else "float", why=why)

    return IntegerNetwork(tuple(map(other, network)))


def _in_float(network: IntegerNetwork, names: list[str]) -> IntegerNetwork:
    return IntegerNetwork(
        tuple(replace(node, kernel="float") if node.name in names else node for node in network)
    )


def _no_range(names: list[str]) -> ExportError:
    """Return the error about nodes on integer kernels whose output nothing rounds."""
    there = "(resnet18(residual_bits=8) has one on each input of its residual adds)"
    if any(name.endswith(DEPTHWISE) for name in names):
        there = (
            "(in place of a separable layer a QuantDepthwiseConv2D, an activation quantizer of 8 "
            "signed bits and a 1x1 QuantConv2D)"
        )
    return ExportError(
        f"The output range of {', '.join(map(repr, names))} cannot be known from the model: no "
        f"activation quantizer directly follows. Either train with one there {there}, or pass "
        "calibration images."
    )


def _signs_follow(network: IntegerNetwork, name: str) -> bool:
    """Return whether only the signs of what a node gives are read on: no range would suit them."""
    readers = network.consumers()
    rest, found = list(readers[name]), False
    while rest:
        node = rest.pop()
        if isinstance(node, (Activation, Output)):
            return False
        found |= isinstance(node, Sign)
        rest += [] if isinstance(node, Sign) else readers[node.name]
    return found


def _without_range(network: IntegerNetwork) -> list[str]:
    """Return the nodes on integer kernels whose output no activation rounds."""
    readers = network.consumers()
    return [
        node.name
        for node in network
        if isinstance(node, Weighted)
        and node.kernel == "int8"
        and not single_activation(node, readers)
    ]


def _with_int4(network: IntegerNetwork, floats: bool) -> IntegerNetwork:
    change = dict(storage="int4") if floats else dict(kernel="int4")
    fits = [
        isinstance(node, Convolution)
        and node.step is not None
        and node.kernel == ("float" if floats else "int8")
        and node.bits <= 4
        and np.abs(node.weights).max() <= 7
        and node.groups == 1
        and not node.depthwise
        for node in network
    ]
    planned = IntegerNetwork(
        tuple(
            replace(node, **change) if fit else node
            for node, fit in zip(network, fits, strict=True)
        )
    )
    if not any(fits):
        raise ExportError(
            'weights="int4" holds codes from -7 to 7, that is 1 to 3 bits: no convolution of this '
            'model has them. Export with weights="int8".'
        )
    return planned


def _with_stored_biases(network: IntegerNetwork, clear: bool, trained: dict) -> IntegerNetwork:
    known, levels, readers = grids(network), free_levels(network), network.consumers()
    gains = Counter(getattr(node, "gain_source", "") for node in network)
    biases = Counter(source for node in network for source in getattr(node, "bias_sources", ())[:1])

    def before(name: str) -> float:
        """Return the step of a node's output as trained, in parts of what it is now."""
        first, now = trained.get(name), known.get(name)
        ratio = float(first.step) / float(now.step) if first and now else 1.0
        return ratio if abs(ratio - 1) < _SMALL else 1.0

    def planned(node: Node, **options) -> Node:
        target = rounding_of(node, readers)
        if not target or levels[node.inputs[0]]:
            return node
        if gains[node.gain_source] > 1:  # a gain of several calls moves for none
            node = replace(node, gain_source="")
        # What no layer holds, or a layer for several calls, makes up for no step.
        is_held = node.bias_sources and biases[node.bias_sources[0]] == 1
        if is_held:
            options["trained"] = before(node.inputs[0]), before(target.name)
        return stored(node, known[node.inputs[0]], target, clear=clear, **options)

    nodes = {node.name: planned(node) for node in steps("biases, layer", network)}
    # Calls of one layer store its codes once, so they stretch them alike.
    calls: dict[bytes, list[str]] = {}
    for node in nodes.values():
        if getattr(node, "stretch", None) is not None:
            calls.setdefault(node.weights.tobytes(), []).append(node.name)
    for names in calls.values():
        if len({nodes[name].stretch.tobytes() for name in names}) > 1:
            nodes |= {name: planned(network[name], largest=True) for name in names}
    return IntegerNetwork(tuple(nodes.values()))
