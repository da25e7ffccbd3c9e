"""What a loss does to a network beyond its accuracy: the drop by quantization, and the clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.table import Table

from dlqat_tf._host import replacing
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
    return np.float32(body.predict(images, batch_size=batch_size, verbose=0))


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

    def tables(self):
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
    """
    from sklearn.manifold import TSNE

    settings = {"perplexity": perplexity, "max_iter": iterations, "random_state": seed}
    return TSNE(init="pca", **settings).fit_transform(features)


def draw_embeddings(
    panels: list[tuple[str, np.ndarray]], labels: np.ndarray, path: str | Path, *, columns: int
) -> None:
    """Draw embeddings side by side, a colour for each class.

    Args:
        panels: Titles and points (images, 2).
        labels: Integer classes (images,), the same for all panels.
        path: The PNG file.
        columns: Panels in a row.
    """
    from matplotlib.figure import Figure

    classes, colours = np.unique(labels, return_inverse=True)
    colours = (colours + 0.5) / len(classes)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, points) in zip(grid, panels, strict=False):
        # Ten colours can be told apart; of a hundred, neighbours on the circle look alike.
        palette = "tab10" if len(classes) <= 10 else "hsv"
        axes.scatter(*points.T, c=colours, cmap=palette, vmin=0, vmax=1, s=5, linewidths=0)
        axes.set_title(title)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(panels) :]:
        axes.remove()
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120)


def _checked(features, labels) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "Expected features of shape (images, features) and labels of shape (images,). "
            f"Received: {features.shape} and {labels.shape}."
        )
    if not np.all(np.isfinite(features)):
        raise ValueError("Expected finite features. Received: NaN or infinity.")
    return features, labels


def _probe_accuracy(features, labels, seed: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(probe, features, labels, cv=folds).mean())
