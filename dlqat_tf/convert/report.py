"""What became of every layer, or why nothing could."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from dlqat_tf.report import Report


class ConversionError(ValueError):
    """The model cannot be converted as asked; the message says what to do.

    Attributes:
        overrides: Those that the message speaks of, ready to be passed; empty where it does not.
    """

    def __init__(self, message: str, overrides: dict[str, str] | None = None):
        super().__init__(message)
        self.overrides = overrides or {}


@dataclass(frozen=True)
class Conversion:
    """What became of one layer.

    Attributes:
        layer: Name in the source; ``model_layer`` where two nested models use one name.
        was: Class in the source.
        became: Class in the result, or "dropped".
        weight_bits: Width of its weights, None where it has none or they stay float.
        activation_bits: Width of the quantizer of its output, None without one.
        note: What was inserted or moved, what stayed and why.
    """

    layer: str
    was: str
    became: str
    weight_bits: int | None
    activation_bits: int | None
    note: str


@dataclass(frozen=True)
class ConversionReport(Report):
    """What became of every layer of a model.

    Attributes:
        conversions: One entry per source layer, in the order of computation.
        ranges: Ranges that were measured on images, by quantizer.
        notes: What concerns the whole model.
    """

    conversions: list[Conversion]
    ranges: dict[str, float]
    notes: list[str]

    def tables(self):
        table = Table(title="Conversion", title_justify="left")
        for column in ("layer", "was", "became", "weights", "outputs", "note"):
            table.add_column(column, overflow="fold")
        for each in self.conversions:
            widths = (each.weight_bits, each.activation_bits)
            shown = ("" if bits is None else str(bits) for bits in widths)
            table.add_row(each.layer, each.was, each.became, *shown, each.note)
        return [table, *self.notes]
