"""Which layer gets how many bits: the other half of HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680).

How much each width of each layer costs in accuracy is estimated from the Hessian of the loss
(:mod:`~dlqat_tf.mixed_precision.sensitivity`), what it costs in bytes, bit operations or time is
what this package predicts or what was measured (:mod:`~dlqat_tf.mixed_precision.candidates`), and
an integer programme chooses (:mod:`~dlqat_tf.mixed_precision.programme`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from types import NoneType

import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf.convert.images import Data, labels_of
from dlqat_tf.mixed_precision.candidates import (
    BIT_OPERATIONS,
    LATENCY,
    SIZES,
    Candidates,
    Latencies,
)
from dlqat_tf.mixed_precision.programme import Choice
from dlqat_tf.mixed_precision.report import LayerBits, MixedPrecisionReport, Point
from dlqat_tf.mixed_precision.sensitivity import FEWEST_PROBES
from dlqat_tf.quantizers.base import check_bits

__all__ = ["BIT_OPERATIONS", "LATENCY", "MixedPrecisionReport", "choose_bits"]

_POINTS = 15  # of the trade-off curve


def choose_bits(
    model: tf.keras.Model,
    images,
    labels,
    *,
    weight_bits: Iterable[int] = (1, 2, 4, 8),
    activation_bits: Iterable[int] = (2, 4, 8),
    size: dict[str, int] | None = None,
    bit_operations: float | None = None,
    latency: tuple[float, Latencies] | None = None,
    probes: int = 32,
    seed: int = 0,
    method: str = "sat",
    head: str | None = None,
    residual_bits: int | None = 8,
    preprocessing=None,
) -> tuple[dict[str, dict[str, int]], MixedPrecisionReport]:
    r"""Choose the bits of each hidden kernel and activation under budgets.

    To the second order, rounding by :math:`\delta` raises the loss of a trained network by

    .. math:: \Omega = \tfrac12 \frac{\operatorname{Tr} H}{n} \|\delta\|^2

    (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852), where n is the number of values. The trace
    is Hutchinson's estimate; one that is not told from zero counts as its standard error. Of a
    kernel, delta is what conversion makes of it minus the kernel; of activations, the error of the
    range that loses least on the images. The widths with the smallest sum within all budgets are
    chosen, by an integer programme solved to optimality.

    Costs are exact: those of the networks that :func:`dlqat_tf.quantize` makes of the model, by
    :func:`dlqat_tf.summary`. First and last layers keep 8 bits, residual sums ``residual_bits``.
    Activations that one layer reads together get one width, and so do all calls of a layer, the
    one at the end of the model included.

    >>> overrides, report = dlqat_tf.choose_bits(model, images, labels, size={"lce": 200_000})
    >>> quantized, _ = dlqat_tf.quantize(model, overrides=overrides, images=images)

    Args:
        model: Trained float model of one input and one output of class scores.
        images: Some of its images, an array as the model takes it; one batch in memory, twice
            differentiated. A few hundred. Or a batched ``tf.data.Dataset`` of images and labels,
            whose first 512 are taken.
        labels: Their classes, integers (images,); None for a dataset.
        weight_bits: Widths to choose from, each one that the method defines.
        activation_bits: Likewise.
        size: Bytes of the weights at most, by way to store them: "declared" (packed), "int8",
            "int4" or "lce" as :func:`dlqat_tf.summary` counts them. "lce" are int8 where no layer
            has planes, "int4" where none has codes of 4 bits.
        bit_operations: Bit operations of an image at most.
        latency: Time of an image at most, and the measured time of each layer by (weight bits, bits
            that it reads), in the same unit. Layers that are not in it count as none.
        probes: Random probes of the Hessian, at least 2.
        seed: Of the probes.
        method: As in :func:`dlqat_tf.quantize`.
        head: Likewise; it decides the size of the last layer.
        residual_bits: Likewise.
        preprocessing: Likewise.

    Returns:
        Overrides for :func:`dlqat_tf.quantize` and :func:`dlqat_tf.resnet18`, which name every
        layer that was chosen for, and the report.

    Raises:
        ConversionError: As :func:`dlqat_tf.quantize`, also for images and labels, or the model has
            several inputs or outputs.
        ValueError: There is no budget, none of the choices is within the budgets (the message has
            the smallest that is), a width is out of range or not defined by the method, or the
            latencies lack a layer's width.
    """
    if not isinstance(probes, Integral) or probes < FEWEST_PROBES:
        raise ValueError(
            f"Expected at least {FEWEST_PROBES} probes, an integer, for a standard error. "
            f"Received: {probes!r}."
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"Expected seed to be an integer of at least 0. Received: {seed!r}.")
    budgets = _budgets(size, bit_operations, latency)
    weight_widths = _widths("weight_bits", weight_bits)
    activation_widths = _widths("activation_bits", activation_bits)
    candidates = Candidates(
        model,
        weight_widths,
        activation_widths,
        methods.get(method),
        dict(head=head, residual_bits=residual_bits, preprocessing=preprocessing, method=method),
        budgets,
        {} if latency is None else latency[1],
    )
    data = Data(model, images, labels, 1)
    labels = labels_of(data, model.outputs[0].shape[-1])
    uniform = {pair: candidates.costs(*pair) for pair in candidates.pairs}
    programme = candidates.programme(uniform)
    programme.check(budgets)
    found = candidates.sensitivities(data.arrays[0], labels, probes, seed)
    rises = {name: rise for name, (_, rise) in found.items()}
    choice = programme.solve(rises, budgets)
    overrides = candidates.overrides(choice)
    exact, _ = candidates.costs(weight_widths[-1], activation_widths[-1], overrides)
    return overrides, MixedPrecisionReport(
        _layers(candidates, found, choice),
        budgets,
        Point("chosen", choice.increase, {name: exact[name] for name in budgets}),
        [
            _uniform_point(pair, total, candidates, rises, budgets)
            for pair, (total, _) in uniform.items()
        ],
        {
            name: [
                Point("", each.increase, each.costs)
                for each in programme.curve(rises, name, _POINTS)
            ]
            for name in budgets
        },
    )


def _layers(candidates: Candidates, found: dict, choice: Choice) -> list[LayerBits]:
    """Return the rows of the report: what was found out about each kernel and activation."""
    rows = []
    for name, (trace, rise) in found.items():
        group = candidates.groups.get(name, ())
        rows.append(
            LayerBits(
                " + ".join(dict.fromkeys(each.name for each in group)) or name,
                "activation_bits" if name in candidates.groups else "weight_bits",
                trace.mean,
                trace.standard_error,
                rise,
                choice.bits[name],
            )
        )
    return rows


def _uniform_point(
    pair: tuple[int, int], total: dict, candidates: Candidates, rises: dict, budgets: dict
) -> Point:
    """Return what one pair of widths for all layers would cost, and raise the loss by."""
    weight, activation = pair
    rise = sum(
        each[activation if name in candidates.groups else weight] for name, each in rises.items()
    )
    return Point(f"W{weight}A{activation}", rise, {name: total[name] for name in budgets})


def _widths(name: str, bits: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(bits, Iterable) or isinstance(bits, (str, dict)):
        raise ValueError(f"Expected {name} to be widths to choose from. Received: {bits!r}.")
    found = {check_bits(each, allow_float=False, name=name) for each in bits}
    if not found:
        raise ValueError(f"Expected {name} to choose from. Received: none.")
    return tuple(sorted(found))


def _budgets(size, bit_operations, latency) -> dict[str, float]:
    expected = f"Expected size to be a dict by way to store weights, of {', '.join(SIZES)}."
    if not isinstance(size, (dict, NoneType)):
        raise ValueError(f"{expected} Received: {size!r}.")
    budgets: dict[str, float] = dict(size or {})
    unknown = set(budgets) - set(SIZES)
    if unknown:
        raise ValueError(f"{expected} Received: {', '.join(sorted(map(repr, unknown)))}.")
    if bit_operations is not None:
        budgets[BIT_OPERATIONS] = bit_operations
    if latency is not None:
        is_pair = isinstance(latency, (tuple, list)) and len(latency) == 2
        is_pair = is_pair and isinstance(latency[1], dict)
        if not is_pair or not all(isinstance(each, dict) for each in latency[1].values()):
            raise ValueError(
                "Expected latency to be a time and a dict of each layer's times. Received: "
                f"{latency!r}."
            )
        budgets[LATENCY] = latency[0]
    for name, budget in budgets.items():
        if not isinstance(budget, Real) or isinstance(budget, bool) or math.isnan(budget):
            raise ValueError(
                f"Expected the budget for {name} to be a number. Received: {budget!r}."
            )
    if not budgets:
        raise ValueError(
            "Expected a budget: size, bit_operations or latency. Received: none, which the widest "
            "widths everywhere are within."
        )
    return budgets
