"""What quantization costs per training step: time and memory over the plain float network.

Every configuration takes its steps in turn, many times, in one process that is pinned to one core,
and CPU time is counted, so that a busy machine hits all of them alike. Peak memory is the median of
several processes per configuration (the allocator's peaks scatter): of the whole process, and less
what it holds before there is a network.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --stem imagenet --batch-size 128 --precision mixed_bfloat16
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Settings:
    """Training step of ResNet-18: images/s and peak memory, float against W1A2, W2A2 and W4A4."""

    stem: Literal["cifar", "imagenet"] = "cifar"
    """3x3 convolution, or 7x7 with stride 2 and max-pooling."""
    width: int = 16
    """Channels of the first stage."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    batch_size: int = 64
    """Images per step."""
    residual_bits: int | None = 8
    """Bits of both inputs of a residual add; 8 is what every recipe trains, None adds in float."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras policy of all networks, the reference included."""
    repeats: int = 15
    """Turns that each configuration takes."""
    steps: int = 2
    """Steps per turn."""
    memory_repeats: int = 5
    """Processes whose peak memory is measured, for each configuration."""
    core: int = 0
    """Core to run on."""
    configurations: tuple[str, ...] = ("float", "W1A2", "W2A2", "W4A4")
    """Networks to compare, the first one is the reference; "float" is plain Keras."""
    output: Path | None = None
    """JSON file for the figures."""


def widths(name: str) -> tuple[int | None, int | None]:
    """Return (weight_bits, activation_bits) of a name such as "W1A2"."""
    if name == "float":
        return None, None
    weight, activation = name.removeprefix("W").split("A")
    return int(weight), int(activation)


def stepper(settings: Settings, name: str):
    """Return a function that takes one training step of the named network."""
    import tensorflow as tf

    import dlqat_tf

    tf.keras.mixed_precision.set_global_policy(settings.precision)
    weight_bits, activation_bits = widths(name)
    size = settings.image_size
    model = dlqat_tf.resnet18(
        100,
        (size, size, 3),
        weight_bits,
        activation_bits,
        stem=settings.stem,
        width=settings.width,
        residual_bits=None if name == "float" else settings.residual_bits,
        kernel_regularizer=tf.keras.regularizers.L2(2e-5),
    )
    model.compile(
        tf.keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    generator = np.random.default_rng(0)
    images = tf.constant(generator.random((settings.batch_size, size, size, 3), np.float32))
    labels = tf.constant(generator.integers(0, 100, settings.batch_size, np.int32))
    step = model.make_train_function()
    data = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    return lambda: step(data)


def pin(core: int) -> None:
    """Run this process, TensorFlow's threads included, on one core."""
    os.sched_setaffinity(0, {core})
    import dlqat_tf  # noqa: F401  (before TensorFlow)

    import tensorflow as tf  # isort: skip

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def peak_memory(settings: Settings, name: str) -> tuple[float, float]:
    """Return this process's peak in MB, and what building and training a network added to it."""
    pin(settings.core)
    import tensorflow as tf

    tf.constant(0.0)  # TensorFlow's own start-up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = stepper(settings, name)
    for _ in range(4):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024, (peak - before) / 1024


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, description=__doc__)
    peaks = {name: [] for name in settings.configurations}
    for _ in range(settings.memory_repeats):
        for name in settings.configurations:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                peaks[name].append(process.apply(peak_memory, (settings, name)))
    memory = {name: np.median(each, axis=0).tolist() for name, each in peaks.items()}

    pin(settings.core)
    steppers = {name: stepper(settings, name) for name in settings.configurations}
    for step in steppers.values():
        for _ in range(2):
            step()
    seconds = {name: [] for name in steppers}
    for _ in range(settings.repeats):
        for name, step in steppers.items():
            started = time.process_time()
            for _ in range(settings.steps):
                step()
            seconds[name].append((time.process_time() - started) / settings.steps)

    reference = settings.configurations[0]
    table = Table(
        title=f"ResNet-18 training step, {settings.stem} stem, width {settings.width}, "
        f"{settings.image_size} px, batch {settings.batch_size}, residual bits "
        f"{settings.residual_bits}, {settings.precision}, one core, CPU time"
    )
    for heading in ("network", "images/s", f"time over {reference}", "quartiles", "peak MB"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for heading in ("process over", "network over"):
        table.add_column(f"{heading} {reference}", justify="right")
    figures = {}
    for name, times in seconds.items():
        ratios = np.array(times) / np.array(seconds[reference])
        low, median, high = np.percentile(ratios, [25, 50, 75])
        figures[name] = {
            "images_per_second": settings.batch_size / float(np.median(times)),
            "time_ratio": [float(low), float(median), float(high)],
            "peak_megabytes": {"process": memory[name][0], "network": memory[name][1]},
            "memory_ratio": {
                "process": memory[name][0] / memory[reference][0],
                "network": memory[name][1] / memory[reference][1],
            },
        }
        table.add_row(
            name,
            f"{figures[name]['images_per_second']:.1f}",
            f"{median:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{memory[name][0]:.0f}",
            f"{figures[name]['memory_ratio']['process']:.3f}",
            f"{figures[name]['memory_ratio']['network']:.3f}",
        )
    Console().print(table)
    if settings.output:
        settings.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
