"""Tells quantizers how far training is."""

from __future__ import annotations

from numbers import Real

import tensorflow as tf

from dlqat_tf.quantizers.wrapped import rounded_kernels_of


def depends_on_progress(quantizer) -> bool:
    """Return whether a kernel's quantizer follows the progress of training, as none of 32 bits."""
    return hasattr(quantizer, "advance") and quantizer.precision != 32


class QuantizerProgress(tf.keras.callbacks.Callback):
    """Tells the quantizers that depend on it what share of training is done, step by step.

    The share follows the optimizer's step counter, so a run that is resumed from a checkpoint
    continues where it was. Where a quantizer changes weights by it, it does so before a step, from
    the weights of that moment, and at the end of training. Quantizers stay where they are between
    the steps of one execution (``compile(steps_per_execution=...)``), and those of frozen layers
    always.

    >>> model.fit(images, labels, epochs=30, callbacks=[dlqat_tf.QuantizerProgress(epochs=30)])

    Args:
        epochs: Length of the training in epochs, above zero, may be a fraction.
        steps_per_epoch: Optimizer steps an epoch; taken from ``fit`` where it knows the number.

    Raises:
        ValueError: ``epochs`` or ``steps_per_epoch`` is not above zero; at the start of training,
            no quantizer of the model depends on it, as none of 32 bits does, the number of steps is
            not known, or one execution has more steps than a phase of a quantizer.
    """

    def __init__(self, epochs: float, steps_per_epoch: int | None = None):
        super().__init__()
        for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch)):
            if name == "steps_per_epoch" and value is None:
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < 1e18:
                raise ValueError(f"Expected {name} to be a number above zero. Received: {value!r}.")
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self._followers: list[tuple] = []

    def on_train_begin(self, logs=None):
        followers: list[tuple] = [
            (quantizer, kernel)
            for layer in self.model._flatten_layers()
            for kernel, quantizer in rounded_kernels_of(layer)
            if depends_on_progress(quantizer)
        ]
        self._followers = [each for each in followers if each[0].trainable]
        if not followers:
            raise ValueError(
                "QuantizerProgress expected a model with a quantizer that depends on the progress "
                "of training, such as IRNetWeights or INQWeights of less than 32 bits. Received: a "
                "model without one."
            )
        if not (self.steps_per_epoch or self.params.get("steps")):
            raise ValueError(
                "QuantizerProgress cannot tell how many steps an epoch has: pass steps_per_epoch."
            )
        if self._followers:
            self._check_executions()

    def on_train_batch_begin(self, batch, logs=None):
        self._advance(self._share())

    def _check_executions(self) -> None:
        """Refuse executions of so many steps that weights freeze two phases at a time."""
        phases = max(getattr(quantizer, "phases", 1) for quantizer, _ in self._followers)
        steps = getattr(self.model, "_steps_per_execution", None)
        together = 1 if steps is None else int(steps)
        longest = max(int(self._steps() / phases), 1)
        tuned = getattr(self.model, "autotune_steps_per_execution", False) and phases > 1
        if tuned or (phases > 1 and together > longest):
            raise ValueError(
                f"QuantizerProgress expected steps_per_execution of at most {longest}, for each of "
                f"{phases} phases of training to begin between two executions. Received: "
                f"steps_per_execution={'auto' if tuned else together}: compile the model with a "
                "smaller one, or train longer."
            )

    def on_train_end(self, logs=None):
        if self._share() == 1.0:  # the last step may have been before the last phase
            self._advance(1.0)

    def _steps(self) -> float:
        return self.epochs * (self.steps_per_epoch or self.params["steps"])

    def _share(self) -> float:
        return min(float(self.model.optimizer.iterations.numpy()) / self._steps(), 1.0)

    def _advance(self, share: float) -> None:
        for quantizer, kernel in self._followers:
            quantizer.advance(share, kernel)
