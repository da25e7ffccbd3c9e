"""What was chosen, why, and what the budget bought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dlqat_tf._host import replacing
from dlqat_tf.mixed_precision.candidates import BIT_OPERATIONS, LATENCY
from dlqat_tf.report import Report


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
        panels[0].legend(fontsize="small", loc="upper right")
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
