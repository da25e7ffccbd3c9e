"""Latency of .tflite files on an Android device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import rich
import tyro


def main(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    *,
    list: bool = False,
    serial: str | None = None,
    tflite_binary: Path | None = None,
    lce_binary: Path | None = None,
    launches: int = 5,
    runs: int = 50,
    warmup: int = 10,
    threads: int = 1,
    cpus: tuple[int, ...] = (),
    delegate: Literal["xnnpack", "cpu", "gpu", "nnapi"] = "xnnpack",
    timeout: float = 600,
    json: Path | None = None,
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
    from dlqat_tf._host import write_whole
    from dlqat_tf.export.runtimes.android import benchmark_android, devices
    from dlqat_tf.report import check_target

    if list:
        connected = devices()
        if not connected:
            print("no device is connected")
        for device in connected:
            print(f"{device.serial}  {device.state}  {device.model or ''}".rstrip())
        return
    if json is not None:
        check_target(json, force=force)
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


if __name__ == "__main__":
    try:
        tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted, no report was written", file=sys.stderr)
        sys.exit(130)
