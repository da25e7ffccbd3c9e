"""Latency of .tflite files on this host, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import rich
import tyro


def main(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    *,
    runs: int = 50,
    warmup: int = 10,
    threads: int = 1,
    xnnpack: bool = True,
    json: Path | None = None,
    force: bool = False,
) -> None:
    """Measure .tflite files on this host, taking turns run by run.

    Prints median, interquartile range and ratio to the first file. Files of Larq Compute Engine
    run on reference kernels on x86: they are marked so and get no ratio.

    Args:
        files: The .tflite files.
        runs: Measured runs of each file, at least 50.
        warmup: Runs of each file before those, not measured.
        threads: CPU threads that the kernels may use.
        xnnpack: Use the XNNPACK delegate, TFLite's default.
        json: Also write everything, the single runs included, to this file.
        force: Overwrite the --json file.
    """
    from dlqat_tf._host import write_whole
    from dlqat_tf.export.runtimes.benchmark import benchmark
    from dlqat_tf.report import check_target

    if json is not None:
        check_target(json, force=force)
    report = benchmark(files, runs=runs, warmup=warmup, threads=threads, xnnpack=xnnpack)
    if json is not None:
        write_whole(json, report.to_json() + "\n")
    rich.print(report)


if __name__ == "__main__":
    try:
        tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted, no report was written", file=sys.stderr)
        sys.exit(130)
