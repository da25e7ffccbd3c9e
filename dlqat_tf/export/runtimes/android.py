"""Latency of ``.tflite`` files on an Android device, measured there by TFLite's own tools.

``adb`` pushes the files and a benchmark program into a folder of their own under
``/data/local/tmp``, launches the program several times for each file, and removes the folder
whatever happens. Files with custom ops of Larq Compute Engine need ``lce_benchmark_model``; the
others run on TFLite's ``benchmark_model``, or on LCE's where that is the only one given.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dlqat_tf.export.runtimes import adb
from dlqat_tf.export.runtimes.adb import AndroidError
from dlqat_tf.export.runtimes.android_report import AndroidLatency, AndroidReport, Launch
from dlqat_tf.export.runtimes.benchmark import (
    MINIMUM_RUNS,
    check_counts,
    has_lce_ops,
    lce_note,
    read_tflite,
)

TFLITE_BINARY = "DLQAT_BENCHMARK_MODEL"
LCE_BINARY = "DLQAT_LCE_BENCHMARK_MODEL"
MINIMUM_LAUNCHES = 3  # fewer have no spread

# Flags of both programs. XNNPACK is switched explicitly, because it is on by default in some
# builds and off in others.
_DELEGATES = {
    "cpu": "--use_xnnpack=false",
    "xnnpack": "--use_xnnpack=true",
    "gpu": "--use_gpu=true",
    "nnapi": "--use_nnapi=true",
}
_ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}  # by ELF machine number


def benchmark_android(
    paths: Sequence[str | Path],
    *,
    serial: str | None = None,
    tflite_binary: str | Path | None = None,
    lce_binary: str | Path | None = None,
    launches: int = 5,
    runs: int = MINIMUM_RUNS,
    warmup: int = 10,
    threads: int = 1,
    cpus: Sequence[int] = (),
    delegate: str = "xnnpack",
    timeout: float = 600,
) -> AndroidReport:
    """Measure the latency of ``.tflite`` files on an Android device.

    The files take turns, one launch each, so that a device that grows warm hits them alike. In
    each launch the program's own least durations hold too: half a second of warm-up and one
    second of runs.

    Args:
        paths: The files. Ratios are against the first.
        serial: Serial number of the device; needed where several are connected and
            ``ANDROID_SERIAL`` is not set.
        tflite_binary: TFLite's ``benchmark_model`` for Android, or a folder that holds it for
            several ABIs. Default: the environment variable ``DLQAT_BENCHMARK_MODEL``.
        lce_binary: The same for ``lce_benchmark_model``. Default: the environment variable
            ``DLQAT_LCE_BENCHMARK_MODEL``.
        launches: Launches of the program for each file, at least 3.
        runs: Measured runs in each launch, at least 50.
        warmup: Runs before those in each launch.
        threads: CPU threads that the kernels may use, at most 256.
        cpus: Numbers of the CPUs to bind the program to, none for all.
        delegate: ``"xnnpack"``, ``"cpu"`` (built-in kernels), ``"gpu"`` or ``"nnapi"``.
        timeout: Longest time that one launch may take, in seconds.

    Returns:
        Median and spread over the launches, first run, preparation and memory of each file, and
        the device and its state.

    Raises:
        FileNotFoundError: A file or program is not there.
        ValueError: An argument is out of range, or a file is not a whole ``.tflite`` file.
        AndroidError: adb, the device or the program failed. Like after any end, nothing is left
            on the device; where that was impossible, the message says what is left.
    """
    if not paths:
        raise ValueError("Expected at least one .tflite file, received none.")
    check_counts(
        launches=(launches, MINIMUM_LAUNCHES),
        runs=(runs, MINIMUM_RUNS),
        warmup=(warmup, 0),
        threads=(threads, 1),
    )
    if not timeout > 0:
        raise ValueError(f"Expected a timeout above 0 seconds, received timeout={timeout}.")
    if delegate not in _DELEGATES:
        raise ValueError(f"Expected delegate in {', '.join(_DELEGATES)}, received {delegate!r}.")

    contents = [read_tflite(path) for path in paths]
    binarized = [has_lce_ops(content) for content in contents]
    programs = _programs(paths, binarized, tflite_binary, lce_binary)

    device = adb.select(serial)
    facts, before = adb.facts(device.serial)
    _check_cpus(cpus, facts)
    chosen = {program: _for_abi(program, facts.abis) for program in dict.fromkeys(programs)}
    needed = sum(map(len, contents)) + sum(path.stat().st_size for path, _ in chosen.values())
    _check_space(needed, facts)

    affinity = f"taskset {sum(1 << cpu for cpu in set(cpus)):x} " if cpus else ""
    options = (
        f"--num_threads={threads} --num_runs={runs} --warmup_runs={warmup} {_DELEGATES[delegate]}"
        f" --max_secs={timeout:g}"  # else a slow file gets fewer runs, silently
    )
    launched: list[list[Launch]] = [[] for _ in paths]
    with adb.device_folder(device.serial) as folder:
        commands = _pushed(device.serial, folder, paths, [chosen[each][0] for each in programs])
        for _ in range(launches):
            for path, program, command, done in zip(
                paths, programs, commands, launched, strict=True
            ):
                output = adb.launch(
                    device.serial,
                    folder,
                    f"{affinity}{command} {options}",
                    f"{chosen[program][0]} on {path}",
                    timeout,
                )
                done.append(_read(output, delegate, path))
    after = adb.facts(device.serial)[1]

    rows = [
        _latency(path, content, *chosen[program], lce, launches_of_file)
        for path, content, program, lce, launches_of_file in zip(
            paths, contents, programs, binarized, launched, strict=True
        )
    ]
    return AndroidReport(
        files=tuple(replace(row, ratio=_ratio(row, rows[0])) for row in rows),
        device=facts,
        before=before,
        after=after,
        runs=runs,
        warmup=warmup,
        threads=threads,
        cpus=tuple(cpus),
        delegate=delegate,
    )


def _check_cpus(cpus: Sequence[int], facts: adb.DeviceFacts) -> None:
    """Raise ValueError for a CPU that the device has not."""
    absent = sorted(set(cpus) - set(facts.governors)) if facts.governors else []
    if absent or min(cpus, default=0) < 0:
        raise ValueError(f"Expected CPUs in {sorted(facts.governors)}, received {tuple(cpus)}.")


def _check_space(needed: int, facts: adb.DeviceFacts) -> None:
    """Raise AndroidError where the device has no room for so many bytes."""
    if facts.free_bytes is not None and facts.free_bytes < needed:
        raise AndroidError(
            f"Expected {needed / 1e6:.1f} MB free in {adb.FOLDER} of device {facts.serial}, "
            f"received {facts.free_bytes / 1e6:.1f} MB: free some space."
        )


def _pushed(
    serial: str, folder: str, paths: Sequence[str | Path], programs: Sequence[Path]
) -> list[str]:
    """Copy files and the program of each to the device, and return the commands that run them."""
    names = {program: f"program{i}" for i, program in enumerate(dict.fromkeys(programs))}
    for program, name in names.items():
        adb.push(serial, program, f"{folder}/{name}")
    adb.shell(serial, f"chmod 755 {folder}/program*")
    for i, path in enumerate(paths):
        adb.push(serial, path, f"{folder}/model{i}.tflite")
    return [f"./{names[each]} --graph=model{i}.tflite" for i, each in enumerate(programs)]


def parse_output(output: str) -> Launch:
    """Read what ``benchmark_model`` or ``lce_benchmark_model`` printed.

    Builds differ: lines begin with ``INFO:`` since 2022, percentiles exist since 2024, and
    "Peak memory footprint" became "Memory footprint delta" in 2021.

    Raises:
        ValueError: The text is not the output of a finished launch.
    """
    number = r"([\d.e+]+)"
    timings = re.search(
        rf"Inference timings in us: Init: {number}, First inference: {number}, "
        rf"Warmup \(avg\): {number}, Inference \(avg\): {number}",
        output,
    )
    counts = timings and re.findall(r"count=(\d+) (.*)", output[: timings.start()])
    if not counts:
        raise ValueError("no line 'Inference timings in us' in the output")
    runs, of_runs = counts[-1]  # the one before is of the warm-up
    median = re.search(rf"\bmedian={number}", of_runs)
    memory = re.search(
        rf"(?:Peak memory footprint|Memory footprint delta from the start of the tool) "
        rf"\(MB\): init={number} overall={number}",
        output,
    )
    delegated = re.search(
        r"model graph will (?:be (completely|partially)|not be) executed by the delegate", output
    )
    init, first, _, average = (1e-3 * float(text) for text in timings.groups())
    return Launch(
        runs=int(runs),
        init_ms=init,
        first_ms=first,
        average_ms=average,
        median_ms=1e-3 * float(median[1]) if median else None,
        init_memory_mb=float(memory[1]) if memory else None,
        memory_mb=float(memory[2]) if memory else None,
        delegated=delegated
        and {"completely": "all", "partially": "some", None: "none"}[delegated[1]],
    )


def _programs(
    paths: Sequence[str | Path],
    binarized: Sequence[bool],
    tflite_binary: str | Path | None,
    lce_binary: str | Path | None,
) -> list[tuple[Path, bool]]:
    """Return for each file where its program is, and whether that is LCE's."""
    given = {}
    for lce, path, variable in (
        (False, tflite_binary, TFLITE_BINARY),
        (True, lce_binary, LCE_BINARY),
    ):
        path = path or os.environ.get(variable)
        if path and not Path(path).exists():
            raise FileNotFoundError(f"Expected a benchmark program, found none at {path}.")
        given[lce] = Path(path) if path else None
    programs = []
    for path, lce in zip(paths, binarized, strict=True):
        lce = lce or given[False] is None  # LCE's program runs stock ops as well
        if given[lce] is None:
            name, variable = (
                ("lce_benchmark_model", LCE_BINARY)
                if any(binarized)
                else (
                    "benchmark_model",
                    TFLITE_BINARY,
                )
            )
            raise ValueError(
                f"Expected {name} for Android to run {path}, received none: give its path, or "
                f"set {variable}."
            )
        programs.append((given[lce], lce))
    return programs


def _for_abi(program: tuple[Path, bool], abis: Sequence[str]) -> tuple[Path, str]:
    """Return the file of a program that fits a device best, and its ABI."""
    path, lce = program
    candidates = [path]
    if path.is_dir():
        pattern = "*lce_benchmark_model*" if lce else "*benchmark_model*"
        candidates = [
            file
            for file in sorted(path.rglob(pattern))
            if file.is_file() and ("lce_" in file.name) == lce
        ]
    found = {_abi(candidate) or abis[0]: candidate for candidate in reversed(candidates)}
    for abi in abis:
        if abi in found:
            return found[abi], abi
    raise AndroidError(
        f"Expected a benchmark program for {' or '.join(abis)}, received {path} with "
        f"{', '.join(found) or 'none'}."
    )


def _abi(path: Path) -> str | None:
    """Return a program's ABI, None for a script, which has none."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"#!"):
        return None
    if not head.startswith(b"\x7fELF"):
        raise AndroidError(f"Expected a program for Android, received {path}, which is not one.")
    if b"/ld-linux" in head:
        # The likeliest mistake: a board's program, which Android reports as "not found".
        raise AndroidError(
            f"Expected a program for Android, received {path}, which is for Linux: take the "
            "android one."
        )
    return _ABIS.get(int.from_bytes(head[18:20], "little"), "an unknown ABI")


def _read(output: str, delegate: str, path: str | Path) -> Launch:
    """Parse a launch, and refuse one that measured something else than was asked."""
    if "BENCHMARK RESULTS" in output:
        raise AndroidError(
            "Expected TFLite's benchmark_model, received LiteRT's CompiledModel tool of the same "
            "name: build tflite/tools/benchmark:benchmark_model."
        )
    try:
        launch = parse_output(output)
    except ValueError as error:
        raise AndroidError(f"Expected the timings of {path}, received {error}.") from None
    # The programs ignore flags that they do not know, and fall back to the CPU silently. XNNPACK
    # may take no op of a file: its column says so, and the CPU ran it all the same.
    refused = {"cpu": (), "xnnpack": (None,)}.get(delegate, (None, "none"))
    if launch.delegated in refused:
        raise AndroidError(
            f"Expected {path} to run on the {delegate.upper()} delegate, but the program did not "
            "apply it: take a build that has it, or another --delegate."
        )
    return launch


def _latency(
    path: str | Path,
    content: bytes,
    binary: Path,
    abi: str,
    lce: bool,
    launches: Sequence[Launch],
) -> AndroidLatency:
    """Summarise the launches of one file, without the ratio."""
    medians = [launch.median_ms for launch in launches if launch.median_ms is not None]
    values = medians or [launch.average_ms for launch in launches]
    first, median, third = np.percentile(values, (25, 50, 75))
    memory = [launch.memory_mb for launch in launches if launch.memory_mb is not None]
    return AndroidLatency(
        path=str(path),
        bytes=len(content),
        binary=str(binary),
        abi=abi,
        note=lce_note(lce, abi),
        statistic="median" if medians else "average",
        median_ms=float(median),
        interquartile_range_ms=float(third - first),
        first_ms=statistics.median(launch.first_ms for launch in launches),
        init_ms=statistics.median(launch.init_ms for launch in launches),
        memory_mb=statistics.median(memory) if memory else None,
        delegated=launches[-1].delegated,
        ratio=None,
        launches=tuple(launches),
    )


def _ratio(row: AndroidLatency, first: AndroidLatency) -> float | None:
    """Return a file's latency over that of the first, None where either is no fair figure."""
    return None if first.note or row.note else row.median_ms / first.median_ms
