"""Pictures of quantizers, networks and reports, as matplotlib figures.

Each function returns a figure of its own, free of pyplot's state: a notebook shows it, and
``figure.savefig("picture.png")`` stores it. Widths have the same colour in all pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dlqat_tf.export.files.assembly import ExportReport
from dlqat_tf.export.files.census_report import Census
from dlqat_tf.export.parity_report import ParityReport
from dlqat_tf.levels import rounded_kernels, weight_codes
from dlqat_tf.quantizers import ActivationQuantizer, WeightQuantizer
from dlqat_tf.summary import SummaryReport

_FLOAT_COLOUR = "0.65"
_STACKED_CODES = 16  # of more, no eye tells the colours apart
_BINS = 60


def quantizer(
    quantizer: WeightQuantizer | ActivationQuantizer,
    *,
    lowest: float = -1.5,
    highest: float = 1.5,
    points: int = 1201,
) -> Figure:
    """Draw a quantizer's function and, below, its gradients.

    The gradients are those of training: what an upstream gradient of 1 at every value makes of each
    value, and each value's share in the gradient of a trained number, such as CG-PACT's range.

    >>> dlqat_tf.plots.quantizer(dlqat_tf.CGPACT(2, alpha_init=1.0), lowest=-0.5)

    Args:
        quantizer: Of weights or of activations. One of weights that looks at the whole kernel (SAT
            at its largest magnitude) takes the values that are drawn for a kernel of one output
            channel.
        lowest: First value on the horizontal axis.
        highest: Last value.
        points: How many values, equally spaced.

    Raises:
        ValueError: It is no quantizer, ``lowest`` is not below ``highest``, or there are fewer than
            2 points.
    """
    _check(quantizer, "a quantizer", WeightQuantizer, ActivationQuantizer)
    if not lowest < highest or points < 2:
        raise ValueError(
            "Expected lowest below highest and at least 2 points. Received: "
            f"lowest={lowest}, highest={highest}, points={points}."
        )
    values = tf.constant(np.linspace(lowest, highest, points, dtype=np.float32)[:, None])
    quantizer(values)  # builds it
    numbers = [each for each in quantizer.trainable_weights if each.shape.num_elements() == 1]
    # A gradient of a number is a sum over values, linear in the upstream gradient of each: its own
    # gradient by the upstream one is the share of each value.
    with tf.GradientTape(persistent=True) as outer:
        upstream = tf.ones_like(values)
        outer.watch(upstream)
        with tf.GradientTape() as inner:
            inner.watch(values)
            outputs = quantizer(values)
        gradient, *sums = inner.gradient(outputs, [values, *numbers], output_gradients=upstream)
    curves = {"x": np.zeros_like(values) if gradient is None else gradient.numpy()}
    for number, each in zip(numbers, sums, strict=True):
        if each is not None:  # else it starts from the first batch, and has not
            curves[number.name.split("/")[-1].split(":")[0]] = outer.gradient(
                each, upstream
            ).numpy()

    figure = _figure(6, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = values.numpy()[:, 0]
    above.plot(x, x, ":", color="0.6", label="x")
    above.plot(x, outputs.numpy()[:, 0], color=_colour(quantizer.bits), label="Q(x)")
    above.set_ylabel("Q(x)")
    for (name, curve), style in zip(curves.items(), ("-", "--", "-."), strict=False):
        below.plot(x, curve[:, 0], style, label=f"∂Q/∂{name}")
    below.set(xlabel="x", ylabel="gradient")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    width = "float" if quantizer.bits == 32 else _width(quantizer.bits)
    figure.suptitle(f"{type(quantizer).__name__}, {width}")
    return figure


def export_report(report: ExportReport | Census) -> Figure:
    """Draw where the bytes of a file are: each layer's weights, coloured by their declared width.

    The full bar is what the file stores, its solid part what the declared width needs: int8 kernels
    store a byte for every weight, which a zip archive (an APK too) takes away again.

    >>> dlqat_tf.plots.export_report(dlqat_tf.export.to_tflite(model, "model.tflite"))

    Args:
        report: What an export or :func:`dlqat_tf.export.census` returned.

    Raises:
        ValueError: It is something else.
    """
    _check(report, "what an export or dlqat_tf.export.census returned", ExportReport, Census)
    census = report.census if isinstance(report, ExportReport) else report
    names = [each.layer for each in census.layers] + ["everything else"]
    stored = [each.bytes for each in census.layers]
    stored.append(census.file_bytes - sum(stored))
    figure = _figure(8, _height(names))
    axes = figure.subplots()
    colours = [_colour(each.declared_bits) for each in census.layers] + [_FLOAT_COLOUR]
    declared = [
        each.bytes if each.declared_bits is None else each.weights * each.declared_bits / 8
        for each in census.layers
    ]
    axes.barh(names, stored, color=colours, alpha=0.35)
    axes.barh(names, [*declared, stored[-1]], color=colours)
    for row, each in enumerate(census.layers):
        text = f" {_bytes(each.bytes)}, {_width(each.stored_bits)}, {each.kernel}"
        axes.text(each.bytes, row, text, va="center", fontsize="x-small")
    axes.text(stored[-1], len(names) - 1, f" {_bytes(stored[-1])}", va="center", fontsize="x-small")
    axes.set_xlim(0, 1.45 * max(stored))
    _rows(axes, f"{_bytes(census.file_bytes)}, deflated {_bytes(census.deflated_bytes)}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    _legend_of_widths(axes, [each.declared_bits for each in census.layers], "declared")
    return figure


def summary(report: SummaryReport) -> Figure:
    """Draw where the multiply-accumulates and the bytes of a network are, layer by layer.

    >>> dlqat_tf.plots.summary(dlqat_tf.summary(model))

    Args:
        report: What :func:`dlqat_tf.summary` returned.

    Raises:
        ValueError: It is something else.
    """
    _check(report, "what dlqat_tf.summary returned", SummaryReport)
    layers = [each for each in report.layers if each.macs or each.weight_bits]
    names = [each.layer for each in layers]
    figure = _figure(10, _height(names))
    left, right = figure.subplots(1, 2, sharey=True)
    pairs = sorted({(m.weight_bits, m.activation_bits) for each in layers for m in each.macs})
    starts = np.zeros(len(layers))
    for weight_bits, activation_bits in pairs:
        numbers = np.array(
            [
                sum(
                    m.number
                    for m in each.macs
                    if (m.weight_bits, m.activation_bits) == (weight_bits, activation_bits)
                )
                for each in layers
            ]
        )
        same = [pair[1] for pair in pairs if pair[0] == weight_bits]
        left.barh(
            names,
            numbers,
            left=starts,
            color=_colour(weight_bits),
            hatch=("", "///", "...", "xxx")[same.index(activation_bits) % 4],
            edgecolor="white",
            linewidth=0,
            label=f"W{weight_bits}A{activation_bits}",
        )
        starts += numbers
    _rows(left, f"{sum(m.number for m in report.macs):,} MACs")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    left.set_xlim(0, 1.05 * max(starts, default=1))  # empty parts of bars keep it at their ends
    figure.legend(loc="outside lower left", ncols=8, fontsize="small")
    colours = [_colour(max(each.weight_bits, default=32)) for each in layers]
    totals = {each.name: each.weight_bytes or 0 for each in report.storage}
    right.barh(names, [each.bytes["float32"] for each in layers], color=colours, alpha=0.3)
    right.barh(names, [each.bytes["declared"] for each in layers], color=colours)
    _rows(
        right,
        f"{_bytes(totals['float32'])} in float32 (pale), "
        f"{_bytes(totals['declared'])} at the declared widths",
    )
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    return figure


def parity(report: ParityReport) -> Figure:
    """Draw how far a file agrees with its model: layer by layer, and in decisions.

    Above, the share of each layer's outputs that equal the simulation's, both given the same
    input. Below, the share of equal arg-maxes of each pair, and top-1 where it is known.

    >>> dlqat_tf.plots.parity(dlqat_tf.export.parity(model, "model.tflite", images))

    Args:
        report: What :func:`dlqat_tf.export.parity` returned.

    Raises:
        ValueError: It is something else.
    """
    _check(report, "what dlqat_tf.export.parity returned", ParityReport)
    names = [each.layer for each in report.layers]
    equal = [100 * (1 - each.differing / max(each.values, 1)) for each in report.layers]
    pairs = [each.replace("_", " - ") for each in report.agreement]
    labels = pairs + [f"top-1 {name}" for name in report.top1]
    shares = list(report.agreement.values()) + list(report.top1.values())
    figure = _figure(8, _height(names) + _height(labels))
    above, below = figure.subplots(2, 1, height_ratios=(_height(names), _height(labels)))
    above.barh(names, equal, color=["tab:red" if each < 100 else "tab:green" for each in equal])
    for row, each in enumerate(report.layers):
        text = f"all {each.values:,} equal"
        if each.differing:
            text = f"{each.differing:,} of {each.values:,} differ, by {each.largest:.2g} at most"
        _inside(above, row, equal[row], text)
    _rows(above, "layers given the same input: equal values in %")
    kinds = ["tab:blue"] * len(pairs) + ["tab:orange"] * len(report.top1)
    below.barh(labels, shares, color=kinds)
    for row, share in enumerate(shares):
        _inside(below, row, share, f"{share:.2f} %")
    _rows(below, f"equal arg-max and top-1 in %, {report.images:,} images")
    for axes in (above, below):
        axes.set_xlim(0, 100)
    return figure


def latent_weights(model: tf.keras.Model, layers: Sequence[str] | None = None) -> Figure:
    """Draw histograms of the latent weights, coloured by the level that each is rounded to.

    Where two colours meet is a threshold: weights near it are those that flip. Up to 16 levels have
    a colour each, dark below and light above; of more the histogram has one colour.

    >>> dlqat_tf.plots.latent_weights(model, ["stage1_block1_1_conv", "head"])

    Args:
        model: Functional or Sequential model; nested ones are searched too.
        layers: Names of the layers to show; all whose kernel is rounded by default.

    Raises:
        ValueError: A layer has no rounded kernel.
    """
    kernels, codes_of = rounded_kernels(model), weight_codes(model)
    names = list(codes_of) if layers is None else list(layers)
    if not names or not codes_of.keys() >= set(names):
        raise ValueError(
            "Expected layers whose kernel is rounded: "
            f"{', '.join(codes_of) or 'the model has none'}. "
            f"Received: {', '.join(names) or 'none'}."
        )
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(0.6 + 3 * columns, 0.6 + 1.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        latent, codes = kernels[name].kernel.numpy().ravel(), codes_of[name].ravel()
        bins = np.linspace(latent.min(), latent.max() + 1e-9, _BINS + 1)
        levels = np.unique(codes)
        bits = kernels[name].quantizer.bits
        if len(levels) <= _STACKED_CODES:
            palette = colormaps["viridis"](np.linspace(0.1, 0.9, len(levels)))
            parts = [latent[codes == level] for level in levels]
            labels = [
                f"{level:+d}: {len(p) / len(latent):.0%}"
                for level, p in zip(levels, parts, strict=True)
            ]
            axes.hist(parts, bins, stacked=True, histtype="stepfilled", color=palette, label=labels)
            if len(levels) <= 4:
                axes.legend(fontsize="xx-small", handlelength=0.8, loc="upper right")
        else:
            axes.hist(latent, bins, histtype="stepfilled", color=_colour(bits))
        axes.set_title(f"{name}, {_width(bits)}", fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[len(names) :]:
        axes.remove()
    return figure


def activation_ranges(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> Figure:
    """Draw what each activation quantizer lets pass, before training and after.

    >>> before = dlqat_tf.levels.activation_ranges(model)
    >>> model.fit(images, labels)
    >>> dlqat_tf.plots.activation_ranges(before, dlqat_tf.levels.activation_ranges(model))

    Args:
        before: What :func:`dlqat_tf.levels.activation_ranges` returned before training.
        after: The same after it.

    Raises:
        ValueError: They are of different networks, or empty.
    """
    if before.keys() != after.keys() or not after:
        raise ValueError(
            "Expected the ranges of one network, before and after. Received: layers "
            f"{', '.join(before) or 'none'} and {', '.join(after) or 'none'}."
        )
    names = list(after)
    figure = _figure(8, _height(names) + 0.16 * len(names))
    axes = figure.subplots()
    rows = np.arange(len(names))
    for shift, ranges, colour, label in (
        (-0.2, before, _FLOAT_COLOUR, "before training"),
        (0.2, after, "tab:blue", "after training"),
    ):
        low, high = np.array([ranges[name] for name in names]).T
        axes.barh(rows + shift, high - low, 0.38, left=low, color=colour, label=label)
        for row, end in zip(rows + shift, high, strict=True):
            axes.text(end, row, f" {end:.2f}", va="center", fontsize="xx-small")
    axes.set_yticks(rows, names)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.use_sticky_edges = False  # a bar's left end is no edge of the picture
    axes.margins(x=0.1)
    _rows(axes, "range of the activations")
    figure.legend(loc="outside upper right", ncols=2, fontsize="small")
    return figure


def embeddings(
    panels: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, *, columns: int
) -> Figure:
    """Draw embeddings side by side, a colour for each class.

    >>> points = dlqat_tf.analysis.embed(dlqat_tf.analysis.features(model, images))
    >>> dlqat_tf.plots.embeddings([("GML", points)], labels, columns=1)

    Args:
        panels: Titles and points (images, 2).
        labels: Integer classes (images,), the same for all panels.
        columns: Panels in a row.
    """
    classes, positions = np.unique(labels, return_inverse=True)
    colours = (positions + 0.5) / len(classes)
    rows = -(-len(panels) // columns)
    figure = _figure(4.2 * columns, 4.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, points) in zip(grid, panels, strict=False):
        # Ten colours can be told apart; of a hundred, neighbours on the circle look alike.
        palette = "tab10" if len(classes) <= 10 else "hsv"
        axes.scatter(*points.T, c=colours, cmap=palette, vmin=0, vmax=1, s=5, linewidths=0)
        axes.set_title(title)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


class _Figure(Figure):
    """Shows itself at the end of a notebook's cell, which else only pyplot's figures do."""

    def _repr_png_(self) -> bytes:
        import io

        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()


def _check(value, expected: str, *kinds: type) -> None:
    """Raise ValueError where what is to be drawn is of another kind."""
    if not isinstance(value, kinds):
        raise ValueError(f"Expected {expected}. Received: {type(value).__name__}.")


def _figure(width: float, height: float) -> Figure:
    return _Figure(figsize=(width, height), layout="constrained")


def _height(names: Sequence[str]) -> float:
    return 1.1 + 0.24 * len(names)


def _rows(axes, title: str) -> None:
    """Finish horizontal bars: the first layer above, as networks are read."""
    axes.set_title(title, fontsize="medium")
    axes.tick_params(axis="y", labelsize="small")
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylim(len(axes.get_yticks()) - 0.4, -0.6)


def _inside(axes, row: int, percent: float, text: str) -> None:
    """Write into a bar of percents, or behind it where it is too short for the text."""
    fits = percent >= 50
    x, colour = (1, "white") if fits else (percent + 1, "black")
    axes.text(x, row, text, va="center", fontsize="x-small", color=colour)


def _width(bits) -> str:
    return f"{bits} bit" if bits == 1 else f"{bits} bits"


def _colour(bits: int | None):
    if bits is None or bits > 8:
        return _FLOAT_COLOUR
    return colormaps["plasma"]((bits - 1) / 8)


def _legend_of_widths(axes, widths: Sequence[int | None], adjective: str) -> None:
    shown = sorted({each for each in widths if each is not None})
    handles = [
        Patch(color=_colour(each), label=f"{each} bit{'s' if each > 1 else ''} {adjective}")
        for each in shown
    ]
    axes.legend(handles=handles, fontsize="small", loc="lower right")


def _bytes(value: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
