"""Latency of .tflite files, on this host and on an Android device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dlqat_command.metavars import COUNT, FILE, PROGRAM

_FILES = tyro.conf.arg(metavar="FILE [FILE ...]")
_NEEDED = tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="(required)")
_INTERRUPTED = "interrupted, no report was written"


@tyro.conf.configure(tyro.conf.FlagCreatePairsOff)
def host(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, _NEEDED],
    /,
    *,
    runs: Annotated[int, COUNT] = 50,
    warmup: Annotated[int, COUNT] = 10,
    threads: Annotated[int, COUNT] = 1,
    no_xnnpack: bool = False,
    json: Annotated[Path | None, FILE] = None,
    force: bool = False,
) -> None:
    """Measure .tflite files on this host, taking turns run by run.

    On an Android device: `dlqat benchmark android`.

    Prints median, interquartile range and ratio to the first file. Files of Larq Compute Engine
    run on reference kernels on x86: they are marked so and get no ratio.

    Args:
        files: The .tflite files.
        runs: Measured runs of each file, at least 50.
        warmup: Runs of each file before those, not measured.
        threads: CPU threads that the kernels may use.
        no_xnnpack: Run TFLite's built-in kernels instead of XNNPACK's.
        json: Also write everything, the single runs included, to this file.
        force: Overwrite the --json file.
    """
    import rich

    from dlqat_tf._host import write_whole
    from dlqat_tf._script import ending
    from dlqat_tf.export.runtimes.benchmark import benchmark
    from dlqat_tf.report import check_target

    with ending(ValueError, interrupted=_INTERRUPTED):
        if json is not None:
            check_target(json, force=force, beside=files)
        report = benchmark(files, runs=runs, warmup=warmup, threads=threads, xnnpack=not no_xnnpack)
        if json is not None:
            write_whole(json, report.to_json() + "\n")
        rich.print(report)


@tyro.conf.configure(tyro.conf.FlagCreatePairsOff)
def android(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, _FILES] = (),
    /,
    *,
    list: bool = False,
    serial: Annotated[str | None, tyro.conf.arg(metavar="SERIAL")] = None,
    tflite_binary: Annotated[Path | None, PROGRAM] = None,
    lce_binary: Annotated[Path | None, PROGRAM] = None,
    launches: Annotated[int, COUNT] = 5,
    runs: Annotated[int, COUNT] = 50,
    warmup: Annotated[int, COUNT] = 10,
    threads: Annotated[int, COUNT] = 1,
    cpus: Annotated[tuple[int, ...], tyro.conf.arg(metavar="CPU [CPU ...]")] = (),
    delegate: Literal["xnnpack", "cpu", "gpu", "nnapi"] = "xnnpack",
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 600,
    json: Annotated[Path | None, FILE] = None,
    force: bool = False,
) -> None:
    """Measure .tflite files on an Android device by adb, taking turns launch by launch.

    Prints median and interquartile range over the launches, first run, preparation and memory,
    with the device's governor and temperature. Whatever was pushed is removed at the end.

    Args:
        files: The .tflite files.
        list: List the connected devices and stop.
        serial: Serial number of the device, needed where several are connected.
        tflite_binary: TFLite's benchmark_model for Android, or a folder with one for each ABI
            (else $DLQAT_BENCHMARK_MODEL).
        lce_binary: lce_benchmark_model for Android, needed for binarized files
            (else $DLQAT_LCE_BENCHMARK_MODEL).
        launches: Launches for each file, at least 3.
        runs: Measured runs in each launch, at least 50.
        warmup: Runs before those in each launch, not measured.
        threads: CPU threads that the kernels may use.
        cpus: Numbers of the CPUs to bind the program to, for example the fast ones: 4 5 6 7.
        delegate: What runs the ops: XNNPACK, TFLite's built-in CPU kernels, GPU or NNAPI.
        timeout: Seconds that one launch may take.
        json: Also write everything, the single launches included, to this file.
        force: Overwrite the --json file.
    """
    import rich

    from dlqat_tf._host import write_whole
    from dlqat_tf._script import ending
    from dlqat_tf.export.runtimes.adb import devices
    from dlqat_tf.export.runtimes.android import benchmark_android
    from dlqat_tf.report import check_target

    with ending(ValueError, RuntimeError, interrupted=_INTERRUPTED):
        if list:
            connected = devices()
            if not connected:
                print("no device is connected")
            for device in connected:
                print(f"{device.serial}  {device.state}  {device.model or ''}".rstrip())
            return
        if json is not None:
            check_target(json, force=force, beside=files)
        report = benchmark_android(
            files,
            serial=serial,
            tflite_binary=tflite_binary,
            lce_binary=lce_binary,
            launches=launches,
            runs=runs,
            warmup=warmup,
            threads=threads,
            cpus=cpus,
            delegate=delegate,
            timeout=timeout,
        )
        if json is not None:
            write_whole(json, report.to_json() + "\n")
        rich.print(report)
