"""What training does beside the loss, written into TensorBoard after each epoch.

Both callbacks look and change nothing: a run with them has the weights of one without.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dlqat_tf import analysis, levels, plots
from dlqat_tf.heads import GaussianMixtureHead
from dlqat_tf.losses import GMLoss


class _Monitor(tf.keras.callbacks.Callback):
    """Writes scalars, at the step of the epoch, as Keras's TensorBoard callback does.

    Args:
        log_dir: Folder of the event files; ``tensorboard --logdir`` finds those of subfolders too.
        network: The model to look at; None for the one that is trained.
    """

    def __init__(self, log_dir: str | Path, network: tf.keras.Model | None = None):
        super().__init__()
        self.log_dir, self._network = Path(log_dir), network
        self.writer = tf.summary.create_noop_writer()  # until training begins

    @property
    def network(self) -> tf.keras.Model:
        """The model to look at: not the one that is trained where that is a model and a teacher."""
        return self.model if self._network is None else self._network

    def on_train_begin(self, logs=None):
        self.writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Close the event file; for training that ends by an error, of which Keras says nothing."""
        self.writer.close()

    def write(self, values: dict[str, float], epoch: int) -> None:
        """Write scalars by name."""
        with self.writer.as_default(step=epoch):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()


class QuantizerMonitor(_Monitor):
    """Writes ranges, clip shares and flip rates of a network that is rounded, layer by layer.

    - ``range/<layer>``: highest value that an activation quantizer lets pass (CG-PACT's alpha);
    - ``clip_share/<layer>``: share of its inputs beyond its range, on ``images``;
    - ``flip_rate/<layer>``: share of a kernel's codes that the epoch changed (since the checkpoint,
      in an epoch that was resumed).

    At the end of training two pictures follow, of :func:`dlqat_tf.plots.activation_ranges` (since
    ``fit`` began) and :func:`dlqat_tf.plots.latent_weights`.

    >>> model.fit(images, labels, callbacks=[QuantizerMonitor("logs/quantizers", images[:256])])

    Args:
        log_dir: Folder of the event files.
        images: A batch of what the model takes; it runs in inference mode once an epoch.
        network: The model to look at, where the one that is trained has a teacher in it too.
    """

    def __init__(self, log_dir: str | Path, images, network: tf.keras.Model | None = None):
        super().__init__(log_dir, network)
        self.images = images
        self._ranges: dict[str, tuple[float, float]] | None = None

    def on_epoch_begin(self, epoch, logs=None):
        # Not when training begins: a checkpoint may be restored after that.
        self._codes = levels.weight_codes(self.network)
        if self._ranges is None:
            self._ranges = levels.activation_ranges(self.network)

    def on_epoch_end(self, epoch, logs=None):
        codes = levels.weight_codes(self.network)
        values = {
            f"flip_rate/{name}": levels.flip_rate(self._codes[name], each)
            for name, each in codes.items()
            if name in self._codes  # INQ's kernels get codes when all is frozen
        }
        for name, (_, highest) in levels.activation_ranges(self.network).items():
            values[f"range/{name}"] = highest
        for name, share in levels.clip_shares(self.network, self.images).items():
            values[f"clip_share/{name}"] = share
        self.write(values, epoch)

    def on_train_end(self, logs=None):
        after = levels.activation_ranges(self.network)
        # Quantizers that start from the first batch had no range before it.
        before = {name: each for name, each in (self._ranges or {}).items() if name in after}
        with self.writer.as_default(step=0):
            if before:
                after = {name: after[name] for name in before}
                figure = plots.activation_ranges(before, after)
                tf.summary.image("activation_ranges", _pixels(figure))
            if levels.weight_codes(self.network):
                tf.summary.image("latent_weights", _pixels(plots.latent_weights(self.network)))
        super().on_train_end(logs)


class MixtureMonitor(_Monitor):
    """Writes what :class:`dlqat_tf.analysis.MixtureStatistics` names, under ``mixture/``.

    Norms of features, distances between means, the probability of the true class, and the two parts
    of the loss's gradient on the features: what separates classes and what makes them compact.

    >>> model.fit(images, labels, callbacks=[MixtureMonitor("logs/mixture", some, labels_of_some)])

    Args:
        log_dir: Folder of the event files.
        images: A batch of what the model takes; it runs in inference mode once an epoch.
        labels: Integer classes (images,).
        loss: The loss of the labels; None for that of the model that is trained.
        network: The model to look at, where the one that is trained has a teacher in it too.

    Raises:
        ValueError: At the start of training, the network does not end with a
            :class:`dlqat_tf.GaussianMixtureHead`, or the loss is no :class:`dlqat_tf.GMLoss`.
    """

    def __init__(
        self,
        log_dir: str | Path,
        images,
        labels,
        loss: GMLoss | None = None,
        network: tf.keras.Model | None = None,
    ):
        super().__init__(log_dir, network)
        self.images, self.labels, self._loss = images, np.asarray(labels), loss

    def _head_and_loss(self) -> tuple[GaussianMixtureHead, GMLoss]:
        head = self.network.layers[-1]
        loss = self.model.loss if self._loss is None else self._loss
        if not isinstance(head, GaussianMixtureHead) or not isinstance(loss, GMLoss):
            raise ValueError(
                "MixtureMonitor expected a network that ends with a GaussianMixtureHead and is "
                f"trained by GMLoss. Received: {type(head).__name__} and loss={loss!r}."
            )
        return head, loss

    def on_train_begin(self, logs=None):
        self._head_and_loss()  # raises before the first epoch
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        features = analysis.features(self.network, self.images)
        if not np.all(np.isfinite(features)):
            return  # training has diverged, and its next step says so
        head, loss = self._head_and_loss()
        found = analysis.mixture_statistics(features, self.labels, head.means, loss)
        self.write({f"mixture/{name}": value for name, value in vars(found).items()}, epoch)


def _pixels(figure) -> np.ndarray:
    """Return a figure as uint8 (1, height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[None, ..., :3]
