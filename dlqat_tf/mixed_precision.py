"""Which layer gets how many bits: the other half of HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680).

How much each width of each layer costs in accuracy is estimated from the Hessian of the loss
(:mod:`~dlqat_tf.sensitivity`), what it costs in bytes, bit operations or time is what this package
predicts or what was measured, and an integer programme (:mod:`~dlqat_tf.programme`) chooses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf import methods
from dlqat_tf._host import replacing
from dlqat_tf.convert import ConversionError, quantize
from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.ends import classes_of
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.convert.weights import projection, started
from dlqat_tf.graph import check_graph
from dlqat_tf.heads import Head
from dlqat_tf.programme import Choice, Programme, Reader
from dlqat_tf.quantizers.base import check_bits
from dlqat_tf.quantizers.calibration import optimal_range
from dlqat_tf.quantizers.pact import highest_code
from dlqat_tf.report import Report
from dlqat_tf.sensitivity import Curvature, Trace, estimate
from dlqat_tf.summary import FILES, SummaryReport, predict

SIZES = ("declared", *FILES)
BIT_OPERATIONS, LATENCY = "bit operations", "latency"
_HIDDEN = 2  # bits that mark what is hidden: ends have 8
_POINTS = 15  # of the trade-off curve

Latencies = dict[str, dict[tuple[int, int], float]]


@dataclass(frozen=True)
class LayerBits:
    """What was found and chosen for one layer, or one quantizer of activations.

    Attributes:
        layer: Name of the layer; of activations also those that share their width.
        width: "weight_bits" or "activation_bits".
        trace: Of the Hessian of the loss by the kernel, or by the activations of one image.
        standard_error: Of the trace.
        increase: Estimated increase of the loss by bits.
        bits: The choice.
    """

    layer: str
    width: str
    trace: float
    standard_error: float
    increase: dict[int, float]
    bits: int


@dataclass(frozen=True)
class Point:
    """A network on the trade-off between loss and cost.

    Attributes:
        label: For example "W1A2", or "chosen".
        increase: Estimated increase of the loss.
        costs: By the name of what is limited.
    """

    label: str
    increase: float
    costs: dict[str, float]


@dataclass(frozen=True)
class MixedPrecisionReport(Report):
    """Which layer got how many bits, why, and what the budget bought.

    Attributes:
        layers: In the order of computation, kernels before activations.
        budgets: By name of what is limited.
        chosen: The choice; its costs are those of the converted network.
        uniform: The networks that have the same widths everywhere.
        curve: By name of what is limited, the best choices from the cheapest to the dearest.
    """

    layers: list[LayerBits]
    budgets: dict[str, float]
    chosen: Point
    uniform: list[Point]
    curve: dict[str, list[Point]]

    def tables(self):
        layers = Table(title="Bits by layer", title_justify="left")
        for column in ("layer", "width", "trace", "bits", "increase of the loss by bits"):
            layers.add_column(column, overflow="fold")
        for each in self.layers:
            rises = ", ".join(f"{bits}: {rise:.2g}" for bits, rise in each.increase.items())
            trace = f"{each.trace:.3g} ± {each.standard_error:.2g}"
            layers.add_row(each.layer, each.width, trace, str(each.bits), rises)
        names = list(self.budgets)
        points = Table(title="What the budget bought", title_justify="left")
        for column in ("network", "increase of the loss", *names):
            points.add_column(column, justify="left" if column == "network" else "right")
        budget = ["budget", "", *(f"{self.budgets[name]:,.6g}" for name in names)]
        points.add_row(*budget)
        for point in (self.chosen, *self.uniform):
            costs = (f"{point.costs[name]:,.6g}" for name in names)
            points.add_row(point.label, f"{point.increase:.3g}", *costs)
        return [layers, points]

    def draw(self, path: str | Path) -> None:
        """Draw the increase of the loss over each cost: best choices, uniform widths, the choice.

        Args:
            path: The PNG file.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2 * len(self.curve), 4), layout="constrained")
        panels = figure.subplots(1, len(self.curve), squeeze=False)[0]
        for axes, (name, points) in zip(panels, self.curve.items(), strict=True):
            axes.step(
                *zip(*((each.costs[name], each.increase) for each in points), strict=True),
                where="post",
                color="tab:blue",
                label="best choices",
            )
            for each in self.uniform:
                axes.plot(each.costs[name], each.increase, "o", color="0.5")
                place = (each.costs[name], each.increase)
                axes.annotate(each.label, place, (4, 4), textcoords="offset points", fontsize=8)
            chosen = self.chosen.costs[name], self.chosen.increase
            axes.plot(*chosen, "*", color="tab:red", markersize=12, label="chosen")
            axes.axvline(self.budgets[name], color="tab:red", linestyle=":", label="budget")
            unit = name if name in (BIT_OPERATIONS, LATENCY) else f"bytes, {name}"
            axes.set(xlabel=unit, ylabel="estimated increase of the loss", yscale="log")
            axes.set_xscale("log")
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, dpi=120, format="png")


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

    (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852, eq. 2), where n is the number of values. The trace
    is Hutchinson's estimate; one that is not told from zero counts as its standard error. Of a
    kernel, delta is what conversion makes of it minus the kernel; of activations, the error of the
    range that loses least on the images. The widths with the smallest sum within all budgets are
    chosen, by an integer programme solved to optimality.

    Costs are exact: those of the networks that :func:`dlqat_tf.quantize` makes of the model, by
    :func:`dlqat_tf.summary`. First and last layers keep 8 bits, residual sums ``residual_bits``.
    Activations that one layer reads together get one width.

    >>> overrides, report = dlqat_tf.choose_bits(model, images, labels, size={"lce": 200_000})
    >>> quantized, _ = dlqat_tf.quantize(model, overrides=overrides, images=images)

    Args:
        model: Trained float model of one input and one output of class scores.
        images: Some of its images, an array as the model takes it; one batch in memory, twice
            differentiated. A few hundred.
        labels: Their classes, integers (images,).
        weight_bits: Widths to choose from, each one that the method defines.
        activation_bits: Likewise.
        size: Bytes of the weights at most, by way to store them: "declared" (packed), "int8",
            "int4" or "lce" as :func:`dlqat_tf.summary` counts them.
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
        ConversionError: As :func:`dlqat_tf.quantize`, or the model has several inputs or outputs.
        ValueError: There is no budget, none of the choices is within the budgets (the message has
            the smallest that is), a width is out of range or not defined by the method, or the
            latencies lack a layer's width.
    """
    budgets = _budgets(size, bit_operations, latency)
    candidates = _Candidates(
        model,
        _widths("weight_bits", weight_bits),
        _widths("activation_bits", activation_bits),
        methods.get(method),
        dict(head=head, residual_bits=residual_bits, preprocessing=preprocessing, method=method),
        budgets,
        {} if latency is None else latency[1],
    )
    labels = classes_of(labels, len(images))
    uniform = {pair: candidates.costs(*pair) for pair in candidates.pairs}
    programme = candidates.programme(uniform)
    programme.check(budgets)
    found = candidates.sensitivities(np.asarray(images), labels, probes, seed)
    rises = {name: rise for name, (_, rise) in found.items()}
    choice = programme.solve(rises, budgets)
    overrides = candidates.overrides(choice)
    exact, _ = candidates.costs(max(weight_bits), max(activation_bits), overrides)
    report = MixedPrecisionReport(
        [
            LayerBits(
                " + ".join(call.name for call in candidates.groups.get(name, ())) or name,
                "activation_bits" if name in candidates.groups else "weight_bits",
                trace.mean,
                trace.standard_error,
                rise,
                choice.bits[name],
            )
            for name, (trace, rise) in found.items()
        ],
        budgets,
        Point("chosen", choice.increase, {name: exact[name] for name in budgets}),
        [
            Point(
                f"W{weight}A{activation}",
                sum(
                    rise[activation if name in candidates.groups else weight]
                    for name, rise in rises.items()
                ),
                {name: total[name] for name in budgets},
            )
            for (weight, activation), (total, _) in uniform.items()
        ],
        {
            name: [
                Point("", each.increase, each.costs)
                for each in programme.curve(rises, name, _POINTS)
            ]
            for name in budgets
        },
    )
    return overrides, report


class _Candidates:
    """The layers and activations of a model that there is a choice for.

    Attributes:
        pairs: The widths of the networks that have the same ones everywhere.
        kernels: By name, the first call of each hidden layer with a kernel.
        groups: By name, the calls whose outputs have one width.
    """

    def __init__(
        self, model, weight_bits, activation_bits, method, settings: dict, budgets, latencies
    ):
        check_graph(model, ConversionError)
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ConversionError(
                "Expected a model of one input and one output, the class scores. Received: "
                f"{len(model.inputs)} and {len(model.outputs)}."
            )
        for bits in weight_bits:
            method.check(bits)
        self._model, self._method, self._settings = model, method, settings
        self._weight_bits, self._activation_bits = weight_bits, activation_bits
        self._budgets, self._latencies = budgets, latencies
        # Heads of this package bring quantizers; what converts keeps them as they are.
        self._kept = {layer.name: "float" for layer in model.layers if isinstance(layer, Head)}
        self.pairs = [(w, a) for w in weight_bits for a in activation_bits]
        network = self._network = Network(
            model,
            Overrides(self._kept),
            settings["head"],
            dict.fromkeys(("weight_bits", "activation_bits"), _HIDDEN)
            | {"residual_bits": settings["residual_bits"]},
            preprocessing=settings["preprocessing"],
        )
        self._weighted = {
            calls[0].name: calls[0]
            for layer, calls in network.of.items()
            if calls[0].role == "weighted" or calls[0] in network.heads
        }
        self.kernels = {
            name: call
            for name, call in self._weighted.items()
            if not network.first(call) and call.layer not in network.ends
        }
        hidden = [
            call
            for call, place in network.places.items()
            if network.width_of(call) == "activation_bits" and place.bits == _HIDDEN
        ]
        self.groups, self._reads = _grouped(network, hidden, self._weighted.values())
        unknown = set(latencies) - set(self._weighted)
        if unknown:
            raise ValueError(
                f"Expected latencies by layer, of {', '.join(self._weighted)}. Received: "
                f"{', '.join(map(repr, sorted(unknown)))}."
            )

    def costs(self, weight_bits: int, activation_bits: int, overrides: dict | None = None):
        """Return what a converted model costs in all, and by layer with a kernel."""
        quantized, _ = quantize(
            self._model,
            weight_bits,
            activation_bits,
            overrides={**self._kept, **(overrides or {})},
            **self._settings,
        )
        report = predict(quantized, [name for name in FILES if name in self._budgets])
        for way in report.storage:
            if way.reason:
                raise ValueError(
                    f"Expected a network that can be stored as {way.name!r}, for its budget. With "
                    f"weights of {weight_bits} and activations of {activation_bits} bits: "
                    f"{way.reason}"
                )
        layers = {name: self._layer_costs(report, call) for name, call in self._weighted.items()}
        totals = dict.fromkeys(SIZES, 0.0)
        totals |= {way.name: float(way.weight_bytes) for way in report.storage}
        totals[BIT_OPERATIONS] = float(report.bit_operations)
        totals[LATENCY] = sum(each[LATENCY] for each in layers.values())
        return totals, layers

    def _layer_costs(self, report: SummaryReport, call: Call) -> dict[str, float]:
        count = len(self._network.of[call.layer])
        names = {call.name, *(f"{call.name}_{number}" for number in range(2, count + 1))}
        rows = [row for row in report.layers if row.layer in names]
        costs = {size: float(sum(row.bytes.get(size, 0) for row in rows)) for size in SIZES}
        macs = [each for row in rows for each in row.macs]
        costs[BIT_OPERATIONS] = float(sum(each.bit_operations for each in macs))
        costs[LATENCY] = 0.0
        measured = self._latencies.get(call.name)
        if measured is not None:
            for each in macs[:1]:
                pair = each.weight_bits, each.activation_bits
                if pair not in measured:
                    raise ValueError(
                        f"Expected the latency of {call.name!r} at {pair}, (weight bits, bits that "
                        f"it reads). Received: {', '.join(map(str, measured))}."
                    )
                costs[LATENCY] = float(measured[pair])
        return costs

    def programme(self, uniform: dict) -> Programme:
        """Return the choice as a programme, from the costs of the uniform networks."""
        readers = []
        for name, call in self._weighted.items():
            group = self._reads.get(call)
            by_widths = {}
            for (weight, activation), (_, layers) in uniform.items():
                widths = (
                    weight if name in self.kernels else 0,
                    activation if group is not None else 0,
                )
                by_widths.setdefault(widths, layers[name])
            readers.append(Reader(name, group, by_widths))
        totals, layers = next(iter(uniform.values()))
        fixed = {
            name: total - sum(each[name] for each in layers.values())
            for name, total in totals.items()
            if name in (*SIZES, BIT_OPERATIONS, LATENCY)
        }
        return Programme(readers, dict.fromkeys(self.groups, self._activation_bits), fixed)

    def sensitivities(
        self, images: np.ndarray, labels: np.ndarray, probes: int, seed: int
    ) -> dict[str, tuple[Trace, dict[int, float]]]:
        """Return traces and the increase of the loss by bits, of kernels and then of groups."""
        curvature = Curvature(
            self._network,
            images,
            labels,
            {name: _kernel(call)[0] for name, call in self.kernels.items()},
            self.groups,
        )
        traces = {
            name: estimate(np.array(each)) for name, each in curvature.samples(probes, seed).items()
        }
        found = {}
        for name, call in self.kernels.items():
            variable, axes = _kernel(call)
            kernel = np.asarray(variable, np.float64)
            errors = {
                bits: _kernel_error(kernel, axes, self._method, bits) for bits in self._weight_bits
            }
            found[name] = traces[name], errors
        for name, calls in self.groups.items():
            values = np.concatenate([np.ravel(curvature.values[call]) for call in calls])
            is_signed = self._network.places[calls[0]].signed
            errors = {bits: _error(values, bits, is_signed) for bits in self._activation_bits}
            found[name] = traces[name], errors
        return {
            name: (trace, {bits: trace.curvature * each / 2 for bits, each in errors.items()})
            for name, (trace, errors) in found.items()
        }

    def overrides(self, choice: Choice) -> dict[str, dict[str, int]]:
        """Return a choice as ``quantize`` and ``resnet18`` take it."""
        found: dict[str, dict[str, int]] = {}
        for name in self.kernels:
            found.setdefault(name, {})["weight_bits"] = choice.bits[name]
        for name, calls in self.groups.items():
            for call in calls:
                found.setdefault(call.name, {})["activation_bits"] = choice.bits[name]
        return found


def _grouped(network: Network, hidden: list[Call], weighted: Iterable[Call]):
    """Return the calls of one width by the name of the first, and what each layer reads of them."""
    of = {
        call: {other for other in hidden if network.places[other] is network.places[call]}
        for call in hidden
    }
    reads = {}
    for call in weighted:
        read = {
            source
            for each in network.of[call.layer]
            for value in each.inputs
            for source in _sources(network, value[0])
            if source in of
        }
        if read:
            together = set().union(*(of[source] for source in read))
            for source in together:
                of[source] = together
            reads[call] = next(iter(read))
    first = {call: min(of[call], key=hidden.index) for call in hidden}
    groups: dict[str, list[Call]] = {}
    for call in hidden:
        groups.setdefault(first[call].name, []).append(call)
    return groups, {call: first[source].name for call, source in reads.items()}


def _sources(network: Network, call: Call) -> set[Call]:
    """Return the rounded calls whose codes come out of a call."""
    if call in network.places:
        return {call}
    if call.role != "moving":
        return set()
    return set().union(*(_sources(network, source) for source, _ in call.inputs))


def _kernel(call: Call) -> tuple[tf.Variable, tuple[int, ...]]:
    """Return a layer's kernel and the axes of one output channel."""
    if isinstance(call.layer, tf.keras.layers.DepthwiseConv2D):
        return call.layer.depthwise_kernel, (0, 1)
    kernel = call.layer.kernel
    return kernel, tuple(range(kernel.shape.rank - 1))


def _kernel_error(kernel: np.ndarray, axes, method: methods.Method, bits: int) -> float:
    """Return the mean squared error of what conversion makes of a kernel."""
    constraint = None if method.kernel_constraint is None else method.kernel_constraint()
    _, quantized = started(kernel, axes, method.weights(bits), constraint)
    return float(np.square(projection(kernel, quantized, axes) * quantized - kernel).mean())


def _error(values: np.ndarray, bits: int, is_signed: bool) -> float:
    """Return the mean squared error of activations in the range that loses least."""
    bits = max(bits, 2) if is_signed else bits
    highest = highest_code(bits, is_signed)
    lowest = -highest if is_signed else 0
    step = optimal_range(values, lowest, highest) / highest
    rounded = np.clip(np.rint(values / step), lowest, highest) * step
    return float(np.square(rounded - values).mean())


def _widths(name: str, bits: Iterable[int]) -> tuple[int, ...]:
    try:
        found = tuple(sorted({check_bits(each, allow_float=False) for each in bits}))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not found:
        raise ValueError(f"Expected {name} to choose from. Received: none.")
    return found


def _budgets(size, bit_operations, latency) -> dict[str, float]:
    budgets: dict[str, float] = dict(size or {})
    unknown = set(budgets) - set(SIZES)
    if unknown:
        raise ValueError(
            f"Expected size to be a dict by way to store weights, of {', '.join(SIZES)}. Received: "
            f"{', '.join(map(repr, sorted(unknown)))}."
        )
    if bit_operations is not None:
        budgets[BIT_OPERATIONS] = bit_operations
    if latency is not None:
        budgets[LATENCY] = latency[0]
    if not budgets:
        raise ValueError(
            "Expected a budget: size, bit_operations or latency. Received: none, which the widest "
            "widths everywhere are within."
        )
    return budgets
