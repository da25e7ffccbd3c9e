"""Functional networks built from the quantizers."""

from dlqat_tf.models.resnet import resnet18

__all__ = ["resnet18"]
