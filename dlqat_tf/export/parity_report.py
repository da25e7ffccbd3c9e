"""What a comparison of a file with its Keras model finds, as a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rich.table import Table

from dlqat_tf.export.agreement import OutputParity
from dlqat_tf.report import Report

_EXACTLY = 1e-9  # percentages of whole numbers of images differ by less
_CALLED = {"trained": "as trained", "keras": "in Keras"}


@dataclass(frozen=True)
class LayerParity:
    """One layer of the file against the simulation, both given the file's inputs of that layer.

    Attributes:
        layer: Name of the node whose output it is.
        values: How many outputs were compared.
        differing: How many differ: codes that are not equal, floats beyond 1e-5 of the largest.
        largest: Largest difference, in codes where the layer is coded.
    """

    layer: str
    values: int
    differing: int
    largest: float


@dataclass(frozen=True)
class ParityReport(Report):
    """Agreement of trained Keras model, snapped one, integer simulation and file.

    Attributes:
        path: The file.
        kernels: What ran the file.
        images: Number of images.
        top1: Accuracy in percent of "trained" (where it was given), "keras" (the model with the
            file's biases), "simulation" and "file"; empty without labels, and of several outputs
            the mean.
        agreement: Percentage of equal arg-maxes, of each pair, such as "trained_file"; of several
            outputs that of the one that agrees least.
        logit_difference: Largest absolute difference, see :class:`OutputParity`.
        layers: Each layer given the same input, on the first images.
        other_constants: Constants of the file that are not those of the model: weights, scales or
            biases of another model.
        first_diverging: First layer with a differing value, or None.
        ties: Percentage of the file's decisions between scores that are equal up to float rounding;
            of several outputs that of the one that has most. Such decisions may differ.
        outputs: The same for each output.
    """

    path: str
    kernels: str
    images: int
    top1: dict[str, float]
    agreement: dict[str, float]
    logit_difference: dict[str, float]
    layers: list[LayerParity]
    first_diverging: str | None
    other_constants: list[str] = field(default_factory=list)
    outputs: list[OutputParity] = field(default_factory=list)
    ties: float = 0.0

    def failures(
        self,
        *,
        trained_agreement: float = 99.5,
        keras_agreement: float = 99.5,
        file_agreement: float = 100.0,
        accuracy: float = 0.1,
    ) -> list[str]:
        """Return what misses the bounds, nothing where all is well.

        Args:
            trained_agreement: Least percentage of arg-maxes that the trained model, where it was
                given, and the file share.
            keras_agreement: The same for the model with the file's biases and the file.
            file_agreement: The same for simulation and file; layers must not differ at all where
                it is 100.
            accuracy: Largest difference of top-1 between either Keras model and file, in points.
        """
        found = []
        bounds = {
            "trained_file": trained_agreement,
            "keras_file": keras_agreement,
            "simulation_file": file_agreement,
        }
        for pair, bound in bounds.items():
            if self.agreement.get(pair, 100.0) < bound:
                names = " and ".join(pair.split("_"))
                ties = f"; {self.ties:.2f} % of the decisions are ties" if self.ties else ""
                # Rounded down, so that what misses a bound is not printed as the bound.
                share = math.floor(100 * self.agreement[pair] + 1e-6) / 100
                found.append(f"{names} agree on {share:.2f} %, expected {bound} %{ties}")
        if file_agreement == 100.0 and self.first_diverging:
            found.append(f"layer {self.first_diverging} differs between simulation and file")
        if self.other_constants:
            found.append(self._others())
        for output in self.outputs:
            of_output = f" of {output.output}" if len(self.outputs) > 1 else ""
            for name in ("trained", "keras"):
                top1 = output.top1
                if name in top1 and abs(top1[name] - top1["file"]) > accuracy + _EXACTLY:
                    found.append(
                        f"accuracy{of_output} is {top1[name]:.2f} % {_CALLED[name]} and "
                        f"{top1['file']:.2f} % in the file, expected at most {accuracy} points "
                        f"between them{_of_chance(output, name)}"
                    )
        return found

    def _others(self) -> str:
        names = ", ".join(self.other_constants[:3])
        return (
            f"{len(self.other_constants)} constants of the file are not those of the model, "
            f"{names} among them: it was exported from another one"
        )

    def tables(self):
        summary = Table(title=f"{self.path}, {self.images} images", title_justify="left")
        summary.add_column("pair")
        summary.add_column("equal arg-max", justify="right")
        summary.add_column("largest logit difference", justify="right")
        several = len(self.outputs) > 1
        if any(output.change for output in self.outputs):
            summary.add_column("top-1 change", justify="right")
        for output in self.outputs:
            for pair, percent in output.agreement.items():
                difference = output.difference.get(pair)
                shown = "" if difference is None else f"{difference:.2g}"
                of_output = f"{output.output}: " if several else ""
                change = output.change.get(pair)
                summary.add_row(
                    of_output + pair.replace("_", " - "),
                    f"{percent:.2f} %",
                    shown,
                    *([str(change)] if change else []),
                )
        layers = Table(title="Layers given the same input", title_justify="left")
        layers.add_column("layer", overflow="fold")
        for column in ("values", "differing", "largest"):
            layers.add_column(column, justify="right")
        for each in self.layers:
            layers.add_row(
                each.layer, f"{each.values:,}", f"{each.differing:,}", f"{each.largest:.2g}"
            )
        accuracy = ", ".join(f"{name} {percent:.2f} %" for name, percent in self.top1.items())
        return [
            summary,
            layers,
            f"first diverging layer: {self.first_diverging or 'none'}",
            *(
                [f"ties, whose scores in the file are equal: {self.ties:.2f} % of the decisions"]
                if self.ties
                else []
            ),
            *([self._others()] if self.other_constants else []),
            *([f"top-1: {accuracy}"] if accuracy else []),
            f"kernels: {self.kernels}",
        ]


def _of_chance(output: OutputParity, name: str) -> str:
    """Return what is known of how much of a change of accuracy may be chance."""
    change = output.change.get(f"{name}_file")
    return f" (the standard error of the difference is {change.error:.2f})" if change else ""
