"""Moves biases to values that a file can hold, in a copy of the Keras model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.export.lower import lower
from dlqat_tf.export.network import Activation, ExportError, IntegerNetwork
from dlqat_tf.export.plan import plan, rounding_of
from dlqat_tf.export.report import Report


@dataclass(frozen=True)
class Shift:
    """How far the biases of one layer moved.

    Attributes:
        layer: The convolution or dense layer.
        variable: The Keras layer that holds the bias.
        largest: Largest shift of a channel, in units of the layer's output.
        steps: The same in steps of the activation that follows; None where that is a sign.
    """

    layer: str
    variable: str
    largest: float
    steps: float | None


@dataclass(frozen=True)
class SnapReport(Report):
    """How far the biases moved, layer by layer."""

    shifts: list[Shift]

    @property
    def largest_steps(self) -> float:
        """Largest shift in steps of the activation that follows."""
        return max((shift.steps for shift in self.shifts if shift.steps), default=0.0)

    def tables(self):
        table = Table(title="Biases moved to those of the file", title_justify="left")
        for column in ("layer", "in", "largest shift", "in output steps"):
            table.add_column(column, justify="left" if column in ("layer", "in") else "right")
        for shift in self.shifts:
            steps = "" if shift.steps is None else f"{shift.steps:.2g}"
            table.add_row(shift.layer, shift.variable, f"{shift.largest:.2g}", steps)
        return [table]


def snap(
    model: tf.keras.Model, network: IntegerNetwork | None = None
) -> tuple[tf.keras.Model, SnapReport]:
    """Return a copy of a model whose folded biases are exactly those of its file.

    A file on int8 kernels holds a bias as an integer multiple of input step times (stretched)
    weight step. Biases on int8 and on binary kernels also keep clear of values at which an integer
    sum is so near a rounding threshold that the order of float32 additions decides its code; of the
    places that are left each takes one that changes the fewest codes, see
    :func:`dlqat_tf.export.plan.stored_bias`. The copy's batch norms have their beta (their moving
    mean, or the convolution's bias, where there is none) moved likewise, so the copy and the file
    compute the same numbers; a shift is at most half a unit of the sum of codes, that is of input
    step times weight step.

    Args:
        model: As for :func:`dlqat_tf.export.lower.lower`.
        network: The planned network of the model, where it is at hand; else that of its int8 file.

    Raises:
        ExportError: The model cannot be exported, or calls a layer more than once.
    """
    lowered = lower(model)
    network = plan(lowered) if network is None else network
    copy = tf.keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    readers = network.consumers()
    shifts = []
    for node in network:
        target = rounding_of(node, readers)
        if not target or not node.bias_sources:
            continue
        shift = node.bias - lowered[node.name].bias
        _move(_layer(copy, node.bias_sources[0]), shift)
        largest = float(np.abs(shift).max())
        steps = largest / float(target.grid.step) if isinstance(target, Activation) else None
        shifts.append(Shift(node.name, node.bias_sources[0], largest, steps))
    return copy, SnapReport(shifts)


def _layer(model: tf.keras.Model, path: str):
    for name in path.split("/"):
        try:
            model = model.get_layer(name)
        except ValueError:
            raise ExportError(
                f"Layer {path!r} is called more than once, so its biases cannot be moved to two "
                "grids: export with snap=False."
            ) from None
    return model


def _move(layer, shift: np.ndarray) -> None:
    """Add ``shift`` to what a layer adds to its output."""
    if not isinstance(layer, tf.keras.layers.BatchNormalization):
        layer.bias.assign_add(shift)
    elif layer.center:
        layer.beta.assign_add(shift)
    else:
        gain = layer.gamma.numpy() if layer.scale else 1.0
        deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.nan_to_num(shift * deviation / gain, posinf=0.0, neginf=0.0)
        layer.moving_mean.assign_sub(moved)
