"""Several replicas of a network on several devices or machines, by ``tf.distribute``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf
from rich.console import Console

from dlqat_tf._host import reason_of
from dlqat_tf.report import counted
from dlqat_tf.training.data import WHOLE, Shard

Name = Literal["none", "mirrored", "multiworker", "tpu"]
_console = Console()
# What the others see when one worker is gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


class WorkerLost(RuntimeError):
    """Another worker of the job ended before its work was done."""


@dataclass(frozen=True)
class Replicas:
    """What training has to know of a strategy.

    Attributes:
        strategy: Of ``tf.distribute``; the default one is a single replica.
    """

    strategy: tf.distribute.Strategy

    @property
    def count(self) -> int:
        """Replicas in all workers together, each of which takes an equal part of a batch."""
        return self.strategy.num_replicas_in_sync

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what a run leaves behind: of several workers, one does."""
        return self.strategy.extended.should_checkpoint

    @property
    def are_workers(self) -> bool:
        """Whether there are other processes, with which this one has to agree."""
        return isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def check(self, batch_size: int) -> None:
        """Refuse a batch that replicas cannot share equally.

        Raises:
            ValueError: It is no multiple of their number.
        """
        if batch_size % self.count:
            raise ValueError(
                f"Expected batch_size, the images of all replicas together, to be a multiple of "
                f"their number, {self.count}. Received: {batch_size}."
            )

    def distribute(self, batches: Callable[[Shard], tf.data.Dataset]) -> tf.data.Dataset:
        """Give each replica its part of every batch.

        Args:
            batches: Returns a worker's part of all batches, given which worker of how many it is.

        Returns:
            What ``fit`` and ``evaluate`` take.
        """
        if self.count == 1:
            return batches(WHOLE)

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            shard = Shard(context.input_pipeline_id, context.num_input_pipelines)
            return _split(batches(shard), context.num_replicas_in_sync // shard.count)

        return self.strategy.distribute_datasets_from_function(of_worker)

    def test_batch_size(self, batch_size: int, images: int) -> int:
        """Return the largest batch, up to a size, of which no replica's part is ever empty.

        The mean over an empty part would be no number.

        Args:
            batch_size: A multiple of the number of replicas.
            images: Of the whole test set.

        Raises:
            ValueError: There are fewer images than replicas.
        """
        for size in range(batch_size, 0, -self.count):
            if images % size == 0 or images % size >= self.count:
                return size
        raise ValueError(
            f"Expected at least one test image for each of {self.count} replicas. "
            f"Received: {counted(images, 'image')}."
        )

    def any(self, is_so: bool) -> bool:
        """Return whether something is so in any worker; all must ask at the same step."""
        if not self.are_workers:
            return is_so
        flags = self.strategy.run(_sum_over_replicas, args=(tf.constant(float(is_so)),))
        return bool(self.strategy.experimental_local_results(flags)[0] > 0)

    def texts(self, text: str) -> list[str]:
        """Return the texts that all workers give, once for each replica; all must ask at once."""
        if not self.are_workers:
            return [text]
        own = tf.constant(list(text.encode()), tf.int32)

        def of_all(values):
            gathered = self.strategy.run(_of_all_replicas, args=(values,))
            return self.strategy.experimental_local_results(gathered)[0].numpy()

        ends = of_all(tf.size(own)[None]).cumsum()
        return [bytes(part.tolist()).decode() for part in np.split(of_all(own), ends[:-1])]

    def agree(self, model: tf.keras.Model) -> None:
        """Give all replicas the mean of what each has for itself, as a restored checkpoint does.

        That are the moving averages of batch norms which see their replica's part of a batch only.
        """
        if self.count > 1:
            for variable in model.variables:
                if variable.synchronization == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.read_value())

    @contextlib.contextmanager
    def written_by_chief(self, path: Path) -> Iterator[Path]:
        """Give a path to save at: what the others have to save too, all together, is thrown away.

        Variables that each replica has an own value of are averaged while they are saved.
        """
        if self.is_chief:
            yield path
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / path.name


@contextlib.contextmanager
def replicas(name: Name) -> Iterator[Replicas]:
    """Start a strategy and enter its scope.

    Args:
        name: "none": this process on one device; "mirrored": all GPUs of this machine (or, without
            any, its logical CPUs); "multiworker": all processes that ``TF_CONFIG`` names, each with
            its GPUs; "tpu": the TPU that this machine sees.

    Raises:
        ValueError: ``TF_CONFIG`` or the TPU is missing, or there is nothing to share work with.
        WorkerLost: Another worker ended.
    """
    try:
        with _started(name).scope():
            yield current()
    except LOST as error:
        if name != "multiworker":
            raise
        raise WorkerLost(
            "Another worker of the job ended: start all workers again with the same commands, "
            "and training goes on from the last checkpoint."
        ) from error


def current() -> Replicas:
    """Return the replicas of the scope that this is called in."""
    return Replicas(tf.distribute.get_strategy())


@functools.cache  # a process cannot start one twice: its collective operations are numbered once
def _started(name: Name) -> tf.distribute.Strategy:
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multiworker":
        return _joined(_own_address())
    if name != "tpu":
        return tf.distribute.get_strategy()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = reason_of(error)
        raise ValueError(
            f"Expected a TPU for strategy=tpu. Received: none that answers ({reason}): set "
            "TPU_NAME, or choose another --strategy."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _joined(address: str) -> tf.distribute.Strategy:
    """Return the strategy of all workers, when they are there."""
    try:
        with _ending_at_once():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except LOST:
        raise
    except tf.errors.OpError as error:
        reason = reason_of(error)
        raise ValueError(
            f"Expected TF_CONFIG to give this worker an address that it can have, and an index "
            f"that no other has. Received: {address} ({reason}): end what runs there, or correct "
            "TF_CONFIG."
        ) from error


def _own_address() -> str:
    """Return where this worker is, and say which others it waits for."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers, index = config["cluster"]["worker"], config["task"]["index"]
        # TensorFlow waits without end for workers that are named wrong.
        is_right = (
            config["task"]["type"] == "worker"
            and "chief" not in config["cluster"]  # the first worker is it
            and type(index) is int
            and 0 <= index < len(workers)
            and all(re.fullmatch(r".+:\d+", address) for address in workers)
            and len({*workers}) == len(workers)
        )
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        example = {
            "cluster": {"worker": ["a:2222", "b:2222"]},
            "task": {"type": "worker", "index": 0},
        }
        raise ValueError(
            "Expected the environment's TF_CONFIG to name all workers, each by host and port of "
            "its own, and this one for strategy=multiworker, such as "
            f"{json.dumps(example)}. Received: {text!r}."
        )
    others = [address for place, address in enumerate(workers) if place != index]
    if others:
        # TensorFlow takes SIGTERM for itself, and lets no Python run while it waits.
        _console.print(
            f"worker {index} waits for {', '.join(others)} (Ctrl-C ends it, SIGTERM does not)"
        )
    return workers[index]


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end this process while TensorFlow waits for the others and no Python runs.

    TensorFlow also takes SIGTERM for itself, and would do nothing then: that is given back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # not one that Python does not know
                signal.signal(number, handler)


def _split(batches: tf.data.Dataset, parts: int) -> tf.data.Dataset:
    """Cut each batch of a worker into parts for its replicas, as equal as can be, in order."""
    if parts == 1:
        return batches

    def cut(*batch):
        def part(index):
            def slice_of(tensor):
                size = tf.shape(tensor)[0]
                piece = tensor[size * index // parts : size * (index + 1) // parts]
                known = tensor.shape[0]
                if known is not None and known % parts == 0:
                    return tf.ensure_shape(piece, [known // parts, *tensor.shape[1:]])
                return piece

            return tf.nest.map_structure(slice_of, batch)

        return tf.data.Dataset.range(parts, output_type=tf.int32).map(part)

    return batches.flat_map(cut)


@tf.function
def _sum_over_replicas(value):
    value = tf.identity(value)  # on the replica's device, which an argument is not
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


@tf.function(reduce_retracing=True)
def _of_all_replicas(values):
    values = tf.identity(values)
    return tf.distribute.get_replica_context().all_gather(values, axis=0)
