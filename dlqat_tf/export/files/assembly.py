"""What the exports of all kernels share: a file is assembled, checked, written and reported."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf._host import check_regular, target_of
from dlqat_tf._progress import say
from dlqat_tf.datasets import first_images
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.census import count, with_arena
from dlqat_tf.export.files.census_report import Census
from dlqat_tf.export.files.inputs import (
    Images,
    InputTypes,
    arrays_of,
    clipped,
    input_types,
    recorded,
)
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Island, TransposedConvolution, Weighted
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import measured_ranges
from dlqat_tf.export.integer.snap import (
    LevelShift,
    Shift,
    SnapReport,
    StepShift,
    level_shifts,
    snap,
)
from dlqat_tf.report import Report


@dataclass(frozen=True)
class Placement:
    """Which kernel runs a layer: "planes" (binary), "int8" or "float", and why that one."""

    layer: str
    kernel: str
    why: str


@dataclass(frozen=True)
class ExportReport(Report):
    """What an export wrote.

    Attributes:
        path: The file.
        snapped: The Keras model whose biases are those of the file, or None.
        census: Content of the file, declared against stored bits among it.
        shifts: How far the biases moved.
        levels: How far weights are from what was trained, whose levels no int8 grid holds.
        steps: How far steps moved, of quantizers whose values are concatenated or added.
        calibrated: Ranges that came from images, by node: (lowest, highest) value.
        warnings: What to look at.
        placements: Which kernel runs each layer and why, where binary kernels were a choice.
        c_array: The same file as a C++ array, where one was asked for.
        proof: The comparison of trained model, snapped one and file, where one was asked for.
    """

    path: str
    snapped: str | None
    census: Census
    shifts: list[Shift]
    calibrated: dict[str, tuple[float, float]]
    warnings: list[str]
    placements: list[Placement] = field(default_factory=list)
    c_array: Report | None = None
    proof: Report | None = None
    levels: list[LevelShift] = field(default_factory=list)
    steps: list[StepShift] = field(default_factory=list)

    def tables(self):
        moved = SnapReport(self.shifts).largest_steps
        lines = [f"biases moved by at most {moved:.2g} output steps"] if self.shifts else []
        if self.levels:
            farthest = max(self.levels, key=lambda each: each.relative)
            lines.append(
                f"weights of {len(self.levels)} layers, whose levels are on no int8 grid, moved by "
                f"at most {farthest.relative:.2%} of the largest of their channel"
            )
        if large := [abs(each.relative) for each in self.steps if not each.is_small]:
            lines.append(
                f"steps of {len(large)} quantizers, whose values are concatenated or added, moved "
                f"by at most {max(large):.2%}"
            )
        if self.snapped:
            lines.append(f"Keras model with these numbers: {self.snapped}")
        if self.calibrated:
            lines.append(f"ranges from images, not from training: {', '.join(self.calibrated)}")
        others = [each for part in (self.c_array, self.proof) if part for each in part.tables()]
        return [
            *self.census.tables(),
            *([self._placements()] if self.placements else []),
            *lines,
            *(f"warning: {text}" for text in self.warnings),
            *others,
        ]

    def _placements(self) -> Table:
        table = Table(title="Binary planes or not", title_justify="left")
        for column in ("layer", "kernel", "why"):
            table.add_column(column, overflow="fold")
        for each in self.placements:
            table.add_row(each.layer, each.kernel, each.why)
        return table


@dataclass(frozen=True)
class Built:
    """A file before it is written.

    Attributes:
        planned: The network with the kernel of every node decided.
        data: Content of the file.
        ranges: Ranges that were measured, by node: (lowest, highest) value.
        input_types: By input.
        batch_size: How many images it takes at once, None for any number.
        kernels: Whose kernels it is for.
        warnings: What to look at.
    """

    planned: IntegerNetwork
    data: bytes
    ranges: dict[str, tuple[float, float]]
    input_types: dict[str, str]
    batch_size: int | None
    kernels: str
    warnings: list[str] = field(default_factory=list)


def assemble(
    writer,
    network,
    calibrate,
    input_type: InputTypes,
    *,
    batch_size: int | None,
    int4: bool,
    floats: bool,
    plane_limit: int,
    clear: bool,
    target: str = "all",
    kernels: str = "xnnpack",
) -> Built:
    """Plan a network and write it in memory by a class of writer."""
    _check_batch(batch_size, network)
    ranges: dict[str, tuple[float, float]] = {}

    def recording(network, names):
        ranges.update(calibrate(network, names))
        return ranges

    types = input_types(network, input_type)
    planned = plan(
        network,
        calibrate=None if calibrate is None else recording,
        int4=int4,
        floats=floats,
        plane_limit=plane_limit,
        target=target,
        library=kernels,
        clear=clear,
    )
    record = dict(
        inputs=recorded(network, types),
        batch_size=batch_size,
        int4=int4,
        floats=floats,
        kernels=kernels,
        plane_limit=plane_limit,
        target=target,
        ranges=ranges,
    )
    say("writes the operations")
    data = writer(planned, types, batch_size, kernels).write(record)
    return Built(planned, data, ranges, types, batch_size, kernels)


def _check_batch(size: int | None, network: IntegerNetwork) -> None:
    """Raise ExportError where a layer's operations do not take so many images at once."""
    checked_batch_size(size)
    for node in network:
        if size != 1 and isinstance(node, Island) and node.part.batch:
            raise ExportError(
                f"The operations that TFLite has for {', '.join(node.layers)} take one image at "
                f"once: expected batch_size=1. Received: batch_size={size}."
            )
        if size is None and isinstance(node, TransposedConvolution):
            raise ExportError(
                f"TFLite's transposed convolutions, as {node.name!r}, are written for a number of "
                "images: expected batch_size=1 or another. Received: batch_size=None."
            )


def checked_batch_size(size) -> int | None:
    """Return ``size`` as an int, or None; raise ExportError where it is no number of images."""
    return (
        None
        if size is None
        else checked_count("batch_size", size, ", or None for any number of images at once")
    )


def checked_count(name: str, value, otherwise: str = "") -> int:
    """Return ``value`` as an int; raise ExportError where it is no positive integer.

    Args:
        name: Of the argument, for the message.
        value: An integer of Python or NumPy.
        otherwise: What may stand in its place, for the message.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ExportError(
            f"Expected {name} to be a positive integer{otherwise}. Received: {name}={value!r}."
        )
    return int(value)


def check_flag(name: str, value) -> None:
    """Raise ExportError where ``value`` is neither True nor False: "no" would count as yes."""
    if not isinstance(value, (bool, np.bool_)):
        raise ExportError(f"Expected {name} to be True or False. Received: {name}={value!r}.")


def check_choice(name: str, value, expected: tuple[str, ...]) -> None:
    """Raise ExportError where ``value`` is not one of ``expected``."""
    if not isinstance(value, str) or value not in expected:
        raise ExportError(
            f"Expected {name} to be one of {', '.join(expected)}. Received: {name}={value!r}."
        )


def targets_of(path: str | Path, snap: bool, force: bool) -> list[Path]:
    """Return the files that an export writes: the .tflite and, if asked for, the snapped model."""
    path = flatbuffer.checked_path(path)
    check_flag("snap", snap)
    check_flag("force", force)
    if path.suffix != ".tflite":
        raise ExportError(f"Expected a path that ends in .tflite. Received: {path}.")
    targets = [path, path.with_suffix(".snapped.keras")][: 2 if snap else 1]
    for target in targets:
        try:
            check_regular(target)
        except OSError as error:
            raise ExportError(str(error)) from None
        if target.exists() and not force:
            raise ExportError(f"{target} exists: choose another path, or overwrite with force.")
        there = next(each for each in target_of(target).parents if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ExportError(f"Expected a folder that can be written to, received {there}.")
    return targets


def measure(images: Images | tf.data.Dataset | None, network: IntegerNetwork):
    """Return the ``calibrate`` function for images, or None where there are none."""
    if isinstance(images, tf.data.Dataset):
        ranks = [len(node.shape) + 1 for node in network.inputs]
        images, _ = first_images(images, ranks, ExportError)
    return None if images is None else measured_ranges(arrays_of(images, network))


def finish(model: tf.keras.Model, built: Built, targets: list[Path]) -> ExportReport:
    """Write all files of an export, or none, and return its report.

    All are written beside their places before the first one takes its own.
    """
    report, copy = SnapReport([]), None
    if len(targets) > 1:
        say("moves the biases of a copy to those of the file")
        copy, report = snap(model, built.planned)
    with flatbuffer.writing(*targets) as temporaries:
        temporaries[0].write_bytes(built.data)
        if copy is not None:
            _save(copy, temporaries[1])
    counted = count(built.data, targets[0])
    if built.kernels == "builtin":  # a file for microcontrollers
        counted = with_arena(counted)
    return ExportReport(
        path=str(targets[0]),
        snapped=str(targets[1]) if copy is not None else None,
        census=counted,
        shifts=report.shifts,
        calibrated=built.ranges,
        warnings=built.warnings + _dead_channels(built.planned) + clipped(built.planned),
        placements=[
            Placement(node.name, node.kernel, node.why)
            for node in built.planned
            if isinstance(node, Weighted) and node.why
        ],
        levels=level_shifts(built.planned),
        steps=report.steps,
    )


def _save(model: tf.keras.Model, path: Path) -> None:
    try:
        model.save(path)
    except (TypeError, NotImplementedError) as error:  # settings that are no JSON, or none
        raise ExportError(
            f"Keras cannot save {model.name!r}, whose snapped copy stands beside the file: "
            f"{error} Mend the layer, or export with snap=False."
        ) from error


def _dead_channels(network: IntegerNetwork) -> list[str]:
    found = []
    for node in network:
        if isinstance(node, Weighted) and not node.depthwise and node.step is not None:
            flat = node.weights.reshape(-1, node.weights.shape[-1])
            dead = int(np.sum(np.all(flat == flat[0], axis=0))) if len(flat) > 1 else 0
            if dead:
                found.append(f"{node.name}: {dead} output channels have all weights equal")
    return found
