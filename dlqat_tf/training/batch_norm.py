"""Batch-norm statistics measured anew, as low-bit networks need them after training."""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf.quantizers.base import frozen_quantizers


def reestimate(model: tf.keras.Model, batches: tf.data.Dataset) -> int:
    r"""Replace the moving averages of a model's batch norms by plain means over batches.

    Moving averages follow weights that change at every step. Where few bits round the activations,
    a small change of a weight changes whole codes, so averages over past weights belong to a
    network that there is no more (Peters et al. 2018, arXiv 1812.11118, "BN tuning"). With the
    weights fixed, mean and variance become

    .. math:: \mu = \frac1B \sum_b \mu_b, \qquad \sigma^2 = \frac1B \sum_b \sigma_b^2

    over the statistics of B batches in training mode. Quantizers compute as in inference, since
    that is what the statistics are for, and their ranges stay. So do frozen batch norms, and those
    called with ``training=False``.

    Args:
        model: Any Keras model.
        batches: Finite, of images or of (images, labels), augmented as in training: the black
            borders of crops belong to what the network knows.

    Returns:
        The number of batches.

    Raises:
        ValueError: There is no batch.
    """
    norms = [
        layer
        for layer in model.submodules
        if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable
    ]
    momenta = [layer.momentum for layer in norms]
    count = 0
    try:
        for batch in batches:
            images = batch[0] if isinstance(batch, tuple) else batch
            for layer in norms:
                # new = momentum * old + (1 - momentum) * batch's: the mean of all so far.
                layer.momentum = count / (count + 1)
            with frozen_quantizers():
                model(images, training=True)
            count += 1
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    if count == 0:
        raise ValueError("Expected at least one batch to measure batch norms on. Received: none.")
    return count
