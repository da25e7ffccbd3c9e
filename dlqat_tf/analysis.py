"""What a loss does to a network beyond its accuracy: the drop by quantization, and the clusters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf.losses import GMLoss
from dlqat_tf.report import Report

PERPLEXITY = 30
"""Of the paper's Figure 1."""
ITERATIONS = 1000
"""Of the paper's Figure 1."""
_FOLDS = 5


def delta_p(float_accuracy: float, quantized_accuracy: float) -> float:
    r"""Return what quantization costs a loss, DL-QAT eq. 6, in the unit of the accuracies.

    .. math:: \Delta P_{loss} = Acc^{float32}_{loss} - Acc^{quant}_{loss}

    Args:
        float_accuracy: Of the float network that was trained with the loss.
        quantized_accuracy: Of the quantized network that was trained with the same loss.
    """
    return float_accuracy - quantized_accuracy


def features(model: tf.keras.Model, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Return what the classifier at the end of a network reads.

    Args:
        model: Functional or Sequential model whose last layer is a head or another dense layer.
        images: What the model takes, (images, height, width, channels).
        batch_size: Images at a time.

    Returns:
        float32 (images, features), in inference mode.

    Raises:
        ValueError: The last layer is not dense.
    """
    head = model.layers[-1]
    if not isinstance(head, tf.keras.layers.Dense):
        raise ValueError(
            "Expected a model whose last layer is a head of this package or a Dense layer. "
            f"Received: {type(head).__name__} {head.name!r}."
        )
    body = tf.keras.Model(model.inputs, head.input)
    return np.asarray(body.predict(images, batch_size=batch_size, verbose=0), np.float32)


def per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the first ``count`` images of every class, class by class.

    The paper's Figure 1 shows 50 test images of each class, the same for every network.

    Args:
        labels: Integer classes (images,).
        count: Images of each class.

    Raises:
        ValueError: A class has fewer images.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if count < 1 or sizes.min() < count:
        raise ValueError(
            f"Expected at least {max(count, 1)} images of each class and to take at least 1. "
            f"Received: {sizes.min()} of class {classes[sizes.argmin()]}, count={count}."
        )
    return np.concatenate([np.flatnonzero(labels == each)[:count] for each in classes])


@dataclass(frozen=True)
class ClusterStatistics(Report):
    r"""How compact and how far apart the classes are in a space of features.

    With features :math:`f_i` of class :math:`y_i` and the class means :math:`m_k`:

    Attributes:
        images: Number of features.
        classes: Number of classes.
        intra_class_variance: :math:`\frac1N \sum_i \lVert f_i - m_{y_i} \rVert^2`, in squared units
            of the features.
        smallest_distance: Euclidean distance of the two nearest class means.
        mean_distance: Mean Euclidean distance of two class means.
        separation: ``mean_distance`` over the square root of ``intra_class_variance``: the one
            figure that does not depend on the scale of the features. Larger is better.
        probe_accuracy: Of a linear classifier (logistic regression on standardised features), mean
            over five stratified folds, 0 to 1.
    """

    images: int
    classes: int
    intra_class_variance: float
    smallest_distance: float
    mean_distance: float
    separation: float
    probe_accuracy: float

    def tables(self) -> list[Table]:
        table = Table(title=f"{self.images} images of {self.classes} classes")
        for heading in (
            "intra-class variance",
            "smallest distance",
            "mean distance",
            "separation",
            "linear probe",
        ):
            table.add_column(heading, justify="right")
        table.add_row(
            f"{self.intra_class_variance:.4g}",
            f"{self.smallest_distance:.4g}",
            f"{self.mean_distance:.4g}",
            f"{self.separation:.3f}",
            f"{self.probe_accuracy:.2%}",
        )
        return [table]


def cluster_statistics(
    features: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> ClusterStatistics:
    """Measure the clusters that a picture by t-SNE only hints at.

    Args:
        features: Float array (images, features).
        labels: Integer classes (images,), at least two classes with five images each.
        seed: Of the folds of the linear probe.

    Raises:
        ValueError: Shapes do not match, values are not finite, or there are too few images.
    """
    features, labels = _checked(features, labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < 2 or sizes.min() < _FOLDS:
        raise ValueError(
            f"Expected at least two classes with {_FOLDS} images each. Received: {len(classes)} "
            f"classes, the smallest with {sizes.min()}."
        )
    means = np.stack([features[labels == each].mean(axis=0) for each in classes])
    scatter = features - means[np.searchsorted(classes, labels)]
    variance = float(np.mean(np.sum(scatter**2, axis=1)))
    first, second = np.triu_indices(len(classes), k=1)
    distances = np.linalg.norm(means[first] - means[second], axis=1)
    return ClusterStatistics(
        images=len(features),
        classes=len(classes),
        intra_class_variance=variance,
        smallest_distance=float(distances.min()),
        mean_distance=float(distances.mean()),
        separation=float(distances.mean() / np.sqrt(variance)) if variance else float("inf"),
        probe_accuracy=_probe_accuracy(features, labels, seed),
    )


def embed(
    features: np.ndarray,
    *,
    seed: int = 0,
    perplexity: float = PERPLEXITY,
    iterations: int = ITERATIONS,
) -> np.ndarray:
    """Return the features in two dimensions by t-SNE (van der Maaten and Hinton 2008).

    Args:
        features: Float array (images, features), more images than ``perplexity``.
        seed: Of the optimisation.
        perplexity: Effective number of neighbours.
        iterations: Steps of the optimisation.

    Returns:
        float32 (images, 2).

    Raises:
        ValueError: All features are equal: the network has collapsed.
    """
    from sklearn.manifold import TSNE

    if not np.any(np.ptp(features, axis=0)):  # scikit-learn would end the process
        raise ValueError(
            f"Expected features that differ from image to image. Received: {len(features)} equal "
            "ones, so the network has collapsed: train it with a lower learning rate."
        )

    settings = {"perplexity": perplexity, "max_iter": iterations, "random_state": seed}
    return TSNE(init="pca", **settings).fit_transform(features)


@dataclass(frozen=True)
class MixtureStatistics(Report):
    r"""Where a Gaussian mixture's features and means are, and what its loss does to the features.

    With feature :math:`f` of class :math:`y`, means :math:`\mu_k`, margin :math:`a = \alpha \bar
    p^\gamma` and probabilities :math:`q` under that margin (that of the true class among them),
    the gradient of :class:`dlqat_tf.GMLoss` on a feature is

    .. math:: \sum_{k \ne y} q_k (\mu_k - \mu_y) + (a (1 - q_y) + \lambda) (f - \mu_y)

    The first part tells classes apart and does not depend on where the feature is; the second one
    pulls the feature to its mean.

    Attributes:
        feature_norm: Mean Euclidean norm of the features.
        mean_norm: Mean Euclidean norm of the class means.
        smallest_distance: Euclidean distance of the two nearest class means.
        mean_distance: Mean Euclidean distance of two class means.
        probability: Mean probability of the true class, without a margin.
        margin: :math:`a`, the margin that these images have earned.
        separating_gradient: Mean Euclidean norm of the first part.
        compacting_gradient: Mean Euclidean norm of the second part.
    """

    feature_norm: float
    mean_norm: float
    smallest_distance: float
    mean_distance: float
    probability: float
    margin: float
    separating_gradient: float
    compacting_gradient: float

    def tables(self) -> list[Table]:
        table = Table(title="features of a Gaussian mixture")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in dataclasses.asdict(self).items():
            table.add_row(name.replace("_", " "), f"{value:.4g}")
        return [table]


def mixture_statistics(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray, loss: GMLoss
) -> MixtureStatistics:
    """Measure what :class:`MixtureStatistics` names, with the loss's whole margin.

    >>> dlqat_tf.analysis.mixture_statistics(
    ...     dlqat_tf.analysis.features(model, images), labels, model.layers[-1].means, model.loss
    ... )

    Args:
        features: Float array (images, features).
        labels: Integer classes (images,), rows of ``means``.
        means: Class means (classes, features), at least two.
        loss: The loss that trains the network.

    Raises:
        ValueError: Shapes do not match, values are not finite, or there is one class only.
    """
    features, labels = _checked(features, labels)
    means = np.asarray(means, np.float64)
    if means.ndim != 2 or len(means) < 2 or means.shape[1] != features.shape[1]:
        raise ValueError(
            f"Expected at least two means of {features.shape[1]} features each. Received: means of "
            f"shape {means.shape}."
        )
    offsets = features[:, None] - means
    scores = (-0.5 * np.sum(offsets**2, axis=2)).astype(np.float32)
    margin = float(loss.alpha * loss.fit(tf.constant(scores), tf.constant(labels)))
    images = np.arange(len(labels))
    probabilities = _softmax(scores)
    scores[images, labels] *= 1 + margin
    under_margin = _softmax(scores)
    rest = 1 - under_margin[images, labels]
    own = offsets[images, labels]
    # sum over k != y of q_k (mu_k - mu_y); the true class adds nothing.
    separating = under_margin @ means - means[labels]
    compacting = (margin * rest + loss.likelihood_weight)[:, None] * own
    first, second = np.triu_indices(len(means), k=1)
    distances = np.linalg.norm(means[first] - means[second], axis=1)
    return MixtureStatistics(
        feature_norm=_mean_norm(features),
        mean_norm=_mean_norm(means),
        smallest_distance=float(distances.min()),
        mean_distance=float(distances.mean()),
        probability=float(probabilities[images, labels].mean()),
        margin=margin,
        separating_gradient=_mean_norm(separating),
        compacting_gradient=_mean_norm(compacting),
    )


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _mean_norm(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=1).mean())


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "Expected features of shape (images, features) and labels of shape (images,). "
            f"Received: {features.shape} and {labels.shape}."
        )
    if not np.all(np.isfinite(features)):
        raise ValueError("Expected finite features. Received: NaN or infinity.")
    return features, labels


def _probe_accuracy(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(probe, features, labels, cv=folds).mean())
