"""Strong scaling: the same training by one worker on one core, and by several on a core each.

Workers are processes that talk over the loopback interface by MultiWorkerMirroredStrategy, as
machines do over a network. The batch is the same for all of them together. What the machine itself
allows is measured beside it: as many processes with their part of the batch that do not talk.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

_WORKER = "DLQAT_SCALING"  # in the environment of a worker: its core and its batch


@dataclass(frozen=True)
class Settings:
    """Images a second of one worker and of several."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers; each needs a core."""
    width: int = 32
    """Channels of the first stage."""
    batch_size: int = 128
    """Images that all workers take together."""
    steps: int = 10
    """Measured steps of each repeat."""
    repeats: int = 3
    """How often each number of workers is measured, in turns; the fastest counts."""


def train(settings: Settings) -> None:
    """Be a worker: train, and print the seconds that the measured steps took."""
    core, batch_size = map(int, os.environ[_WORKER].split())
    os.sched_setaffinity(0, {core})
    import dlqat_tf
    from dlqat_tf.training.distribution import replicas

    import tensorflow as tf  # isort: skip

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one waits for the other workers
    several = "TF_CONFIG" in os.environ
    with replicas("multiworker" if several else "none") as job:
        model = dlqat_tf.resnet18(
            100, (32, 32, 3), 1, 2, width=settings.width, stem="cifar", residual_bits=8
        )
        model.compile(
            tf.keras.optimizers.SGD(0.01, momentum=0.9),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        generator = np.random.default_rng(0)
        images = generator.random((batch_size, 32, 32, 3), np.float32)
        labels = generator.integers(0, 100, batch_size)

        def batches(shard):
            part = (images[shard.index :: shard.count], labels[shard.index :: shard.count])
            return tf.data.Dataset.from_tensors(part).repeat()

        data = job.distribute(batches)
        model.fit(data, steps_per_epoch=2, verbose=0)  # traces and starts
        started = time.perf_counter()
        model.fit(data, steps_per_epoch=settings.steps, verbose=0)
        print(json.dumps(time.perf_counter() - started))


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def measure(settings: Settings, workers: int, together: bool) -> float:
    """Return the images a second of so many workers in all, which are one job or do not talk."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    batch_size = settings.batch_size if together else settings.batch_size // workers
    processes: list[subprocess.Popen] = []
    try:
        for index in range(workers):
            environment = os.environ | {_WORKER: f"{index} {batch_size}"}
            environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
            environment.pop("TF_CONFIG", None)
            if together and workers > 1:
                task = {"type": "worker", "index": index}
                config = {"cluster": {"worker": addresses}, "task": task}
                environment["TF_CONFIG"] = json.dumps(config)
            processes.append(
                subprocess.Popen(
                    [sys.executable, *sys.argv],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # of Ctrl-C this process alone says something
                )
            )
        seconds = []
        for process in processes:
            printed = process.communicate()[0]
            if process.returncode:
                raise SystemExit(f"error: a worker ended with status {process.returncode}.")
            seconds.append(json.loads(printed.strip().splitlines()[-1]))
    finally:
        for process in processes:  # one that is left would wait for the others
            process.kill()
            process.wait()
    return settings.steps * settings.batch_size / max(seconds)


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, description=__doc__)
    if _WORKER in os.environ:
        train(settings)
        return
    cores = os.cpu_count() or 1
    if max(settings.workers) > cores:
        raise SystemExit(
            f"error: expected at most {cores} workers, a core for each. Received: "
            f"--workers {' '.join(map(str, settings.workers))}."
        )
    rates: dict[tuple[int, bool], list[float]] = {}
    for _ in range(settings.repeats):
        for count in settings.workers:
            for together in (True, False) if count > 1 else (True,):
                found = rates.setdefault((count, together), [])
                found.append(measure(settings, count, together))
    table = Table(
        title=f"W1A2 ResNet-18, width {settings.width}, 32 px, batch {settings.batch_size} of all "
        f"workers, a core each, fastest of {settings.repeats}"
    )
    # Whatever else runs on the machine can only slow a run down.
    for heading in ("workers", "images/s", "slowest", "times the first"):
        table.add_column(heading, justify="right")
    first = max(rates[settings.workers[0], True])
    for (count, together), values in rates.items():
        table.add_row(
            f"{count}" if together else f"{count} that do not talk",
            f"{max(values):.1f}",
            f"{min(values):.1f}",
            f"{max(values) / first:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)
