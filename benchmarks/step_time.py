"""What quantization costs per training step: time and memory over the plain float network.

Every configuration takes its steps in turn, many times, in one process that is pinned to one core,
and CPU time is counted, so that a busy machine hits all of them alike. Peak memory is the median of
several processes per configuration (the allocator's peaks scatter): of the whole process; of the
network, less what the process holds before there is one; and what each image adds to it, the
difference to a batch of a quarter of the size. The rest of the network's is what TensorFlow holds
of a graph and of the compiler, whatever the batch and the width are.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --width 32 --batch-size 64 --precision mixed_bfloat16
    python benchmarks/step_time.py --stem imagenet --image-size 224 --batch-size 32
    python benchmarks/step_time.py --method all --memory-repeats 0 --output step_times.json

With --method each method of dlqat_tf.methods (or the one named) takes the place of the widths: its
lowest bits with float activations and with 2 bits. What a method's callback does between steps is
not counted.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

_MEASURED = ("process", "network", "image")  # whose memory


@dataclass(frozen=True)
class Settings:
    """Training step of ResNet-18: images/s and peak memory, float against W1A2, W2A2 and W4A4."""

    stem: Literal["cifar", "imagenet"] = "cifar"
    """3x3 convolution, or 7x7 with stride 2 and max-pooling."""
    width: int = 64
    """Channels of the first stage; 64 is the recipes'."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    batch_size: int = 256
    """Images per step; the recipes take 768, and the more there are, the less do weights cost."""
    residual_bits: int | None = 8
    """Bits of both inputs of a residual add; 8 is what every recipe trains, None adds in float."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras policy of all networks, the reference included."""
    repeats: int = 7
    """Turns that each configuration takes."""
    steps: int = 1
    """Steps per turn."""
    memory_repeats: int = 3
    """Processes whose peak memory is measured, for each configuration; 0 for none."""
    core: int = 0
    """Core to run on."""
    configurations: tuple[str, ...] = ("float", "W1A2", "W2A2", "W4A4")
    """Networks to compare, the first one is the reference; "float" is plain Keras, "lsq:W2A2" has a
    method of dlqat_tf.methods."""
    method: str | None = None
    """Compare this method, or "all", with float instead of the configurations."""
    output: Path | None = None
    """JSON file for the figures."""


def parts(name: str) -> tuple[str, int | None, int | None]:
    """Return (method, weight_bits, activation_bits) of a name such as "W1A2" or "lsq:W2A2"."""
    if name == "float":
        return "sat", None, None
    method, _, widths = name.rpartition(":")
    weight, activation = widths.removeprefix("W").split("A")
    return method or "sat", int(weight), int(activation)


def of_methods(method: str) -> tuple[str, ...]:
    """Return the configurations of a method, or of all."""
    from dlqat_tf import methods

    names = methods.names() if method == "all" else (method,)
    lowest = {name: methods.get(name).lowest_bits for name in names}
    return "float", *(f"{name}:W{lowest[name]}A{bits}" for name in names for bits in (32, 2))


def stepper(settings: Settings, name: str):
    """Return a function that takes one training step of the named network."""
    import tensorflow as tf

    import dlqat_tf

    tf.keras.mixed_precision.set_global_policy(settings.precision)
    method, weight_bits, activation_bits = parts(name)
    size = settings.image_size
    model = dlqat_tf.resnet18(
        100,
        (size, size, 3),
        weight_bits,
        activation_bits,
        stem=settings.stem,
        width=settings.width,
        # Float activations are not rounded before they are added either.
        residual_bits=None if activation_bits in (None, 32) else settings.residual_bits,
        method=method,
        kernel_regularizer=tf.keras.regularizers.L2(2e-5),
    )
    model.compile(
        # A rate by which no network of random labels diverges before all have taken their steps.
        tf.keras.optimizers.SGD(1e-5, momentum=0.9, nesterov=True),
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


def apart(function, *arguments):
    """Return what a function returns in a process of its own.

    This one stays without the package until it is pinned: what that imports has to start on the one
    core, and a process counts the peak of the one that started it as its own.
    """
    # Which the process inherits: of Ctrl-C only this one says something.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with multiprocessing.get_context("spawn").Pool(1) as process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process.apply(function, arguments)


def check(output: Path) -> None:
    """Raise an OSError where the figures cannot be written."""
    from dlqat_tf.report import check_target

    check_target(output, force=True)


def memory_of(settings: Settings, name: str) -> tuple[float, float, float]:
    """Return the peak in MB of a process, of its network, and of each image that it trains on."""
    peak, network = apart(peak_memory, settings, name)
    smaller = dataclasses.replace(settings, batch_size=settings.batch_size // 4)
    _, of_smaller = apart(peak_memory, smaller, name)
    images = settings.batch_size - smaller.batch_size
    return peak, network, (network - of_smaller) / images


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
    """Check the settings and measure."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        if settings.output:
            apart(check, settings.output)
        if settings.memory_repeats and settings.batch_size < 4:
            raise ValueError(
                "Expected --batch-size of at least 4, a quarter of which is measured too. "
                f"Received: {settings.batch_size}. Choose a larger one, or --memory-repeats 0."
            )
        if settings.method is not None:
            configurations = apart(of_methods, settings.method)
            settings = dataclasses.replace(settings, configurations=configurations)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    measure(settings)


def measure(settings: Settings) -> None:
    """Measure, print and write."""
    peaks = {name: [] for name in settings.configurations}
    for _ in range(settings.memory_repeats):
        for name in settings.configurations:
            peaks[name].append(memory_of(settings, name))
    memory = {name: np.median(each, axis=0).tolist() for name, each in peaks.items() if each}

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
    headings = ["network", "images/s", f"time over {reference}", "quartiles"]
    if memory:
        headings += ["peak MB", *(f"{part} over {reference}" for part in _MEASURED)]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    figures = {}
    for name, times in seconds.items():
        ratios = np.array(times) / np.array(seconds[reference])
        low, median, high = np.percentile(ratios, [25, 50, 75])
        rate = settings.batch_size / float(np.median(times))
        figures[name] = {
            "images_per_second": rate,
            "time_ratio": [float(low), float(median), float(high)],
        }
        row = [name, f"{rate:.1f}", f"{median:.3f}", f"{low:.3f} to {high:.3f}"]
        if memory:
            ratios = [
                mine / other for mine, other in zip(memory[name], memory[reference], strict=True)
            ]
            figures[name]["peak_megabytes"] = dict(zip(_MEASURED, memory[name], strict=True))
            figures[name]["memory_ratio"] = dict(zip(_MEASURED, ratios, strict=True))
            row += [f"{memory[name][0]:.0f}", *(f"{ratio:.3f}" for ratio in ratios)]
        table.add_row(*row)
    Console().print(table)
    if settings.output:
        from dlqat_tf._host import write_whole

        write_whole(settings.output, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # not `ending`, which needs the package before the pinning
        print("error: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)
