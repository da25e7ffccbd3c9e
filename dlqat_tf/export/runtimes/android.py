"""Latency of ``.tflite`` files on an Android device, measured there by TFLite's own tools.

``adb`` pushes the files and a benchmark program into a folder of their own under
``/data/local/tmp``, launches the program several times for each file, and removes the folder
whatever happens. Files with custom ops of Larq Compute Engine need ``lce_benchmark_model``; the
others run on TFLite's ``benchmark_model``, or on LCE's where that is the only one given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table

from dlqat_tf.export.runtimes.benchmark import (
    MINIMUM_RUNS,
    as_text,
    check_counts,
    has_lce_ops,
    lce_note,
    read_tflite,
)

TFLITE_BINARY = "DLQAT_BENCHMARK_MODEL"
LCE_BINARY = "DLQAT_LCE_BENCHMARK_MODEL"
MINIMUM_LAUNCHES = 3  # fewer have no spread
_FOLDER = "/data/local/tmp"  # the one place where adb's user may execute a file
_SECONDS = 60  # for anything that is quick on a working device

# Flags of both programs. XNNPACK is switched explicitly, because it is on by default in some
# builds and off in others.
_DELEGATES = {
    "cpu": "--use_xnnpack=false",
    "xnnpack": "--use_xnnpack=true",
    "gpu": "--use_gpu=true",
    "nnapi": "--use_nnapi=true",
}
_ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}  # by ELF machine number
_STATES = {
    "unauthorized": "unlock it and accept the USB debugging prompt",
    "offline": "reconnect it, or run `adb reconnect`",
    "no permissions": "give your user access to the USB device (udev rules on Linux)",
}


class AndroidError(RuntimeError):
    """A device, adb or a benchmark program did not do what was asked; the message says what."""


@dataclass(frozen=True)
class Device:
    """A line of ``adb devices``.

    Attributes:
        serial: Serial number.
        state: ``"device"`` where it can be used, else for example ``"unauthorized"``.
        model: Model name, None where adb does not know it.
    """

    serial: str
    state: str
    model: str | None


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is. None where the device does not tell.

    Attributes:
        serial: Serial number.
        model: Manufacturer and model.
        soc: System on chip.
        android: Version of Android.
        abis: Binary interfaces that it runs, the preferred one first.
        governors: CPU frequency governor by CPU.
        maximum_mhz: Highest frequency by CPU, in MHz.
        free_bytes: Free space under ``/data/local/tmp``.
    """

    serial: str
    model: str | None
    soc: str | None
    android: str | None
    abis: tuple[str, ...]
    governors: dict[int, str]
    maximum_mhz: dict[int, float]
    free_bytes: int | None


@dataclass(frozen=True)
class Conditions:
    """State of a device that a latency depends on. None where the device does not tell.

    Attributes:
        mhz: Current frequency by CPU, in MHz.
        battery_celsius: Temperature of the battery, in degrees Celsius.
        cpu_celsius: Highest temperature of a CPU sensor, in degrees Celsius.
        thermal_status: Android's throttling level, 0 (none) to 6 (shutdown).
    """

    mhz: dict[int, float]
    battery_celsius: float | None
    cpu_celsius: float | None
    thermal_status: int | None


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


def devices() -> list[Device]:
    """List the devices that adb knows.

    Raises:
        AndroidError: adb is not installed or does not answer.
    """
    found = []
    for line in _adb("devices", "-l").splitlines():
        # "List of devices attached" and the daemon's messages match no state.
        match = re.match(
            r"(\S+)\s+(device|unauthorized|offline|no permissions|authorizing|connecting|recovery"
            r"|rescue|sideload|bootloader|host)\b(.*)",
            line,
        )
        if match:
            model = re.search(r"\bmodel:(\S+)", match[3])
            found.append(Device(match[1], match[2], model and model[1].replace("_", " ")))
    return found


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

    device = _select(serial)
    facts, before = _facts(device.serial)
    absent = sorted(set(cpus) - set(facts.governors)) if facts.governors else []
    if absent or min(cpus, default=0) < 0:
        raise ValueError(f"Expected CPUs in {sorted(facts.governors)}, received {tuple(cpus)}.")
    chosen = {program: _for_abi(program, facts.abis) for program in set(programs)}
    needed = sum(map(len, contents)) + sum(path.stat().st_size for path, _ in chosen.values())
    if facts.free_bytes is not None and facts.free_bytes < needed:
        raise AndroidError(
            f"Expected {needed / 1e6:.1f} MB free in {_FOLDER} of device {device.serial}, "
            f"received {facts.free_bytes / 1e6:.1f} MB: free some space."
        )

    options = (
        f"--num_threads={threads} --num_runs={runs} --warmup_runs={warmup} {_DELEGATES[delegate]}"
        f" --max_secs={timeout:g}"  # else a slow file gets fewer runs, silently
    )
    affinity = f"taskset {sum(1 << cpu for cpu in set(cpus)):x} " if cpus else ""
    launched: list[list[Launch]] = [[] for _ in paths]
    with _device_folder(device.serial) as folder:
        for number, (program, _) in enumerate(chosen.values()):
            _push(device.serial, program, f"{folder}/program{number}")
        _shell(device.serial, f"chmod 755 {folder}/program*")
        for number, path in enumerate(paths):
            _push(device.serial, path, f"{folder}/model{number}.tflite")
        for _ in range(launches):
            for number, path in enumerate(paths):
                program = list(chosen).index(programs[number])
                output = _launch(
                    device.serial,
                    folder,
                    f"{affinity}./program{program} --graph=model{number}.tflite {options}",
                    f"{chosen[programs[number]][0]} on {path}",
                    timeout,
                )
                launched[number].append(_read(output, delegate, path))
    after = _facts(device.serial)[1]

    rows = [
        _latency(path, content, *chosen[program], lce, launches_of_file)
        for path, content, program, lce, launches_of_file in zip(
            paths, contents, programs, binarized, launched, strict=True
        )
    ]
    return AndroidReport(
        files=tuple(
            AndroidLatency(
                **row,
                ratio=None
                if rows[0]["note"] or row["note"]
                else row["median_ms"] / rows[0]["median_ms"],
            )
            for row in rows
        ),
        device=facts,
        before=before,
        after=after,
        runs=runs,
        warmup=warmup,
        threads=threads,
        cpus=tuple(cpus),
        delegate=delegate,
    )


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


def _select(serial: str | None) -> Device:
    """Return the device to use, or say why there is none."""
    connected = devices()
    serials = ", ".join(device.serial for device in connected)
    serial = serial or os.environ.get("ANDROID_SERIAL")  # as adb itself does
    if not connected:
        raise AndroidError(
            "Expected a connected Android device, found none: connect one with USB debugging on."
        )
    if serial is None and len(connected) > 1:
        raise AndroidError(f"Expected --serial, since several devices are connected: {serials}.")
    for device in connected:
        if serial in (None, device.serial):
            if device.state != "device":
                raise AndroidError(
                    f"Expected a device that is ready, received {device.serial}, which is "
                    f"{device.state}: {_STATES.get(device.state, 'start Android on it')}."
                )
            return device
    raise AndroidError(f"Expected the serial of a connected device ({serials}), received {serial}.")


def _facts(serial: str) -> tuple[DeviceFacts, Conditions]:
    """Read what a device is and how it is; files that it does not show stay empty."""
    output = _shell(
        serial,
        "{ echo model=$(getprop ro.product.manufacturer) $(getprop ro.product.model);"
        " echo soc=$(getprop ro.soc.model);"
        " echo android=$(getprop ro.build.version.release);"
        " echo abis=$(getprop ro.product.cpu.abilist);"
        " for cpu in /sys/devices/system/cpu/cpu[0-9]*; do f=$cpu/cpufreq;"
        " echo cpu=${cpu##*/cpu},$(cat $f/scaling_governor),$(cat $f/scaling_cur_freq),"
        "$(cat $f/cpuinfo_max_freq); done;"
        f" echo free=$(df -k {_FOLDER} | tail -n 1);"
        " echo battery=$(dumpsys battery | grep temperature:);"
        " echo thermal=$(dumpsys thermalservice); } 2>/dev/null",
    )
    values: dict[str, str] = dict(re.findall(r"^(\w+)=(.*)$", output, re.MULTILINE))
    governors, current, maximum = {}, {}, {}
    for cpu, governor, now, most in re.findall(
        r"^cpu=(\d+),([^,\s]*),(\d*),(\d*)\s*$", output, re.MULTILINE
    ):
        governors[int(cpu)] = governor or "unknown"
        if now:
            current[int(cpu)] = int(now) / 1000
        if most:
            maximum[int(cpu)] = int(most) / 1000
    # "Filesystem 1K-blocks Used Available Use% Mounted on"
    free = re.search(r"(\d+) +\d+% +\S+\s*$", values.get("free", ""))
    battery = re.search(r"temperature: *(\d+)", values.get("battery", ""))
    # The dump repeats old values under "Cached temperatures"; type 0 is a CPU.
    sensors = values.get("thermal", "").partition("Current temperatures from HAL")[2]
    hot = re.findall(r"Temperature\{mValue=([\d.]+), mType=0,", sensors)
    status = re.search(r"Thermal Status: (\d)", values.get("thermal", ""))
    abis = tuple(values.get("abis", "").strip().split(",")) if values.get("abis") else ()
    if not abis:
        raise AndroidError(f"Expected device {serial} to name its ABIs, received nothing.")
    return (
        DeviceFacts(
            serial=serial,
            model=values.get("model", "").strip() or None,
            soc=values.get("soc", "").strip() or None,
            android=values.get("android", "").strip() or None,
            abis=abis,
            governors=governors,
            maximum_mhz=maximum,
            free_bytes=1024 * int(free[1]) if free else None,
        ),
        Conditions(
            mhz=current,
            battery_celsius=int(battery[1]) / 10 if battery else None,
            cpu_celsius=max(map(float, hot)) if hot else None,
            thermal_status=int(status[1]) if status else None,
        ),
    )


@contextlib.contextmanager
def _device_folder(serial: str) -> Iterator[str]:
    """Make a folder on the device for this run alone, and remove it whatever happens."""
    folder = f"{_FOLDER}/dlqat_{uuid.uuid4().hex}"
    failure = None
    try:
        _shell(serial, f"mkdir {folder}")
        yield folder
    except BaseException as error:
        failure = error
        raise
    finally:
        try:
            _shell(serial, f"rm -rf {folder}")
        except AndroidError as error:
            why = str(failure or error).rstrip(".") or "Interrupted"
            raise AndroidError(
                f"{why}; {folder} may be left on device {serial}: remove it with "
                f"`adb -s {serial} shell rm -rf {folder}`."
            ) from failure


def _launch(serial: str, folder: str, command: str, what: str, timeout: float) -> str:
    """Launch a program in the device's folder and return what it printed, errors included."""
    # The shell leaves its own process id and becomes the program, so that a launch that is given
    # up can be ended: ending adb here does not end what it started there.
    try:
        done = _run_adb(
            "-s",
            serial,
            "shell",
            f"cd {folder} && echo $$ > pid && exec {command}",
            timeout=timeout,
        )
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        with contextlib.suppress(AndroidError):
            _shell(serial, f"kill -9 $(cat {folder}/pid)")
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AndroidError(
            f"Expected {what} to end within {timeout:g} seconds, but it did not: give it a longer "
            "--timeout."
        ) from None
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return output
    _raise_adb_error(done)
    last = output.strip().splitlines()[-1:] or ["it printed nothing"]
    if done.returncode > 128:
        with contextlib.suppress(ValueError):  # a number that is no signal is a status
            name = signal.Signals(done.returncode - 128).name
            raise AndroidError(f"{what} was ended by {name}: {last[0]}")
    raise AndroidError(f"{what} failed with status {done.returncode}: {last[0]}")


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
) -> dict:
    """Summarise the launches of one file: all of `AndroidLatency` but the ratio."""
    medians = [launch.median_ms for launch in launches if launch.median_ms is not None]
    values = medians or [launch.average_ms for launch in launches]
    first, median, third = np.percentile(values, (25, 50, 75))
    memory = [launch.memory_mb for launch in launches if launch.memory_mb is not None]
    return {
        "path": str(path),
        "bytes": len(content),
        "binary": str(binary),
        "abi": abi,
        "note": lce_note(lce, abi),
        "statistic": "median" if medians else "average",
        "median_ms": float(median),
        "interquartile_range_ms": float(third - first),
        "first_ms": statistics.median(launch.first_ms for launch in launches),
        "init_ms": statistics.median(launch.init_ms for launch in launches),
        "memory_mb": statistics.median(memory) if memory else None,
        "delegated": launches[-1].delegated,
        "launches": tuple(launches),
    }


def _span(before: Conditions, after: Conditions, name: str) -> str:
    """Return a value before and after the launches, as text."""
    values = (getattr(conditions, name) for conditions in (before, after))
    return " to ".join("?" if value is None else str(value) for value in values)


def _push(serial: str, path: str | Path, target: str) -> None:
    # Absolute, since adb takes a name that begins with a hyphen for an option.
    _adb("-s", serial, "push", str(Path(path).absolute()), target, timeout=10 * _SECONDS)


def _shell(serial: str, command: str) -> str:
    return _adb("-s", serial, "shell", command)


def _adb(*arguments: str, timeout: float = _SECONDS) -> str:
    """Run adb and return what it printed; any failure is an `AndroidError`."""
    try:
        done = _run_adb(*arguments, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise AndroidError(
            f"Expected an answer from adb within {timeout:g} seconds, but got none: reconnect the "
            "device, or run `adb kill-server`."
        ) from None
    if done.returncode:
        _raise_adb_error(done)
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise AndroidError(f"adb failed with status {done.returncode}: {last[0]}")
    return done.stdout


def _run_adb(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["adb", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            # Ctrl-C shall reach this process only: adb is still needed to clean the device.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise AndroidError(
            "Expected adb on PATH, found none: install the Android SDK platform tools."
        ) from None


def _raise_adb_error(done: subprocess.CompletedProcess[str]) -> None:
    """Raise where adb itself failed, not what it ran: it says so in a fixed form."""
    for line in done.stderr.splitlines():
        message = re.match(r"(?:adb: )?error: (.*)|adb: (.*)", line)
        if message:
            raise AndroidError(f"adb failed: {message[1] or message[2]}")
