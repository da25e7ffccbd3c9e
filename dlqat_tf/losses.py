r"""Disentangling losses: cross-entropy with a margin on the true class.

Both losses replace the true class's logit :math:`z_y` by a smaller one :math:`t_y` before the
softmax, so that training has to separate the classes by more than arg-max needs:

.. math:: L_y = -t_y + \log \Big( e^{t_y} + \sum_{k \ne y} e^{z_k} \Big)

The predictions they are given are the logits themselves, without a margin, so accuracy metrics and
deployed files need to know nothing about the loss.

Both check what they are given: the head when a step is traced, labels and predictions in every
batch. XLA (``jit_compile=True``) drops assertions; a batch that would have failed one has a loss of
NaN there and changes no weight. The same batch outside the compiled step says what is wrong:
``loss(labels, model(images))``.
"""

from __future__ import annotations

import math
from numbers import Real

import tensorflow as tf

from dlqat_tf.heads import head_of

AMS_SCALE = 30.0
"""AMS's default scale of the cosines."""


def margin_cross_entropy(labels: tf.Tensor, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    r"""Softmax cross-entropy in which the true class competes with another logit.

    Args:
        labels: Integer classes (batch,), or a distribution over the classes (batch, classes). For a
            distribution :math:`p` the result is the expectation :math:`\sum_k p_k L_k` of the
            integer case, which is what CutMix, MixUp and label smoothing mean by soft labels.
        logits: float32 (batch, classes), :math:`z`.
        targets: float32 (batch, classes), :math:`t_k`, the logit of class k where it is the true
            one.

    Returns:
        float32 (batch,).
    """
    classes = tf.shape(logits)[1]
    if labels.shape.rank == 1:
        is_true = tf.cast(tf.one_hot(labels, classes), tf.bool)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, tf.where(is_true, targets, logits)
        )
    # log(sum over j != k of e^z_j) for every k. All classes but the largest lose at most half of
    # the sum, so log1p is accurate; the largest is summed again without itself.
    is_largest = tf.one_hot(tf.argmax(logits, axis=1), classes, on_value=True, off_value=False)
    total = tf.reduce_logsumexp(logits, axis=1, keepdims=True)
    share = tf.where(is_largest, 0.0, tf.exp(logits - total))
    without_largest = tf.reduce_logsumexp(
        tf.where(is_largest, logits.dtype.min, logits), axis=1, keepdims=True
    )
    others = tf.where(is_largest, without_largest, total + tf.math.log1p(-share))
    return tf.reduce_sum(labels * tf.nn.softplus(others - targets), axis=1)


class _MarginLoss(tf.keras.losses.Loss):
    """Checks, label handling and the margin's ramp, shared by both losses.

    Attributes:
        ramp: Share of the margin in force. It is 1 but for the training steps that
            :class:`MarginWarmup` runs, so nothing that is measured or saved between them depends on
            a warm-up.
    """

    head: str  # the class of this package whose outputs these are
    expects: str  # what that head gives
    bounds: str

    def __init__(self, reduction, name: str):
        super().__init__(reduction=reduction, name=name)
        self.ramp = tf.Variable(1.0, trainable=False, name=f"{name}_ramp")

    def call(self, y_true, y_pred):
        self._check_head(y_pred)
        logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        labels, right_labels = self._labels(tf.convert_to_tensor(y_true), logits.shape[-1])
        right_predictions = (
            self.in_range(logits) | tf.reduce_any(tf.math.is_nan(logits)),
            f"{self._expectation} Received predictions",
            logits,
        )
        logits = _require(logits, right_predictions, *right_labels)
        targets = self.logits_and_targets(logits, labels)
        return margin_cross_entropy(labels, *targets) + self.penalty(labels, logits)

    def _labels(self, labels: tf.Tensor, classes: int) -> tuple:
        """Return integers (batch,) or a distribution (batch, classes), and what `_require` asks."""
        if labels.shape.rank == 2 and labels.shape[1] == 1 and classes != 1:
            labels = labels[:, 0]
        if labels.shape.rank == 2 and labels.shape[1] == classes:
            labels = tf.cast(labels, tf.float32)
            sums = tf.reduce_sum(labels, axis=1)
            sum_to_1 = f"{self.name} expected soft labels that sum to 1 for each image."
            not_negative = f"{self.name} expected soft labels of at least 0. Received labels"
            return labels, [
                (tf.reduce_all(labels > -1e-3), not_negative, labels),
                (tf.reduce_all(tf.abs(sums - 1.0) < 1e-3), f"{sum_to_1} Received sums", sums),
            ]
        if labels.shape.rank != 1:
            raise ValueError(
                f"{self.name} expected labels of shape (batch,), (batch, 1) or "
                f"(batch, {classes}). Received: shape {labels.shape}."
            )
        whole = tf.cast(labels, tf.int32)
        # Out of range is an error on the CPU but a silent NaN on a GPU, so look ourselves.
        are_classes = (whole >= 0) & (whole < classes) & (tf.cast(whole, labels.dtype) == labels)
        expectation = f"{self.name} expected labels from 0 to {classes - 1}, whole numbers."
        values = labels if labels.dtype.is_floating else whole
        return whole, [(tf.reduce_all(are_classes), f"{expectation} Received labels", values)]

    def _check_head(self, predictions) -> None:
        head = head_of(predictions)
        if head is not None and head.gives not in (None, self.expects):
            raise ValueError(
                f"{self._expectation} Received: the {head.gives} of {head.name!r} "
                f"({type(head).__name__})."
            )
        # Keras leaves what its softmax and sigmoid were computed from with their outputs.
        if head is None and getattr(predictions, "_keras_logits", None) is not None:
            raise ValueError(
                f"{self._expectation} Received: probabilities, of a softmax or a sigmoid."
            )

    @property
    def _expectation(self) -> str:
        return (
            f"{self.name} expected {self.expects} {self.bounds}: end the model with "
            f"dlqat_tf.{self.head}."
        )

    def in_range(self, predictions: tf.Tensor) -> tf.Tensor:
        """Return whether all predictions are what the right head could give."""
        raise NotImplementedError

    def logits_and_targets(
        self, predictions: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return softmax logits and, per class, the logit it has where it is the true one."""
        raise NotImplementedError

    def penalty(self, labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor | float:
        """Return what is added to the cross-entropy, (batch,) or 0."""
        return 0.0


def _require(logits: tf.Tensor, *requirements: tuple[tf.Tensor, str, tf.Tensor]) -> tf.Tensor:
    """Return ``logits``, in a graph that stops with a message unless all requirements hold.

    Args:
        logits: What the loss is computed from.
        requirements: Whether each holds, the message where it does not, and the values that decide.
    """
    assertions = []
    for holds, message, values in requirements:
        lowest, highest = tf.reduce_min(values), tf.reduce_max(values)
        if not tf.executing_eagerly():
            data = [message, "from", lowest, "to", highest]
            assertions.append(tf.debugging.Assert(holds, data))
        elif not holds:
            sentence = f"{message} from {lowest.numpy()} to {highest.numpy()}."
            raise tf.errors.InvalidArgumentError(None, None, sentence)
    with tf.control_dependencies(assertions):
        # Where XLA drops the assertions, NaN shows in the loss, while no gradient passes.
        return tf.where(tf.reduce_all([holds for holds, *_ in requirements]), logits, math.nan)


def _check_number(name: str, value: float, *, exclusive: bool = False) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (value > 0 if exclusive else value >= 0):
        bound = "above" if exclusive else "of at least"
        raise ValueError(f"Expected {name} to be a finite number {bound} 0. Received: {value!r}.")
    return float(value)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class AMSLoss(_MarginLoss):
    r"""Additive margin softmax loss, for the cosines of :class:`dlqat_tf.CosineHead`.

    Wang et al. 2018 (arXiv 1801.05599), DL-QAT eq. 3:

    .. math:: z_k = s \cos \theta_k, \qquad t_k = s (\cos \theta_k - m)

    with gradient :math:`\partial L / \partial \cos \theta_k = s (p_k - 1[k = y])`. The true class
    has to win by :math:`m` in cosine. ``model.compile(loss=dlqat_tf.AMSLoss())``.

    Args:
        margin: :math:`m \ge 0`, in units of cosine. The paper's is 0.35.
        scale: :math:`s > 0`. The paper gives none; 30 is the face recognition default and is enough
            to reach a probability of 0.99 with up to 1000 classes.
        reduction: As in any Keras loss.
        name: As in any Keras loss.

    Shapes:
        Labels: integers (batch,) or (batch, 1), or one-hot or soft labels (batch, classes), for
        which the loss is the expectation of the integer case. Predictions: cosines
        (batch, classes), any float dtype; computed in float32.

    Raises:
        ValueError: ``margin`` or ``scale`` is out of range; when the first step is traced, the
            predictions are those of another head or probabilities, or labels have another shape.
        tf.errors.InvalidArgumentError: At the first batch, when predictions leave [-1, 1], labels
            leave [0, classes), or soft ones are negative or do not sum to 1. Under XLA
            (``jit_compile=True``), which drops assertions, the loss is NaN instead.
    """

    head = "CosineHead"
    expects = "cosines"
    bounds = "in [-1, 1]"

    def __init__(
        self,
        margin: float = 0.35,
        scale: float = AMS_SCALE,
        reduction=tf.keras.losses.Reduction.AUTO,
        name: str = "ams_loss",
    ):
        super().__init__(reduction, name)
        self.margin = _check_number("margin", margin)
        self.scale = _check_number("scale", scale, exclusive=True)

    def in_range(self, predictions):
        return tf.reduce_all(tf.abs(predictions) <= 1.01)

    def logits_and_targets(self, predictions, labels):
        return self.scale * predictions, self.scale * (predictions - self.ramp * self.margin)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "scale": self.scale}


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class GMLoss(_MarginLoss):
    r"""Gaussian mixture loss, for the distances of :class:`dlqat_tf.GaussianMixtureHead`.

    Wan et al. 2018 (arXiv 1803.02988), DL-QAT eq. 4, with predictions :math:`-d_k`:

    .. math:: z_k = -d_k, \qquad t_k = -(1 + \alpha \bar p^\gamma) d_k, \qquad L = L_y + \lambda d_y

    With :math:`\alpha = \lambda = 0` this is the cross-entropy of a dense layer with kernel
    :math:`\mu^T` and bias :math:`-\lVert \mu_k \rVert^2 / 2`: only a margin (or a likelihood term)
    pulls features towards their mean.

    The factor :math:`\bar p^\gamma` is ours. The margin adds :math:`\alpha (1 - p_y) (f - \mu_y)`
    to the gradient of the features. What all images have in common in it shrinks every feature, and
    so the differences between logits, long before there are clusters to make compact. So the margin
    follows the fit: :math:`\bar p` is the mean probability that a batch (of all replicas together)
    gives to its true classes without a margin, a constant in the gradient. A network that fits its
    training images has the whole margin, one that does not has hardly any.
    ``model.compile(loss=dlqat_tf.GMLoss())``.

    Args:
        alpha: Margin factor :math:`\alpha \ge 0`. The paper uses 0.7 on CIFAR and 0 on ImageNet.
        likelihood_weight: :math:`\lambda \ge 0`. The paper's equation has no such term; Wan et al.
            use 0.1.
        reduction: As in any Keras loss.
        name: As in any Keras loss.
        fit_power: :math:`\gamma \ge 0`; 0 is the paper's equation, with the full margin from the
            first step (see :class:`dlqat_tf.MarginWarmup`).

    Shapes:
        Labels: integers (batch,) or (batch, 1), or one-hot or soft labels (batch, classes), for
        which the loss is the expectation of the integer case. Predictions: negated squared
        half-distances (batch, classes), any float dtype; computed in float32.

    Raises:
        ValueError: ``alpha``, ``likelihood_weight`` or ``fit_power`` is negative; when the first
            step is traced, the predictions are those of another head or labels have another shape.
        tf.errors.InvalidArgumentError: At the first batch, when predictions are positive, labels
            leave [0, classes), or soft ones are negative or do not sum to 1. Under XLA
            (``jit_compile=True``), which drops assertions, the loss is NaN instead.
    """

    head = "GaussianMixtureHead"
    expects = "negated distances"
    bounds = "of zero or below"

    def __init__(
        self,
        alpha: float = 0.7,
        likelihood_weight: float = 0.0,
        reduction=tf.keras.losses.Reduction.AUTO,
        name: str = "gm_loss",
        fit_power: float = 8.0,
    ):
        super().__init__(reduction, name)
        self.alpha = _check_number("alpha", alpha)
        self.likelihood_weight = _check_number("likelihood_weight", likelihood_weight)
        self.fit_power = _check_number("fit_power", fit_power)

    def in_range(self, predictions):
        return tf.reduce_all(predictions <= 0.0)

    def logits_and_targets(self, predictions, labels):
        alpha = self.ramp * self.alpha * self.fit(predictions, labels)
        return predictions, (1.0 + alpha) * predictions

    def fit(self, predictions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return the share of the margin that a batch has earned, a scalar from 0 to 1.

        Args:
            predictions: float32 (batch, classes).
            labels: Integers (batch,) or a distribution over the classes (batch, classes).
        """
        if not self.fit_power:
            return tf.ones(())
        probabilities = tf.nn.softmax(predictions)
        if labels.shape.rank == 1:
            true = tf.gather(probabilities, labels, batch_dims=1)
        else:
            true = tf.reduce_sum(labels * probabilities, axis=1)
        total = tf.stop_gradient(tf.reduce_sum(true))
        count = tf.cast(tf.size(true), tf.float32)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            # Shares of a last batch differ in size, and one may have no image.
            total, count = replica.all_reduce(tf.distribute.ReduceOp.SUM, [total, count])
        return tf.math.divide_no_nan(total, count) ** self.fit_power

    def penalty(self, labels, predictions):
        if not self.likelihood_weight:
            return 0.0
        if labels.shape.rank == 1:
            labels = tf.one_hot(labels, tf.shape(predictions)[1])
        return -self.likelihood_weight * tf.reduce_sum(labels * predictions, axis=1)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "likelihood_weight": self.likelihood_weight,
            "fit_power": self.fit_power,
        }


class MarginWarmup(tf.keras.callbacks.Callback):
    """Ramps the margin of the model's losses linearly from 0 to its full value.

    The share in force follows the optimizer's step counter, so a run that is resumed from a
    checkpoint continues where it was, and one that was not resumed starts at 0. It is in force
    while a training step runs and never else: validation, ``evaluate``, a saved model and a later
    ``fit`` have the full margin, however this one ends. Callbacks that compare epochs should watch
    ``val_loss``, since ``loss`` grows with the margin.

    >>> model.fit(images, labels, epochs=30, callbacks=[dlqat_tf.MarginWarmup(epochs=5)])

    Args:
        epochs: Length of the ramp, may be a fraction; 0 means no ramp.
        steps_per_epoch: Optimizer steps an epoch; taken from ``fit`` where it knows the number.

    Raises:
        ValueError: ``epochs`` is negative or ``steps_per_epoch`` not above zero; at the start of
            training, no loss of the model has a margin, or the number of steps is not known.
    """

    def __init__(self, epochs: float, steps_per_epoch: int | None = None):
        super().__init__()
        self.epochs = _check_number("epochs", epochs)
        if steps_per_epoch is not None:
            _check_number("steps_per_epoch", steps_per_epoch, exclusive=True)
        self.steps_per_epoch = steps_per_epoch

    def on_train_begin(self, logs=None):
        if not self._ramps():
            raise ValueError(
                "MarginWarmup expected a model compiled with AMSLoss or GMLoss. "
                f"Received: loss={self.model.loss!r}."
            )
        if not (self.steps_per_epoch or self.params.get("steps")):
            raise ValueError(
                "MarginWarmup cannot tell how many steps an epoch has: pass steps_per_epoch."
            )

    def on_train_batch_begin(self, batch, logs=None):
        steps = self.epochs * (self.steps_per_epoch or self.params["steps"])
        done = float(self.model.optimizer.iterations.numpy())
        if done >= steps:
            return
        train_function = self.model.train_function

        # Around the step itself, since no callback is told of a step that raises.
        def at_this_share(iterator):
            self.model.train_function = train_function
            try:
                self._assign(done / steps)
                return train_function(iterator)
            finally:
                self._assign(1.0)

        self.model.train_function = at_this_share

    def _ramps(self) -> list[tf.Variable]:
        losses = tf.nest.flatten(self.model.loss)  # one, or a list or dict of one per output
        return [loss.ramp for loss in losses if isinstance(loss, _MarginLoss)]

    def _assign(self, share: float) -> None:
        for ramp in self._ramps():
            ramp.assign(share)
