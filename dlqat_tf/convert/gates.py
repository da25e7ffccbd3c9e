"""Functions that models spell out in several layers, as one call."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tensorflow as tf

from dlqat_tf.canonical import hard_sigmoid, hard_swish
from dlqat_tf.convert.kinds import ceiling_of, role_of
from dlqat_tf.graph import tensors_of
from dlqat_tf.preprocessing import arithmetic

_layers = tf.keras.layers


def with_gates(calls: list, outputs: list) -> list:
    """Return the calls with hard-sigmoid, relu6(x + 3) / 6, and hard-swish, x times that, as one.

    Left apart, their ReLU6 would be rounded to the few levels of hidden activations.

    Args:
        calls: In the order of computation; what ends a function is changed in place.
        outputs: What the model returns.
    """
    used = Counter(source for call in calls for source, _ in (*call.inputs, (call, 0)))
    used.update(source for source, _ in outputs)
    inside: set = set()
    for call in calls:
        before = _hard_sigmoid(call)
        if before and all(used[each] == 2 for each in before):  # itself, and one reader
            _become(call, hard_sigmoid, before[0])
            inside |= set(before)
    for call in calls:
        if type(call.layer) is not _layers.Multiply or len(call.inputs) != 2:
            continue
        for x, (gate, _) in (call.inputs, call.inputs[::-1]):
            is_gate = getattr(gate.layer, "activation", None) is hard_sigmoid
            if is_gate and gate.inputs == [x] and used[gate] == 2:
                _become(call, hard_swish, gate)
                inside.add(gate)
                break
    return [call for call in calls if call not in inside]


def _hard_sigmoid(call) -> list:
    """Return the two calls that make a hard-sigmoid with this one, or none."""
    if not _is_affine(call, 1 / 6, 0):
        return []
    (clipped, _) = call.inputs[0]
    if clipped.role != "relu" or ceiling_of(clipped.layer) != 6:
        return []
    (shifted, _) = clipped.inputs[0]
    return [shifted, clipped] if _is_affine(shifted, 1, 3) else []


def _is_affine(call, gain: float, offset: float) -> bool:
    """Return whether a call is an operator that multiplies by one number and adds another."""
    if not hasattr(call.layer, "symbol") or len(call.inputs) != 1:
        return False
    affine = arithmetic(call.node)
    return affine is not None and bool(
        affine.keeps_order
        and np.allclose(affine.gain, gain, rtol=1e-5)
        and np.allclose(affine.offset, offset, atol=1e-5)
    )


def _become(call, function, first) -> None:
    """Let a call compute a function of what another one reads."""
    (tensor,) = tensors_of(first.node)
    policy = getattr(call.layer, "dtype_policy", None)
    call.layer = _layers.Activation(function, name=call.name, dtype=policy)
    call.node = call.layer(tf.keras.Input(tensor.shape[1:], dtype=tensor.dtype)).node
    call.inputs, call.role, call.affine = list(first.inputs), role_of(call.layer), None
