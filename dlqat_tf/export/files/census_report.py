"""What a census of a .tflite file finds, as a report."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

from dlqat_tf.report import Report

_SHOWN = 4  # numbers of a list in print


@dataclass(frozen=True)
class LayerStorage:
    """How the weights of one layer are stored.

    Attributes:
        layer: Name of the layer (of the tensor, in files that export did not write).
        weights: How many there are.
        declared_bits: Width in training; None where the file does not say.
        stored_bits: Bits of the file per weight.
        kernel: The operation that reads them, with the type it computes in.
        bytes: Size of the weights in the file.
    """

    layer: str
    weights: int
    declared_bits: int | None
    stored_bits: int
    kernel: str
    bytes: int


@dataclass(frozen=True)
class FileInput:
    """What a file takes.

    Attributes:
        name: Of the input.
        shape: Of one image, or of other values.
        type: "uint8", "int8", "float32" or another type of TFLite.
        scale: Of an integer type, value = scale * (code - zero point); None where the file says
            none.
        zero_point: Likewise.
        gain: Of int8 codes of measurements that the model prepares, value = measurement * gain +
            offset, of each channel or of each value; None where they are not prepared.
        offset: Likewise.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    scale: float | None
    zero_point: int | None
    gain: list[float] | None = None
    offset: list[float] | None = None

    def __str__(self):
        shape = "x".join(map(str, self.shape))
        meaning = ""
        if self.scale is not None:
            code = "code" if not self.zero_point else f"(code - {self.zero_point})"
            code = code.replace("- -", "+ ")
            meaning = f", value = {self.scale:.6g} * {code}"
        if self.gain is not None and self.offset is not None:
            gain, offset = map(_few, (self.gain, self.offset))
            meaning += f" = measurement * {gain} + {offset}"
        return f"input {self.name!r}: {self.type}, of shape {shape}{meaning}"


def _few(values: list[float]) -> str:
    shown = ", ".join(f"{each:.6g}" for each in values[:_SHOWN])
    return f"[{shown}{', ...' if len(values) > _SHOWN else ''}]"


@dataclass(frozen=True)
class IslandCost:
    """What a part of the model costs that stays float: it has no integer form, or is kept so.

    Attributes:
        name: Its name, that of its first layer among it.
        layers: Names of the layers in it.
        operators: How many operations it has.
        macs: Multiply-accumulates for one image.
        share: Of all those of the file, from 0 to 1.
        values: How many values its operations compute for one image, none of them on int8.
        bytes: Size of its constants.
    """

    name: str
    layers: list[str]
    operators: int
    macs: int
    share: float
    values: int
    bytes: int


@dataclass(frozen=True)
class Census(Report):
    """Content of a .tflite file.

    Attributes:
        path: The file.
        file_bytes: Its size.
        deflated_bytes: Its size as an entry of a zip archive, which APKs and what app stores send
            are: a byte that holds 1 bit of a weight costs hardly more than that bit there.
        predicted_bytes: Size of the weights at their stored width plus that of all other constants,
            and an estimate of what describes the operations, high for many small ones.
        peak_activation_bytes: Largest sum of the computed tensors that an operation needs at once,
            its inputs, its output and what later operations read, for one image.
        operators: Count of each operation.
        constants: Bytes of each constant tensor; a buffer that several share counts once.
        inputs: What it takes.
        layers: Storage of each layer with weights.
        warnings: What will run slower than its width suggests.
        islands: Parts that stay float, for want of an integer form or since their weights are not
            rounded.
        batch_size: How many images it takes at once, None for any number.
        arena_bytes: RAM that TFLite Micro needs for it, see
            :func:`dlqat_tf.export.files.micro.arena_bytes`; None where that is not known.
        without_arena: Why it is not known, None where nobody asked for it.
    """

    path: str
    file_bytes: int
    deflated_bytes: int
    predicted_bytes: int
    peak_activation_bytes: int
    operators: dict[str, int]
    constants: dict[str, int]
    inputs: list[FileInput]
    layers: list[LayerStorage]
    warnings: list[str]
    islands: list[IslandCost] = field(default_factory=list)
    batch_size: int | None = None
    arena_bytes: int | None = None
    without_arena: str | None = None

    def tables(self):
        title = f"{self.path}: {self.file_bytes:,} bytes, deflated {self.deflated_bytes:,} bytes"
        layers = Table(title=title, title_justify="left")
        for column in ("layer", "kernel"):
            layers.add_column(column, overflow="fold")
        for column in ("weights", "declared bits", "stored bits", "bytes"):
            layers.add_column(column, justify="right")
        for each in self.layers:
            declared = "?" if each.declared_bits is None else str(each.declared_bits)
            layers.add_row(
                each.layer,
                each.kernel,
                f"{each.weights:,}",
                declared,
                str(each.stored_bits),
                f"{each.bytes:,}",
            )
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        constants = sum(self.constants.values())
        return [
            layers,
            *map(str, self.inputs),
            f"images at once: {self.batch_size or 'any number'}",
            *([self._islands()] if self.islands else []),
            f"operations: {counts}",
            f"constants {constants:,} bytes, what describes the operations "
            f"{self.file_bytes - constants:,} bytes",
            f"computed tensors of one image at their peak {self.peak_activation_bytes:,} bytes",
            *self._on_microcontrollers(),
            *(f"warning: {text}" for text in self.warnings),
        ]

    def _on_microcontrollers(self) -> list[str]:
        if self.arena_bytes is not None:
            ram = f"RAM {self.arena_bytes:,} bytes, TFLite Micro's arena"
        elif self.without_arena is not None:
            ram = f"RAM not known: {self.without_arena}"
        else:
            return []
        return [f"on a microcontroller: flash {self.file_bytes:,} bytes, the file; {ram}"]

    def _islands(self) -> Table:
        table = Table(title="In float", title_justify="left")
        table.add_column("layers", overflow="fold")
        for column in ("operations", "MACs", "share", "values", "bytes"):
            table.add_column(column, justify="right")
        for each in self.islands:
            numbers = (f"{each.operators}", f"{each.macs:,}", f"{each.share:.1%}")
            numbers += (f"{each.values:,}",)
            table.add_row(", ".join(each.layers), *numbers, f"{each.bytes:,}")
        return table
