"""What a head starts from: the weights of the classifier, or features of the images."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf.convert.weights import latents, mixture_means, projection, unit

_AXES = (0, 1)  # of a kernel (features, classes), all of which has one factor


def fill_linear(made, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Give a linear head the classifier's weights, up to a factor of all scores."""
    made.kernel.assign(latents(kernel, _AXES))
    quantized = np.asarray(made.kernel_quantizer(made.kernel), np.float64)
    made.bias.assign(bias / projection(kernel, quantized, _AXES))


def fill_cosine(made, kernel: np.ndarray, features: np.ndarray | None, labels) -> None:
    """Give a cosine head the mean direction of each class, the classifier's where it has none."""
    columns = np.copy(kernel)
    if features is not None:
        features = unit(features, axis=1)
        for label in np.unique(labels):
            columns[:, label] = features[labels == label].mean(axis=0)
    # Cosines do not see the length of a class vector, but the clamp of all of them does.
    made.kernel.assign(latents(unit(columns, axis=0), _AXES))


def fill_mixture(
    made, kernel: np.ndarray, bias: np.ndarray, features: np.ndarray | None, labels
) -> str:
    """Give a mixture head its means: those of the classes, or those that the classifier amounts to.

    The means of the classes are the nearest to the features, and good scores only where these
    scatter by about one in each direction: elsewhere distances are far from what logits are. So the
    start is the one that explains the labels better, by the cross-entropy of the head's own logits.

    Args:
        made: The head.
        kernel: Of the classifier, (features, classes).
        bias: Of the classifier, (classes,).
        features: What the head reads, (images, features), or None.
        labels: Integers (images,), or None.

    Returns:
        Which start was taken and why, or nothing where there was no choice.
    """
    posterior = mixture_means(kernel, bias)
    if labels is None:
        made.kernel.assign(posterior)
        return ""
    starts = {
        "the means that its classifier amounts to": posterior,
        "the means of the classes": class_means(posterior, features, labels),
    }
    losses = {}
    for name, columns in starts.items():
        made.kernel.assign(columns)
        losses[name] = float(
            tf.reduce_mean(
                tf.keras.losses.sparse_categorical_crossentropy(
                    labels, made(features), from_logits=True
                )
            )
        )
    taken, other = sorted(losses, key=losses.get)
    made.kernel.assign(starts[taken])
    return (
        f"{made.name!r} starts from {taken}: a cross-entropy of {losses[taken]:.3g} on these "
        f"images, with {other} {losses[other]:.3g}."
    )


def class_means(columns: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean features of each class, (features, classes).

    A class without images stands to the others as in ``columns``: it is moved by the mean of what
    they are moved by.

    Args:
        columns: Means to begin with, of the same shape.
        features: float64 (images, features).
        labels: Integers (images,).
    """
    seen = np.unique(labels)
    means = np.stack([features[labels == label].mean(axis=0) for label in seen], axis=1)
    moved = columns + (means - columns[:, seen]).mean(axis=1, keepdims=True)
    moved[:, seen] = means
    return moved
