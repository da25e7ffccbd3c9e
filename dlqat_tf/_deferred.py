"""Modules that are imported where they are first used, since what they import takes long.

TF-MOT imports Keras 3 whole, 40 % of the time that this package itself takes. So ``dlqat_tf.tfmot``
is imported by whoever asks for it, and by Keras when it meets a TF-MOT layer in a file. Likewise
``dlqat_tf.plots`` and matplotlib, ``dlqat_tf.zoo`` and what opens data sets, and what most users
never ask for: ``dlqat_tf.analysis``, ``packed`` and ``training``.
"""

from __future__ import annotations

import importlib
import sys

import tensorflow as tf

_MODULES = ("analysis", "packed", "plots", "tfmot", "training", "zoo")


def __getattr__(name: str):
    """Return a module of the package that is named by its attribute, by importing it."""
    if name in _MODULES:
        return importlib.import_module(f"dlqat_tf.{name}")
    # Of its name and the module Python suggests close ones.
    raise AttributeError(
        f"module 'dlqat_tf' has no attribute {name!r}", name=name, obj=sys.modules["dlqat_tf"]
    )


class _Deferred:
    """Stands for one of TF-MOT's wrappers among the classes that Keras loads files with."""

    def __init__(self, name: str):
        self._name = name

    def from_config(self, config):
        importlib.import_module("dlqat_tf.tfmot")  # puts the class itself into this one's place
        return tf.keras.utils.get_custom_objects()[self._name].from_config(config)


for _name in ("QuantizeAnnotate", "QuantizeWrapperV2"):
    tf.keras.utils.get_custom_objects().setdefault(_name, _Deferred(_name))
