"""Weight decay is for weights: what quantizers learn, such as ranges and steps, is exempt.

Keras decays every trainable variable unless the user lists exceptions on each optimizer, and offers
variables and layers no way to say so themselves. Importing this module adds one condition to
``tf.keras.optimizers.Optimizer``, which all its optimizers ask before they decay a variable. The
answer changes for the variables of :func:`exempt_from_weight_decay` only.
"""

from __future__ import annotations

import functools
from weakref import WeakValueDictionary

import tensorflow as tf

_exempt: WeakValueDictionary[str, tf.Variable] = WeakValueDictionary()


def exempt_from_weight_decay(variable: tf.Variable) -> tf.Variable:
    """Keep the ``weight_decay`` of Keras's optimizers away from a variable.

    Holds for ``AdamW``, ``SGD(weight_decay=...)`` and every other optimizer of
    ``tf.keras.optimizers``, under any distribution strategy. Optimizers with a decay of their own
    beside Keras's, such as those of TensorFlow Addons, need to be told by their own means.

    Args:
        variable: A variable as ``Layer.add_weight`` returned it.

    Returns:
        The same variable.
    """
    _exempt[variable._unique_id] = variable
    return variable


def _extend(optimizer: type[tf.keras.optimizers.Optimizer]) -> None:
    ask_keras = optimizer._use_weight_decay

    @functools.wraps(ask_keras)
    def _use_weight_decay(self, variable):
        # The key is that of the whole variable where a replica's part is asked for.
        return self._var_key(variable) not in _exempt and ask_keras(self, variable)

    optimizer._use_weight_decay = _use_weight_decay


_extend(tf.keras.optimizers.Optimizer)
