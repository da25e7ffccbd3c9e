"""A .tflite file -> a C++ source and its header, for firmware that has no file system."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf import __version__
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.census import census, described
from dlqat_tf.export.files.census_report import Census, FileInput
from dlqat_tf.export.files.micro import is_installed, suitable
from dlqat_tf.export.files.record import read_record
from dlqat_tf.export.files.verify import OPERATORS, elements
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.report import Report

_BYTES = [f"0x{each:02x}" for each in range(256)]
_PER_LINE = 12
# What TFLite Micro's resolver calls operations whose name does not follow from the schema's.
_METHODS = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}


@dataclass(frozen=True)
class CArrayReport(Report):
    """A C++ source with a file's bytes, and its header.

    Attributes:
        source: The source.
        header: The header.
        name: Of the array, and what the names of all constants start with.
        arena_bytes: Arena that the header asks for, None where it says none.
        operations: What the file needs of TFLite Micro's resolver.
        warnings: What to look at.
    """

    source: str
    header: str
    name: str
    arena_bytes: int | None
    operations: list[str]
    warnings: list[str]

    def tables(self):
        return [
            f"C array: {self.source}, {self.header}",
            *(f"warning: {text}" for text in self.warnings),
        ]


def to_c_array(file: str | Path, source: str | Path | None = None, *, force=False) -> CArrayReport:
    """Write a .tflite file as a C++ array, as ``xxd -i`` does, with what a program has to know.

    The header declares the array, its length and, as constants: shape, number of values, scale and
    zero point of each input and output; how much RAM TFLite Micro needs (``_arena_bytes``, see
    :func:`dlqat_tf.export.files.micro.arena_bytes`); and a function that adds the operations of the
    file, and no others, to a ``MicroMutableOpResolver``.

    Args:
        file: The .tflite file, of stock operations, for a fixed number of images at once.
        source: The source to write, which ends in .cc or .cpp; the header has the same name and
            ends in .h. By default beside the file, in .cc.
        force: Overwrite existing files.

    Raises:
        ExportError: An argument or the file is not as above, or TFLite Micro refuses it. Nothing is
            written.
    """
    file = Path(file)
    source, header = targets(file, source, force=force)
    data = flatbuffer.content(file)
    model = suitable(data, file)
    facts = census(file)
    if facts.without_arena and is_installed():
        raise ExportError(facts.without_arena)
    report = CArrayReport(
        source=str(source),
        header=str(header),
        name=_name(file),
        arena_bytes=facts.arena_bytes,
        operations=[_method(name, file) for name in facts.operators],
        warnings=list(_warnings(facts, read_record(model, file))),
    )
    lines = "\n".join(_header(model, file, report))
    array = "\n".join(_array(data, header, report.name))
    with flatbuffer.writing(header, source) as (new_header, new_source):
        new_header.write_bytes(lines.encode())
        new_source.write_bytes(array.encode())
    return report


def targets(
    file: Path, source: str | Path | None = None, *, force: bool = False
) -> tuple[Path, Path]:
    """Return the source and the header that :func:`to_c_array` writes.

    Raises:
        ExportError: One of them exists, or has a name that is none of a source.
    """
    source = file.with_suffix(".cc") if source is None else Path(source)
    if source.suffix not in (".cc", ".cpp"):
        raise ExportError(f"Expected a source that ends in .cc or .cpp. Received: {source}.")
    header = source.with_suffix(".h")
    for each in (source, header):
        if each.exists() and not force:
            raise ExportError(f"{each} exists: choose another path, or overwrite with force.")
    return source, header


def _warnings(facts: Census, record: dict | None) -> Iterator[str]:
    if facts.without_arena:
        yield f"the header has no arena_bytes: {facts.without_arena}"
    if record and record.get("kernels") == "xnnpack":
        yield (
            "the biases are for XNNPACK, and TFLite Micro rounds otherwise, so some codes differ "
            'from the Keras model: export with kernels="builtin"'
        )


def _name(file: Path) -> str:
    name = re.sub(r"[^0-9A-Za-z]", "_", file.name)
    return f"model_{name}" if name[0].isdigit() else name


def _method(operation: str, file: Path) -> str:
    """Return what adds an operation to TFLite Micro's resolver."""
    if operation not in OPERATORS.values():
        raise ExportError(f"TFLite Micro has no operation {operation}, which {file} has.")
    words = (word if word[0].isdigit() else word.capitalize() for word in operation.split("_"))
    return "Add" + _METHODS.get(operation, "".join(words))


def _array(data: bytes, header: Path, name: str) -> Iterator[str]:
    yield f'#include "{header.name}"'
    yield ""
    yield f"alignas(16) const unsigned char {name}[] = {{"
    for start in range(0, len(data), _PER_LINE):
        yield f"  {', '.join(_BYTES[each] for each in data[start : start + _PER_LINE])},"
    yield "};"
    yield f"const unsigned int {name}_len = {len(data)};"
    yield ""


def _header(model: schema.ModelT, file: Path, report: CArrayReport) -> Iterator[str]:
    name, guard = report.name, f"{report.name.upper()}_H_"
    yield f"// {file.name}, written by dlqat_tf {__version__}."
    yield f"#ifndef {guard}"
    yield f"#define {guard}"
    yield ""
    yield "// The file, for tflite::GetModel."
    yield f"extern const unsigned char {name}[];"
    yield f"extern const unsigned int {name}_len;"
    yield ""
    if report.arena_bytes is None:
        yield "// No arena size: TFLite Micro was not there to measure it. Run"
        yield "// `pip install 'dlqat_tf[micro]'` and write this header again."
    else:
        yield "// RAM that TFLite Micro needs, measured on a 64-bit host; 32-bit ones need less."
        yield f"constexpr unsigned int {name}_arena_bytes = {report.arena_bytes};"
    graph = model.subgraphs[0]
    for kind, ends in (("input", graph.inputs), ("output", graph.outputs)):
        for position, index in enumerate(ends):
            prefix = f"{name}_{kind}{position if len(ends) > 1 else ''}"
            yield from _end(prefix, graph.tensors[int(index)])
    yield ""
    yield f"// tflite::MicroMutableOpResolver<{name}_operations> needs no others."
    yield f"constexpr unsigned int {name}_operations = {len(report.operations)};"
    yield "template <typename Resolver>"
    yield f"void {name}_add_operations(Resolver& resolver) {{"
    yield from (f"  resolver.{each}();" for each in report.operations)
    yield "}"
    yield ""
    yield f"#endif  // {guard}"
    yield ""


def _end(prefix: str, tensor: schema.TensorT) -> Iterator[str]:
    """Yield the constants of an input or output."""
    end: FileInput = described(tensor)
    shape = ", ".join(map(str, tensor.shape))
    yield ""
    yield f"// {end.type}"
    yield f"constexpr int {prefix}_shape[] = {{{shape}}};"
    yield f"constexpr int {prefix}_size = {elements(tensor)};"
    if end.scale is not None:
        yield f"// value = {prefix}_scale * (code - {prefix}_zero_point)"
        yield f"constexpr float {prefix}_scale = {end.scale!r};"
        yield f"constexpr int {prefix}_zero_point = {end.zero_point};"
