"""Moves biases to values that a file can hold, in a copy of the Keras model."""

from __future__ import annotations

from dataclasses import dataclass, field

import larq as lq
import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.integers import rounding_of
from dlqat_tf.export.integer.kernels import DEPTHWISE, kernels_of
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, PReLU, Weighted
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.precision import copy_in_float32
from dlqat_tf.graph import named_leaves
from dlqat_tf.quantizers import SnappedWeights, int8_codes, unwrapped
from dlqat_tf.report import Report

_SMALL = 5e-5  # relative shifts of steps below it are printed as 0.00%


@dataclass(frozen=True)
class Shift:
    """How far the biases of one layer moved.

    Attributes:
        layer: The convolution or dense layer.
        variable: The Keras layer that holds the bias.
        largest: Largest shift of a channel, in units of the layer's output.
        steps: The same in steps of the activation that follows; None where that is a sign.
        gain: Largest relative change of a channel's gain.
    """

    layer: str
    variable: str
    largest: float
    steps: float | None
    gain: float = 0.0


@dataclass(frozen=True)
class LevelShift:
    """How far the weights of one layer moved, whose levels are on no int8 grid.

    Attributes:
        layer: The Keras layer of the kernel.
        largest: Largest shift of a weight, in units of the weights.
        relative: The same in units of the largest weight of its output channel.
    """

    layer: str
    largest: float
    relative: float


@dataclass(frozen=True)
class StepShift:
    """How far the step of one activation quantizer moved, to bring branches together exactly.

    Attributes:
        layer: The Keras layer of the quantizer.
        relative: In units of the step.
    """

    layer: str
    relative: float

    @property
    def is_small(self) -> bool:
        """Whether nothing depends on it, as on most that adds ask for: reports leave it out."""
        return abs(self.relative) < _SMALL


@dataclass(frozen=True)
class SnapReport(Report):
    """How far biases moved, steps, and weights whose levels are on no int8 grid, layer by layer."""

    shifts: list[Shift]
    levels: list[LevelShift] = field(default_factory=list)
    steps: list[StepShift] = field(default_factory=list)

    @property
    def largest_steps(self) -> float:
        """Largest shift in steps of the activation that follows."""
        return max((shift.steps for shift in self.shifts if shift.steps), default=0.0)

    def tables(self):
        table = Table(title="Biases and gains moved to those of the file", title_justify="left")
        for column in ("layer", "in", "largest shift", "in output steps", "gain"):
            table.add_column(column, justify="left" if column in ("layer", "in") else "right")
        for shift in self.shifts:
            steps = "" if shift.steps is None else f"{shift.steps:.2g}"
            gain = f"{shift.gain:.2g}" if shift.gain else ""
            table.add_row(shift.layer, shift.variable, f"{shift.largest:.2g}", steps, gain)
        tables = [table]
        if self.levels:
            levels = Table(
                title="Weights moved to the int8 codes of the file", title_justify="left"
            )
            for column in ("layer", "largest shift", "of the largest weight"):
                levels.add_column(column, justify="left" if column == "layer" else "right")
            for each in self.levels:
                levels.add_row(each.layer, f"{each.largest:.2g}", f"{each.relative:.2%}")
            tables.append(levels)
        if large := [step for step in self.steps if not step.is_small]:
            steps = Table(title="Steps moved, to add or concatenate codes", title_justify="left")
            for column in ("quantizer", "shift"):
                steps.add_column(column, justify="left" if column == "quantizer" else "right")
            for step in large:
                steps.add_row(step.layer, f"{step.relative:+.2%}")
            tables.append(steps)
        return tables


def snap(
    model: tf.keras.Model, network: IntegerNetwork | None = None
) -> tuple[tf.keras.Model, SnapReport]:
    """Return a copy of a model whose folded biases, and gains, are exactly those of its file.

    A file on int8 kernels holds a bias as a fraction of input step times weight step. Biases on
    int8 and on binary kernels also keep clear of values at which an integer sum is so near a
    rounding threshold that the order of float32 additions decides its code; of the places that are
    left each takes one that changes the fewest codes, see
    :func:`dlqat_tf.export.integer.storing.stored`. The copy's batch norms have their beta (their
    moving mean, or the convolution's bias, where there is none) moved likewise, and weights whose
    levels are on no grid are at the int8 codes of the file where it has no binary planes of them,
    so the copy and the file compute the same numbers. Steps of what is concatenated are those that
    have a common one, see :mod:`dlqat_tf.export.integer.meetings`, and those of what is added have
    ratios that kernels hold, see :mod:`dlqat_tf.export.integer.adds`. A layer that is called more
    than once moves where all its calls move it by the same, as where they read one grid and end on
    one.

    Args:
        model: As for :func:`dlqat_tf.export.integer.lower.lower`.
        network: The planned network of the model, where it is at hand; else that of its int8 file.

    Raises:
        ExportError: The model cannot be exported, or two calls of a layer need different biases.
    """
    lowered = lower(model)
    network = plan(lowered) if network is None else network
    copy = copy_in_float32(model)
    layers = dict(named_leaves(copy))
    shifts = _snap_biases(network, lowered, layers)
    levels = level_shifts(network)
    _snap_levels(levels, _slopes(network), layers)
    return copy, SnapReport(shifts, levels, _snap_steps(network, lowered, layers))


def _snap_biases(
    network: IntegerNetwork, lowered: IntegerNetwork, layers: dict[str, tf.keras.layers.Layer]
) -> list[Shift]:
    """Move biases and gains in the layers that hold them."""
    readers = network.consumers()
    shifts = []
    moves: dict[str, list] = {}  # what each call moves its layer by
    for node in network:
        sources = getattr(node, "bias_sources", ())
        target = rounding_of(node, readers)
        # Layers before the last one stay where they are, and so do those that nothing rounds.
        for path in sources[1:] if target else sources:
            moves.setdefault(path, []).append(0.0)
        if not target or not sources:
            continue
        before = lowered[node.name]
        shift = node.bias - before.bias
        factor = _factor(node, before)
        if np.any(factor != 1):
            norm = unwrapped(layers[sources[0]]).layer
            shift = shift + (factor - 1) * (norm.beta.numpy() - before.bias)
            norm.gamma.assign(norm.gamma.numpy() * factor)
        moves.setdefault(sources[0], []).append(shift)
        largest = float(np.abs(node.bias - before.bias).max())
        steps = largest / float(target.grid.step) if isinstance(target, Activation) else None
        gain = float(np.abs(factor - 1).max())
        shifts.append(Shift(node.name, sources[0], largest, steps, gain))
    for path, each in moves.items():
        if not all(np.all(shift == each[0]) for shift in each):
            raise ExportError(
                f"Layer {path!r} is called more than once, and its biases cannot be moved to the "
                "grids of all calls: share the activation quantizers before and after it too, or "
                "export with snap=False."
            )
        if np.any(each[0]):
            _move(unwrapped(layers[path]).layer, each[0])
    return shifts


def _slopes(network: IntegerNetwork) -> dict[str, np.ndarray]:
    """Return the slopes that the file holds, by the Keras layer of several ones."""
    found: dict[str, np.ndarray] = {}
    for node in network:
        if isinstance(node, PReLU) and node.layer:
            held = found.setdefault(node.layer, node.codes * node.step)
            if not np.array_equal(held, node.codes * node.step):
                raise ExportError(
                    f"Layer {node.layer!r} is called more than once, and its slopes cannot be "
                    "moved to what suits the grids of all calls: share the activation quantizers "
                    "before and after it too, or export with snap=False."
                )
    return found


def _snap_levels(levels: list[LevelShift], slopes: dict[str, np.ndarray], layers: dict) -> None:
    """Put the codes of the file in the place of weights and slopes that are on no int8 grid."""
    for level in levels:
        if level.layer in slopes:
            layers[level.layer].alpha.assign(slopes[level.layer])
        else:
            path = level.layer.removesuffix(DEPTHWISE)
            _hold_codes(layers[path], level.layer)


def _snap_steps(network: IntegerNetwork, lowered: IntegerNetwork, layers: dict) -> list[StepShift]:
    """Move the ranges of quantizers to the steps of the file."""
    before, after = _steps(lowered), _steps(network)
    steps = {path: step for path, step in after.items() if step != before[path]}
    for path, step in steps.items():
        variable, codes = layers[path].scaled_step
        variable.assign(step * np.float32(codes))
    return [StepShift(path, float(step / before[path]) - 1) for path, step in steps.items()]


def level_shifts(network: IntegerNetwork) -> list[LevelShift]:
    """Return how far weights of a planned network are from what was trained, by Keras layer."""
    found = {}
    for node in network:
        free = node.free if isinstance(node, Weighted) and node.kernel != "planes" else None
        if free is not None:
            found[free.layer] = LevelShift(free.layer, free.shift, free.relative)
        if isinstance(node, PReLU) and node.layer and np.any(node.slopes):
            shift = float(np.abs(node.codes * node.step - node.slopes).max())
            relative = shift / float(np.abs(node.slopes).max())
            found[node.layer] = LevelShift(node.layer, shift, relative)
    return list(found.values())


def _steps(network: IntegerNetwork) -> dict[str, np.float32]:
    """Return the steps of the quantizers that are Keras layers and may move, by these."""
    sources = (node for node in network if isinstance(node, Activation) and node.source)
    return {node.source: node.grid.step for node in sources}


def _hold_codes(layer, name: str) -> None:
    """Put the int8 codes nearest to a kernel's levels, and a quantizer of them, in its place."""
    kernels = kernels_of(unwrapped(layer), name.removesuffix(DEPTHWISE))
    held = next(each for each in kernels if each.name == name)
    if held.layer is not layer or getattr(layer, held.attribute, None) is not held.quantizer:
        raise ExportError(
            f"Layer {name!r} has levels on no int8 grid in a wrapper of TF-MOT, where they cannot "
            "be moved: build it with larq's layers (dlqat_tf.resnet18, dlqat_tf.quantize), or "
            "export with snap=False."
        )
    with lq.context.quantized_scope(False):
        latent = np.float32(tf.convert_to_tensor(held.variable))
    before = held.quantizer
    grid = int8_codes(before.of_channels_last, before.reordered(latent))
    snapped = SnappedWeights(before.precision)
    quantizer = before.on_same_kernel(snapped)
    quantizer.build(latent.shape)
    snapped.step.assign(grid.step)
    setattr(layer, held.attribute, quantizer)
    held.variable.quantizer = quantizer
    held.variable.assign(before.in_order(grid.codes * grid.step, latent.shape))


def _factor(node: Weighted, before: Weighted) -> np.ndarray:
    """Return what the gain of each channel is multiplied by."""
    if node.step is None:
        return np.ones(1)
    return node.step.astype(np.float64) / before.step.astype(np.float64)


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
