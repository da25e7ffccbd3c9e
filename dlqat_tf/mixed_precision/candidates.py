"""What there is a choice for in a model, and what each choice costs and does to the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from numbers import Real

import numpy as np
import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf.convert import ConversionError, quantize
from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.convert.place import Place
from dlqat_tf.convert.weights import constraint_of, kernel_of, on_kernel_of, projection, started
from dlqat_tf.export.integer.precision import in_float32
from dlqat_tf.graph import check_graph
from dlqat_tf.heads import Head
from dlqat_tf.mixed_precision.programme import Choice, Programme, Reader
from dlqat_tf.mixed_precision.sensitivity import Curvature, Trace, estimate
from dlqat_tf.quantizers.base import ActivationQuantizer
from dlqat_tf.quantizers.calibration import optimal_range, rounding_error, typical
from dlqat_tf.quantizers.progress import depends_on_progress
from dlqat_tf.quantizers.wrapped import rounded_kernels_of
from dlqat_tf.summary import FILES, SummaryReport, predict

SIZES = ("declared", *FILES)
BIT_OPERATIONS, LATENCY = "bit operations", "latency"
_HIDDEN = 2  # bits that mark what is hidden: ends have 8

Latencies = dict[str, dict[tuple[int, int], float]]


class Candidates:
    """The layers and activations of a model that there is a choice for.

    Attributes:
        pairs: The widths of the networks that have the same ones everywhere.
        kernels: By name, the first call of each hidden layer with a kernel.
        groups: By a name of their own, the calls whose outputs have one width: an override gives
            all calls of a layer one, also a call at the end of the model.
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
        # Second derivatives of 16 bits would be rounded, and those of float16 underflow.
        self._model, self._method, self._settings = in_float32(model), method, settings
        self._weight_bits, self._activation_bits = weight_bits, activation_bits
        self._budgets, self._latencies = budgets, latencies
        # Heads of this package bring quantizers; what converts keeps them as they are.
        self._kept = {layer.name: "float" for layer in model.layers if isinstance(layer, Head)}
        self.pairs = [(w, a) for w in weight_bits for a in activation_bits]
        self._chosen: set[str] = set()
        self._chosen = {call.name for call in _hidden(self._network_of(_HIDDEN))}
        network = self._network = self._network_of(_HIDDEN)
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
        self.groups, self._reads = _grouped(network, self._weighted.values())
        unknown = set(latencies) - set(self._weighted)
        if unknown:
            raise ValueError(
                f"Expected latencies by layer, of {', '.join(self._weighted)}. Received: "
                f"{', '.join(sorted(map(repr, unknown)))}."
            )

    def _rules(self, activation_bits: int) -> dict:
        """Return overrides that give everything that there is a choice for these bits."""
        return self._kept | {name: {"activation_bits": activation_bits} for name in self._chosen}

    def _network_of(self, bits: int) -> Network:
        """Return the calls of the model whose hidden kernels and activations have these bits."""
        return Network(
            self._model,
            Overrides(self._rules(bits)),
            self._settings["head"],
            dict.fromkeys(("weight_bits", "activation_bits"), bits)
            | {"residual_bits": self._settings["residual_bits"]},
            preprocessing=self._settings["preprocessing"],
        )

    def costs(self, weight_bits: int, activation_bits: int, overrides: dict | None = None):
        """Return what a converted model costs in all, and by layer with a kernel."""
        quantized, _ = quantize(
            self._model,
            weight_bits,
            activation_bits,
            overrides={**self._rules(activation_bits), **(overrides or {})},
            **self._settings,
        )
        _start(quantized)
        report = predict(quantized, [name for name in FILES if name in self._budgets])
        # Exports refuse what has no layer of their form; these would be stored as in an int8 file.
        # Where the narrowest widths have none, no choice has.
        refused = {way.name for way in report.storage if way.reason and way.name != "int8"}
        if overrides is None and (weight_bits, activation_bits) == self.pairs[0]:
            refused.clear()
        if refused:
            report = predict(quantized, {"int8", *self._budgets}.intersection(FILES) - refused)
            for name in refused:
                report = _stored_alike(report, name, "int8")
        for way in report.storage:
            if way.reason:
                raise ValueError(
                    f"Expected a network that can be stored as {way.name!r}, for its budget. With "
                    f"weights of {weight_bits} and activations of {activation_bits} bits: "
                    f"{way.reason}"
                )
        layers = {name: self._layer_costs(report, call) for name, call in self._weighted.items()}
        totals = dict.fromkeys(SIZES, 0.0)
        stored = (way for way in report.storage if way.name in SIZES)
        totals |= {way.name: float(way.weight_bytes) for way in stored}
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
                if not isinstance(measured[pair], Real) or not 0 <= measured[pair] < np.inf:
                    raise ValueError(
                        f"Expected the latency of {call.name!r} at {pair} to be a finite number of "
                        f"at least zero. Received: {measured[pair]!r}."
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
            {name: kernel_of(call.layer)[0] for name, call in self.kernels.items()},
            [call for calls in self.groups.values() for call in calls],
        )
        samples = {key: np.array(each) for key, each in curvature.samples(probes, seed).items()}
        found = {}
        for name, call in self.kernels.items():
            trace = estimate(samples[name])
            found[name] = (
                trace,
                {
                    bits: trace.curvature * _kernel_error(call.layer, self._method, bits) / 2
                    for bits in self._weight_bits
                },
            )
        errors = {
            bits: _errors(self._network, self._network_of(bits), curvature.values)
            for bits in self._activation_bits
        }
        for name, calls in self.groups.items():
            traces = {call: estimate(samples[call]) for call in calls}
            found[name] = (
                estimate(sum(samples[call] for call in calls)),
                {
                    bits: sum(traces[call].curvature * of[call] / 2 for call in calls)
                    for bits, of in errors.items()
                },
            )
        return found

    def overrides(self, choice: Choice) -> dict[str, dict[str, int]]:
        """Return a choice as ``quantize`` and ``resnet18`` take it."""
        found: dict[str, dict[str, int]] = {}
        for name in self.kernels:
            found.setdefault(name, {})["weight_bits"] = choice.bits[name]
        for name, calls in self.groups.items():
            for call in calls:
                found.setdefault(call.name, {})["activation_bits"] = choice.bits[name]
        return found


def _start(model: tf.keras.Model) -> None:
    """Start on any values what starts from the first batch, and end what follows training.

    Costs do not depend on either.
    """
    for layer in model.layers:
        if isinstance(layer, ActivationQuantizer) and layer.bits != 32:
            layer.start(np.ones(1, np.float32))
        for kernel, quantizer in rounded_kernels_of(layer):
            if depends_on_progress(quantizer):
                quantizer.advance(1.0, kernel)


def _stored_alike(report: SummaryReport, name: str, other: str) -> SummaryReport:
    """Return a report with one more way to store, which stores all as another does."""
    storage = [replace(way, name=name) for way in report.storage if way.name == other]
    for layer in report.layers:
        if other in layer.bytes:
            layer.bytes[name] = layer.bytes[other]
    return replace(report, storage=report.storage + storage)


def _hidden(network: Network) -> list[Call]:
    """Return the calls whose outputs are rounded to the bits of hidden activations."""
    return [
        call
        for call, place in network.places.items()
        if network.width_of(call) == "activation_bits" and place.bits == _HIDDEN
    ]


def _grouped(network: Network, weighted: Iterable[Call]):
    """Return the calls of one width, and which of these each layer reads, by name."""
    hidden = _hidden(network)
    of = {call: {call} for call in hidden}

    def join(calls: Iterable[Call]) -> None:
        together = set().union(*(of[call] for call in calls))
        of.update(dict.fromkeys(together, together))

    for call in hidden:
        place = network.places[call]
        join(each for each in hidden if each.name == call.name or network.places[each] is place)
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
            join(read)
            reads[call] = next(iter(read))
    first = {call: min(of[call], key=hidden.index) for call in hidden}
    # A layer with a kernel and a fused ReLU is in both.
    names = {call: _activations(each) for call, each in first.items()}
    groups: dict[str, list[Call]] = {}
    for call in hidden:
        groups.setdefault(names[call], []).append(call)
    return groups, {call: names[source] for call, source in reads.items()}


def _sources(network: Network, call: Call) -> set[Call]:
    """Return the rounded calls whose codes come out of a call."""
    if call in network.places:
        return {call}
    if call.role != "moving":
        return set()
    return set().union(*(_sources(network, source) for source, _ in call.inputs))


def _activations(call: Call) -> str:
    """Return the name of what a call computes, which a kernel of its layer may have too."""
    return f"activations of {call.name}"


def _kernel_error(layer, method: methods.Method, bits: int) -> float:
    """Return the mean squared error of what conversion makes of a kernel."""
    variable, axes = kernel_of(layer)
    kernel = np.asarray(variable, np.float64)
    quantizer = on_kernel_of(layer, method.weights(bits))
    _, quantized = started(kernel, axes, quantizer, constraint_of(layer, method, bits))
    factors = np.expand_dims(projection(kernel, quantized, axes), axes)
    return float(np.square(factors * quantized - kernel).mean())


def _errors(
    network: Network, rounding: Network, values: dict[Call, tf.Tensor]
) -> dict[Call, float]:
    """Return the mean squared errors of activations in the ranges that lose least, by call.

    Args:
        network: Whose calls ``values`` are of.
        rounding: The same calls, with the width in question everywhere.
        values: Of all images, by call.
    """
    found = {call: each.numpy() for call, each in values.items()}
    places = {
        call: rounding.places[other]
        for call, other in zip(network.calls, rounding.calls, strict=True)
        if call in found
    }
    rounded: dict[Place, list[np.ndarray]] = {}
    for call, place in places.items():
        rounded.setdefault(place, []).append(np.ravel(typical(found[call])))
    steps = {}
    for place, each in rounded.items():
        together = np.concatenate(each)
        codes = place.codes(together)
        steps[place] = codes, (place.range or optimal_range(together, *codes)) / codes.highest
    return {call: rounding_error(found[call], *steps[place]) for call, place in places.items()}
