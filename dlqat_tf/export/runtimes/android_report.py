"""What a latency on an Android device is made of, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from dlqat_tf.export.runtimes.adb import Conditions, DeviceFacts
from dlqat_tf.export.runtimes.benchmark import as_text


@dataclass(frozen=True)
class Launch:
    """What one launch of a benchmark program printed. None where it did not print it.

    Attributes:
        runs: Measured runs.
        init_ms: Loading the file and preparing the kernels, in milliseconds.
        first_ms: First run, in milliseconds.
        average_ms: Average of the measured runs, in milliseconds.
        median_ms: Median of the measured runs, in milliseconds; older builds, LCE's among them,
            print none.
        init_memory_mb: Memory that loading took, in MB.
        memory_mb: Memory that the whole launch took, in MB.
        delegated: ``"all"``, ``"some"`` or ``"none"`` of the ops ran on the delegate asked for.
    """

    runs: int
    init_ms: float
    first_ms: float
    average_ms: float
    median_ms: float | None
    init_memory_mb: float | None
    memory_mb: float | None
    delegated: str | None


@dataclass(frozen=True)
class AndroidLatency:
    """Latency of one file.

    Attributes:
        path: The file, as it was given.
        bytes: Size of the file.
        binary: Program that ran it, as it was given.
        abi: Binary interface of the program.
        note: ``REFERENCE_KERNEL`` for LCE on an x86 emulator, else None.
        statistic: ``"median"`` or ``"average"``: what stands for a launch. It is the average
            where the program prints no median.
        median_ms: Median over the launches, in milliseconds.
        interquartile_range_ms: Third minus first quartile over the launches, in milliseconds.
        first_ms: Median over the launches of the first run, in milliseconds.
        init_ms: Median over the launches of the preparation, in milliseconds.
        memory_mb: Median over the launches of the memory taken, in MB.
        delegated: Which ops ran on the delegate: ``"all"``, ``"some"``, ``"none"``, or None where
            the program does not tell.
        ratio: ``median_ms`` over that of the first file, None where either has a note.
        launches: The single launches.
    """

    path: str
    bytes: int
    binary: str
    abi: str
    note: str | None
    statistic: str
    median_ms: float
    interquartile_range_ms: float
    first_ms: float
    init_ms: float
    memory_mb: float | None
    delegated: str | None
    ratio: float | None
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class AndroidReport:
    """What `benchmark_android` measured, on what and how.

    Attributes:
        files: One entry per file, in the order given.
        device: The device.
        before: Its state before the first launch.
        after: Its state after the last launch.
        runs: Runs asked for in each launch.
        warmup: Runs asked for before those, not measured.
        threads: CPU threads.
        cpus: CPUs that the program was bound to, empty for all.
        delegate: ``"cpu"``, ``"xnnpack"``, ``"gpu"`` or ``"nnapi"``.
    """

    files: tuple[AndroidLatency, ...]
    device: DeviceFacts
    before: Conditions
    after: Conditions
    runs: int
    warmup: int
    threads: int
    cpus: tuple[int, ...]
    delegate: str

    def __rich__(self) -> Group:
        device = self.device
        table = Table(
            title=f"Latency on {device.model or device.serial}, Android {device.android or '?'}",
            caption=f"{len(self.files[0].launches)} launches of at least {self.runs} runs after "
            f"{self.warmup} for warm-up, delegate {self.delegate}, {self.threads} thread(s), "
            f"{'CPUs ' + ', '.join(map(str, self.cpus)) if self.cpus else 'any CPU'}",
        )
        table.add_column("file", overflow="fold")
        table.add_column("program")
        for column in ("median ms", "IQR ms", "first ms", "init ms", "MB", "delegated", "ratio"):
            table.add_column(column, justify="right")
        for row in self.files:
            program = f"{Path(row.binary).name} ({row.abi}, {row.statistic})"
            table.add_row(
                row.path,
                program if row.note is None else f"{program}: {row.note}",
                f"{row.median_ms:.3g}",
                f"{row.interquartile_range_ms:.3g}",
                f"{row.first_ms:.3g}",
                f"{row.init_ms:.3g}",
                "-" if row.memory_mb is None else f"{row.memory_mb:.1f}",
                row.delegated or "-",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
            )
        governors = ", ".join(sorted(set(device.governors.values()))) or "unknown"
        return Group(
            table,
            f"governor {governors}; battery {_span(self.before, self.after, 'battery_celsius')} "
            f"°C; CPU {_span(self.before, self.after, 'cpu_celsius')} °C; thermal status "
            f"{_span(self.before, self.after, 'thermal_status')}",
        )

    def __str__(self) -> str:
        return as_text(self)

    def to_json(self) -> str:
        """Return everything in the report, the single launches included, as JSON."""
        return json.dumps(asdict(self), indent=2)


def _span(before: Conditions, after: Conditions, name: str) -> str:
    """Return a value before and after the launches, as text."""
    values = (getattr(conditions, name) for conditions in (before, after))
    return " to ".join("?" if value is None else str(value) for value in values)
