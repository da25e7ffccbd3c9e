"""Latency of ``.tflite`` files on this host, side by side."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._host import cpu_name
from dlqat_tf._litert import tflite_interpreter, tflite_version
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.lce import open_interpreter

MINIMUM_RUNS = 50
MAXIMUM_THREADS = 256  # kernels start as many as they are told, until the process ends
REFERENCE_KERNEL = "reference kernel, not a benchmark"
_X86 = ("x86_64", "AMD64", "i386", "i686", "x86")


@dataclass(frozen=True)
class FileLatency:
    """Latency of one file.

    Attributes:
        path: The file, as it was given.
        bytes: Size of the file.
        kernels: ``"XNNPACK"`` (built-in kernels for the ops that XNNPACK does not take),
            ``"built-in"`` or ``"LCE"``.
        note: ``REFERENCE_KERNEL`` where the time says nothing about the method, else None.
        runs_ms: Latency of each run after warm-up, in milliseconds and in the order measured.
        median_ms: Median of ``runs_ms``.
        interquartile_range_ms: Third minus first quartile of ``runs_ms``.
        ratio: ``median_ms`` over that of the first file, None where either has a note.
    """

    path: str
    bytes: int
    kernels: str
    note: str | None
    runs_ms: tuple[float, ...]
    median_ms: float
    interquartile_range_ms: float
    ratio: float | None


@dataclass(frozen=True)
class BenchmarkReport:
    """What `benchmark` measured, and on what.

    Attributes:
        files: One entry per file, in the order given.
        host: Operating system and its version.
        cpu: Name of the processor.
        machine: Architecture of the processor.
        threads: CPU threads that the kernels could use.
        xnnpack: Whether the XNNPACK delegate was on.
        warmup: Runs of each file that were not measured.
        versions: Version of Python, TensorFlow, the interpreter and Larq Compute Engine.
    """

    files: tuple[FileLatency, ...]
    host: str
    cpu: str
    machine: str
    threads: int
    xnnpack: bool
    warmup: int
    versions: dict[str, str]

    def __rich__(self) -> Table:
        table = Table(
            title=f"Latency on {self.cpu} ({self.machine})",
            caption=f"{len(self.files[0].runs_ms)} runs after {self.warmup} for warm-up, "
            f"{self.threads} thread(s), {self.versions['interpreter']}",
        )
        table.add_column("file", overflow="fold")
        table.add_column("kernels")
        for column in ("KiB", "median ms", "IQR ms", "ratio"):
            table.add_column(column, justify="right")
        for row in self.files:
            table.add_row(
                row.path,
                row.kernels if row.note is None else f"{row.kernels}: {row.note}",
                f"{row.bytes / 1024:.0f}",
                f"{row.median_ms:.3g}",
                f"{row.interquartile_range_ms:.3g}",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
            )
        return table

    def __str__(self) -> str:
        return as_text(self)

    def to_json(self) -> str:
        """Return everything in the report, the single runs included, as JSON."""
        return json.dumps(asdict(self), indent=2)


def benchmark(
    paths: Sequence[str | Path],
    *,
    runs: int = MINIMUM_RUNS,
    warmup: int = 10,
    threads: int = 1,
    xnnpack: bool = True,
) -> BenchmarkReport:
    """Measure the latency of ``.tflite`` files on this host.

    The files take turns, one run each, so that whatever else the host does hits them alike. The
    inputs are random and the same in every run. Files with custom ops of Larq Compute Engine run
    on its interpreter, which has optimized kernels for ARM only: on x86 such a file is marked
    ``REFERENCE_KERNEL`` and gets no ratio.

    Args:
        paths: The files. Ratios are against the first.
        runs: Measured runs of each file, at least 50.
        warmup: Runs of each file before those, not measured.
        threads: CPU threads that the kernels may use, at most 256.
        xnnpack: Whether the XNNPACK delegate takes the ops that it can.

    Returns:
        Median and interquartile range of each file, and what they were measured on.

    Raises:
        FileNotFoundError: One of the files is not there.
        ValueError: An argument is out of range, or a file is not a whole ``.tflite`` file that
            this host's kernels can run.
    """
    if not paths:
        raise ValueError("Expected at least one .tflite file, received none.")
    check_counts(runs=(runs, MINIMUM_RUNS), warmup=(warmup, 0), threads=(threads, 1))

    contents = [read_tflite(path) for path in paths]
    binarized = [has_lce_ops(content) for content in contents]
    invokes = [
        _open(path, content, lce, threads, xnnpack)
        for path, content, lce in zip(paths, contents, binarized, strict=True)
    ]
    seconds = np.empty((len(invokes), warmup + runs))
    for run in range(warmup + runs):
        for file, invoke in enumerate(invokes):
            start = time.perf_counter()
            try:
                invoke()
            except RuntimeError as error:
                raise _cannot_run(paths[file], error) from None
            seconds[file, run] = time.perf_counter() - start

    milliseconds = 1e3 * seconds[:, warmup:]
    first, median, third = np.percentile(milliseconds, (25, 50, 75), axis=1)
    notes = [lce_note(lce, platform.machine()) for lce in binarized]
    return BenchmarkReport(
        files=tuple(
            FileLatency(
                path=str(path),
                bytes=len(contents[i]),
                kernels="LCE" if binarized[i] else "XNNPACK" if xnnpack else "built-in",
                note=notes[i],
                runs_ms=tuple(milliseconds[i].tolist()),
                median_ms=float(median[i]),
                interquartile_range_ms=float(third[i] - first[i]),
                ratio=float(median[i] / median[0]) if not (notes[0] or notes[i]) else None,
            )
            for i, path in enumerate(paths)
        ),
        host=platform.platform(),
        cpu=cpu_name(),
        machine=platform.machine(),
        threads=threads,
        xnnpack=xnnpack,
        warmup=warmup,
        versions={
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "interpreter": tflite_version(),
            "larq-compute-engine": version("larq-compute-engine"),
        },
    )


def check_counts(**counts: tuple[int, int]) -> None:
    """Refuse a count below its least value, and more threads than kernels survive.

    Args:
        counts: Value and least value by name.

    Raises:
        ValueError: One is out of range.
    """
    for name, (value, least) in counts.items():
        if value < least:
            raise ValueError(f"Expected {name} of at least {least}, received {name}={value}.")
        if name == "threads" and value > MAXIMUM_THREADS:
            raise ValueError(
                f"Expected threads of at most {MAXIMUM_THREADS}, received threads={value}."
            )


def read_tflite(path: str | Path) -> bytes:
    """Read a ``.tflite`` file and make sure that it is one, and whole.

    Raises:
        FileNotFoundError: There is no file at ``path``.
        ValueError: The file is not a ``.tflite`` file, or is truncated.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a .tflite file, found none at {path}.")
    content = flatbuffer.content(path)
    flatbuffer.parsed(content, path)
    return content


def has_lce_ops(content: bytes) -> bool:
    """Whether the content of a ``.tflite`` file has custom ops of Larq Compute Engine."""
    model = schema.Model.GetRootAsModel(content, 0)
    names = (model.OperatorCodes(i).CustomCode() for i in range(model.OperatorCodesLength()))
    return any(name is not None and name.startswith(b"Lce") for name in names)


def lce_note(binarized: bool, machine: str) -> str | None:
    """Return the note for a file on an architecture: LCE's kernels are optimized for ARM only."""
    return REFERENCE_KERNEL if binarized and machine in _X86 else None


def as_text(report: object) -> str:
    """Render a report's table without colours, for a log or a text file."""
    console = Console(file=StringIO(), width=120)
    console.print(report)
    return console.file.getvalue()


def _open(
    path: str | Path, content: bytes, binarized: bool, threads: int, xnnpack: bool
) -> Callable[[], object]:
    """Return a function that runs the file once on random inputs."""
    if binarized:
        interpreter = open_interpreter(content, path, threads=threads, xnnpack=xnnpack)
        inputs = [
            _random(shape, dtype)
            for shape, dtype in zip(interpreter.input_shapes, interpreter.input_types, strict=True)
        ]
        return lambda: interpreter.predict(inputs)

    try:
        interpreter = tflite_interpreter(content, num_threads=threads, xnnpack=xnnpack)
    except RuntimeError as error:
        raise _cannot_run(path, error) from None
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], _random(tensor["shape"], tensor["dtype"]))
    return interpreter.invoke


def _cannot_run(path: str | Path, error: RuntimeError) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(f"Expected a file that TFLite can run, received {path}: {reason}")


def _random(shape: Sequence[int], dtype: type) -> np.ndarray:
    """Uniform over an integer type's range, standard normal for floats."""
    generator = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return generator.standard_normal(shape).astype(dtype)
