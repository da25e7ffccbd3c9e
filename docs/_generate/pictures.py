"""Pictures of the pages, drawn by running the package."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import dlqat_tf
from dlqat_tf import plots, zoo
from dlqat_tf.export.files.census import census
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.nodes import Convolution
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.quantizers.base import WeightQuantizer
from dlqat_tf.summary import predict

import larq as lq  # isort: skip  (after dlqat_tf, which selects Keras 2)
import tensorflow as tf  # isort: skip

matplotlib.rcParams["svg.hashsalt"] = "dlqat_tf"  # the same file from the same picture
_COLOURS = {1: "#c0392b", 2: "#2471a3", 3: "#b7950b", 4: "#1e8449"}
_GREY = "#7f8c8d"


def svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def functions(columns: list[tuple[str, list]]) -> Figure:
    """Draw quantizers above their gradients, a column for weights and one for activations.

    Args:
        columns: What the quantizers are for, and those of several widths.
    """
    figure = Figure((5.2 * len(columns), 5.4), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False, sharex="col")
    for (what, quantizers), above, below in zip(columns, *grid, strict=True):
        for quantizer in quantizers:
            values = _values(quantizer)
            outputs, places, slopes = _function_and_gradient(quantizer, values)
            bits = quantizer.bits
            style = {"color": _COLOURS[bits], "label": f"{bits} bit{'s' * (bits > 1)}"}
            above.plot(values, outputs, linewidth=1.5, **style)
            below.plot(values[places], slopes, linewidth=1.5, **style)
        above.set(title=f"{what}: value", ylabel="quantized")
        below.set(
            title="gradient", xlabel=f"latent {what.rstrip('s')}", ylabel="d quantized / d latent"
        )
        below.set_ylim(bottom=min(0.0, below.get_ylim()[0]))
        for axes in (above, below):
            axes.grid(alpha=0.25)
        above.legend(loc="upper left", frameon=False)
    return figure


def _values(quantizer) -> np.ndarray:
    low, high = (-1, 1) if isinstance(quantizer, WeightQuantizer) else (-0.5, 3)
    return np.linspace(low, high, 401, dtype=np.float32)


def _function_and_gradient(quantizer, values: np.ndarray):
    """Return the outputs, and at every eighth place the derivative by the value there."""
    kernel = tf.Variable(values[:, None])  # one output channel, or images of one feature
    quantizer(kernel, training=True)  # what starts from data starts
    places = range(0, len(values), 8)
    with tf.GradientTape(persistent=True) as tape:
        training = quantizer(kernel, training=True)
    slopes = []
    for place in places:
        upstream = tf.one_hot([place], len(values), axis=0)
        slopes.append(tape.gradient(training, kernel, upstream).numpy()[place, 0])
    if hasattr(quantizer, "advance"):  # to the end of training, where everything is rounded
        quantizer.advance(1.0, kernel)
    return quantizer(kernel).numpy()[:, 0], list(places), slopes


def small_network(weight_bits: int = 1, activation_bits: int = 2) -> tf.keras.Model:
    """Return a network of two convolutions with random weights, for pictures of its integers."""
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    inputs = tf.keras.Input((8, 8, 3))

    def convolution(x, filters, bits):
        quantizer = dlqat_tf.SATWeights(bits)
        x = lq.layers.QuantConv2D(
            filters, 3, use_bias=False, padding="same", kernel_quantizer=quantizer
        )(x)
        initializer = tf.keras.initializers.RandomUniform(-1, 1, seed=2)
        return layers.BatchNormalization(beta_initializer=initializer)(x)

    x = dlqat_tf.CGPACT(activation_bits, alpha_init=2.0)(convolution(inputs, 16, 8))
    x = dlqat_tf.CGPACT(2, alpha_init=40.0)(convolution(x, 16, weight_bits))
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, dlqat_tf.LinearHead(10)(x))


def _hidden(network):
    """Return the second convolution, which has the network's hidden width."""
    return [each for each in network if isinstance(each, Convolution)][1]


def zero_point() -> Figure:
    """Draw where the codes of activations lie in an int8, and what saturates there."""
    figure = Figure((8.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, bits in enumerate((1, 2, 4, 8)):
        grid = dlqat_tf.CGPACT(bits, alpha_init=1.0)
        grid(tf.zeros((1, 1)))
        top = grid.grid().highest
        zero = 127 - top
        axes.plot([-128, 127], [row, row], color="#d5d8dc", linewidth=9, solid_capstyle="butt")
        codes = np.arange(top + 1) + zero
        axes.plot(codes, np.full(len(codes), row), "|", color="#1f618d", markersize=11)
        axes.text(zero - 4, row + 0.3, f"code 0 = {zero}", ha="right", fontsize=9)
        axes.text(131, row, f"code {top} = 127", va="center", fontsize=9)
    axes.set_yticks(range(4), [f"{bits} bit{'s' * (bits > 1)}" for bits in (1, 2, 4, 8)])
    axes.set(xlim=(-140, 175), ylim=(-0.6, 3.8), xlabel="value of the int8")
    axes.set_xticks([-128, -64, 0, 64, 127])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def stretch() -> Figure:
    """Draw the biases that a file can hold between two sums, codes stretched and not."""
    figure = Figure((8.5, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = []
    for bits in (1, 2, 4):
        network = plan(lower(small_network(bits)))
        node = _hidden(network)
        rows.append((f"W{bits}, codes as they are", 1))
        rows.append((f"W{bits}, codes times {int(node.stretch.max())}", int(node.stretch.max())))
    for row, (_, places) in enumerate(reversed(rows)):
        ticks = np.linspace(0, 1, places + 1)
        axes.plot(ticks, np.full(len(ticks), row), "|", color="#1f618d", markersize=11)
        axes.plot([0, 1], [row, row], "o", color="#c0392b", markersize=5)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.set(xlabel="bias, in units of input step times weight step; red: two neighbouring sums")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def snapping() -> Figure:
    """Draw the biases of some channels, as trained and as stored, among the places for them."""
    lowered = lower(small_network())
    planned = plan(lowered)
    after = _hidden(planned)
    before = lowered[after.name]
    source = next(each for each in planned if each.name == after.inputs[0])
    place = float(source.grid.step) * before.step / after.stretch
    figure = Figure((8.5, 3), layout="constrained")
    axes = figure.subplots()
    shown = range(6)
    for channel in shown:
        trained, stored = (
            before.bias[channel] / place[channel],
            after.bias[channel] / place[channel],
        )
        origin = np.floor(trained)
        places = np.arange(-2, 4)
        axes.plot(places, np.full(6, channel), "|", color=_GREY, markersize=14)
        if abs(stored - origin) < 4:
            axes.plot(stored - origin, channel, "o", color="#1f618d", markersize=9)
        axes.plot(trained - origin, channel, "o", color="#c0392b", markersize=5)
    axes.set_yticks(shown, [f"channel {channel}" for channel in shown])
    axes.set_xticks([])
    axes.set_xlabel(
        f"places for the bias, {after.stretch.min()} to {after.stretch.max()} between two sums; "
        "red: as trained, blue: as stored"
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def planes() -> Figure:
    """Draw a kernel, its 2-bit codes, and these as the weighted sum of two binary planes."""
    tf.keras.utils.set_random_seed(3)
    kernel = 0.5 * tf.random.normal((3, 3, 1, 1))
    quantizer = dlqat_tf.SATWeights(2)
    grid = quantizer.grid(kernel)
    images = [("latent weights", kernel.numpy()[..., 0, 0], 1.3, "+.2f")]
    images.append(("codes", grid.codes[..., 0, 0], 4, "+d"))
    for i, (sign, _) in enumerate(quantizer.planes(kernel)):
        images.append((f"{2**i} times plane {i}", 2**i * sign[..., 0, 0], 4, "+d"))
    figure = Figure((11, 2.9), layout="constrained")
    panels = figure.subplots(1, len(images))
    for axes, (title, values, limit, shown) in zip(panels, images, strict=True):
        axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, format(value, shown), ha="center", va="center", fontsize=12)
        axes.set(title=title, xticks=[], yticks=[])
    for mark, axes in zip(("→", "=", "+"), panels[1:], strict=True):
        axes.text(-0.07, 0.5, mark, fontsize=20, ha="center", va="center", transform=axes.transAxes)
    return figure


def summary() -> Figure:
    """Draw where the work and the bytes of a network are."""
    return plots.summary(predict(zoo.load("digits_w1a2"), files=()))


def file_bytes() -> Figure:
    """Draw what a binary file holds."""
    return plots.export_report(census(zoo.file("digits_w1a2", "lce")))


NETWORK = {"summary": summary, "file_bytes": file_bytes}
INTEGERS = {"zero_point": zero_point, "stretch": stretch, "snapping": snapping, "planes": planes}


if __name__ == "__main__":  # the one picture that README.md shows, which no build makes
    (Path(__file__).parents[1] / "low_bit.svg").write_bytes(svg(planes()))
