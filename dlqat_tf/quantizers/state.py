"""Numbers of a quantizer that start from the first batch, and where the model file keeps them.

A number and a flag that says whether it has started are variables of the quantizer. So a model that
is saved, or a run that is killed, goes on with the number and does not start it anew.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from dlqat_tf.quantizers.pact import AtLeast

SMALLEST = 1e-6  # of steps and scales: they divide


def add_number(quantizer, name: str, shape: tuple = (), *, trainable: bool) -> tuple:
    """Add a number above zero that starts from data, and its flag, to a quantizer in ``build``.

    Under a distribution strategy the replicas start from the mean of what each would start from,
    of those whose share of the batch starts something.

    Returns:
        The float32 variable of ``shape``, and the scalar variable that is 1 once it has started.
    """
    shared = dict(dtype=tf.float32, experimental_autocast=False)
    number = quantizer.add_weight(
        name,
        shape=shape,
        trainable=trainable,
        initializer="ones",
        constraint=AtLeast(SMALLEST) if trainable else None,
        aggregation=tf.VariableAggregation.MEAN,
        **shared,
    )
    started = quantizer.add_weight(
        f"{name}_started",
        shape=(),
        trainable=False,
        initializer="zeros",
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        **shared,
    )
    return number, started


def start_once(
    number: tf.Variable, started: tf.Variable, initial: Callable[[], tf.Tensor], training
) -> tf.Tensor:
    """Return the number; in the first training step, set it to ``initial()`` before.

    Before that step, what the number would start from stands in for it. A batch of no values, as a
    replica's share of a last one may be, or one that overflowed starts nothing: where other
    replicas have a number, it starts from theirs.
    """
    if training is not None and (tf.is_tensor(training) or training):
        # Assigned in every step and computed in the first: replicas assign together, which they
        # cannot do inside of a condition.
        first = tf.logical_and(tf.cast(training, tf.bool), started < 0.5)
        new = tf.stop_gradient(tf.cond(first, initial, lambda: number.read_value()))
        new, is_number = _over_replicas(positive(new), tf.reduce_all(tf.math.is_finite(new)))
        number.assign(tf.where(is_number, new, number.read_value()))
        starts = tf.logical_and(tf.cast(training, tf.bool), is_number)
        started.assign(tf.maximum(started, tf.cast(starts, tf.float32)))
        if not tf.is_tensor(training):
            return tf.convert_to_tensor(number)
    return tf.cond(
        started > 0.5,
        lambda: tf.convert_to_tensor(number),
        lambda: tf.stop_gradient(positive(initial())),
    )


def _over_replicas(value: tf.Tensor, is_number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the mean of the replicas' values that are numbers, and whether there are any."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return value, is_number
    total, count = replica.all_reduce(
        tf.distribute.ReduceOp.SUM,
        [tf.where(is_number, value, tf.zeros_like(value)), tf.cast(is_number, value.dtype)],
    )
    return tf.math.divide_no_nan(total, count), count > 0


def has_started(started: tf.Variable | None) -> bool:
    """Return whether a number has started, given its flag, or None before ``build``."""
    return started is not None and bool(started.numpy())


def positive(value: tf.Tensor) -> tf.Tensor:
    """Return ``value``, at least the smallest number that may divide."""
    return tf.maximum(value, SMALLEST)
