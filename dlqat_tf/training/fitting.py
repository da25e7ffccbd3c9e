"""One stage of a run: its network compiled, trained and measured."""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path

import tensorflow as tf
from rich.console import Console

from dlqat_tf import methods
from dlqat_tf._host import write_whole
from dlqat_tf.distillation import distill
from dlqat_tf.losses import AMSLoss, GMLoss, MarginWarmup
from dlqat_tf.report import counted
from dlqat_tf.training import data as datasets
from dlqat_tf.training.batch_norm import reestimate
from dlqat_tf.training.callbacks import (
    Clock,
    KeepBest,
    StopWhenFolderIsLost,
    StopWhenNotFinite,
)
from dlqat_tf.training.checkpoints import Backup, Position, position
from dlqat_tf.training.distribution import current
from dlqat_tf.training.history import mend_history, read_history
from dlqat_tf.training.lock import check_held
from dlqat_tf.training.monitoring import MixtureMonitor, QuantizerMonitor
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.starting import Stage, training_images

REESTIMATED = "reestimated.json"  # in a stage's folder: loss and accuracy after re-estimation
_MONITORED_IMAGES = 256
_CLIPPED_IMAGES = 64  # of these: each has thousands of activations
_console = Console()


def fit(
    recipe: Recipe,
    images: datasets.ImageData,
    stage: Stage,
    model: tf.keras.Model,
    folder: Path,
    teacher: tf.keras.Model | None = None,
) -> None:
    """Train a stage from where its checkpoint is, or from the start, to its last epoch.

    Args:
        recipe: The settings of the run.
        images: To train and measure on.
        stage: The stage.
        model: Its network, which is trained in place.
        folder: For its history, checkpoints and TensorBoard logs.
        teacher: What it learns from beside the labels, or None.

    Raises:
        ValueError: The first batch is wrong, or a file in the folder is damaged.
        TrainingDiverged: The loss became NaN.
        dlqat_tf.training.lock.FolderLost: The output folder is gone, or another process's.
    """
    check_held(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = steps_of(recipe, images)
    student = model
    model = student if teacher is None else trainer_of(recipe, student, teacher)
    compile_model(recipe, stage, model, steps)
    done = position(folder / "backup", steps)
    if model.jit_compile:
        _check_first_batch(model, train_batches_of(recipe, images, done))
    history = folder / "history.csv"
    if current().is_chief:
        mend_history(history, done.epochs)
    current().any(False)  # nobody reads the history before it is mended
    backup = Backup(folder / "backup", steps, recipe.checkpoint_every)
    callbacks = [
        StopWhenNotFinite(folder / "backup", steps),
        Clock(backup),
        *(_records(folder, teacher is not None) if current().is_chief else ()),
        KeepBest(
            student,
            folder / "best.keras",
            max((row["val_accuracy"] for row in read_history(history)), default=-math.inf),
        ),
        # Last: an epoch counts as done when everything about it is on disk.
        backup,
    ]
    monitors = monitors_of(recipe, images, stage, student, folder / "tensorboard")
    callbacks[:0] = monitors
    if recipe.head != "linear":
        ramp = recipe.margin_warmup_epochs if stage.starts_random else 0.0
        callbacks.insert(0, MarginWarmup(ramp, steps))
    if stage.weight_bits not in (None, 32):
        callbacks[:0] = methods.get(recipe.method).callbacks(stage.epochs, steps)
    callbacks.insert(0, StopWhenFolderIsLost(folder))
    _console.print(
        f"[bold]{stage.name} stage[/bold]: {counted(stage.epochs, 'epoch')} of "
        f"{counted(steps, 'step')}, batch {recipe.batch_size}, peak learning rate "
        f"{recipe.peak_learning_rate(starts_random=stage.starts_random):.4g}"
        + (f", teacher {recipe.teacher}" if teacher is not None else "")
        + (f"; continuing after {done}" if any(done) else "")
    )
    test, test_steps = _test_data(recipe, images)
    try:
        model.fit(
            current().distribute(functools.partial(train_batches_of, recipe, images, done)),
            steps_per_epoch=steps,
            initial_epoch=done.epochs,
            epochs=stage.epochs,
            validation_data=test,
            validation_steps=test_steps,
            callbacks=callbacks,
            verbose=1 if sys.stdout.isatty() else 2,
        )
    finally:
        backup.release()
        for monitor in monitors:
            monitor.close()


def _check_first_batch(model: tf.keras.Model, batches: tf.data.Dataset) -> None:
    """Let the loss see one batch outside the compiled step, where its checks can speak."""
    images, labels = next(iter(batches))
    try:
        model.loss(labels, model(images, training=False))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"The first batch of training is wrong: {error.message}") from None


def _records(folder: Path, is_taught: bool) -> list[tf.keras.callbacks.Callback]:
    return [
        tf.keras.callbacks.CSVLogger(str(folder / "history.csv"), append=True),
        tf.keras.callbacks.TensorBoard(
            str(folder / "tensorboard"),
            # Of a network and its teacher no file says how to build it, as TensorBoard's needs.
            write_graph=not is_taught,
            profile_batch=0,
        ),
    ]


def monitors_of(
    recipe: Recipe,
    images: datasets.ImageData,
    stage: Stage,
    network: tf.keras.Model,
    folder: Path,
) -> list:
    """Return the callbacks that look at a stage: at quantizers only where it has some.

    None with several workers: to read a variable is then something that they do together.
    """
    if current().are_workers:
        return []
    rounds = not {stage.weight_bits, stage.activation_bits} <= {None, 32}
    wanted = [name for name in recipe.monitor if name != "quantizers" or rounds]
    if not wanted:
        return []
    some, labels = training_images(recipe, images, _MONITORED_IMAGES)
    make = {
        "quantizers": lambda: QuantizerMonitor(
            folder / "quantizers", some[:_CLIPPED_IMAGES], network
        ),
        "mixture": lambda: MixtureMonitor(
            folder / "mixture", some, labels, loss_of(recipe), network
        ),
    }
    return [make[name]() for name in wanted]


def trainer_of(recipe: Recipe, model: tf.keras.Model, teacher: tf.keras.Model) -> tf.keras.Model:
    """Return what trains a model on labels and its teacher."""
    return distill(
        model,
        teacher,
        weight=recipe.distillation_weight,
        temperature=recipe.distillation_temperature,
        cosine_scale=recipe.ams_scale,
    )


def compile_model(recipe: Recipe, stage: Stage, model: tf.keras.Model, steps: int) -> None:
    """Give a stage's network its optimizer, schedule, loss and metric; ``steps`` make an epoch."""
    total = steps * stage.epochs
    warmup = min(round(recipe.lr_warmup_epochs * steps), total - 1)
    peak = recipe.peak_learning_rate(starts_random=stage.starts_random)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        peak if warmup == 0 else 0.0,
        decay_steps=total - warmup,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )
    model.compile(
        tf.keras.optimizers.SGD(schedule, momentum=recipe.momentum, nesterov=recipe.momentum > 0),
        loss_of(recipe),
        metrics=["accuracy"],
        # XLA made this network 4 to 6 times slower on a CPU; with replicas it was not tried.
        jit_compile=bool(tf.config.list_physical_devices("GPU")) and current().count == 1,
    )
    model.optimizer.build(model.trainable_variables)  # so that a checkpoint finds its slots


def loss_of(recipe: Recipe) -> tf.keras.losses.Loss:
    """Return the loss of the recipe's head."""
    cross_entropy = (
        tf.keras.losses.CategoricalCrossentropy
        if _soft_labels(recipe)
        else tf.keras.losses.SparseCategoricalCrossentropy
    )
    losses = {
        "linear": lambda: cross_entropy(from_logits=True),
        "cosine": lambda: AMSLoss(recipe.ams_margin, recipe.ams_scale),
        "gml": lambda: GMLoss(
            recipe.gml_alpha, recipe.likelihood_weight, fit_power=recipe.gml_fit_power
        ),
    }
    return losses[recipe.head]()


def remeasure(
    recipe: Recipe,
    images: datasets.ImageData,
    stage: Stage,
    model: tf.keras.Model,
    folder: Path,
) -> None:
    """Measure batch norms anew, and note what that did to the accuracy."""
    count = math.ceil(recipe.reestimation_images / recipe.batch_size)
    batches = images.train_batches(recipe.batch_size, seed=recipe.seed, augment=recipe.augment)
    reestimate(model, batches.take(count))
    compile_model(recipe, stage, model, steps_of(recipe, images))
    loss, accuracy = evaluate(recipe, images, model)
    if current().is_chief:
        write_whole(folder / REESTIMATED, json.dumps({"val_loss": loss, "val_accuracy": accuracy}))


def evaluate(
    recipe: Recipe, images: datasets.ImageData, model: tf.keras.Model
) -> tuple[float, float]:
    """Return the loss and the accuracy of a compiled model."""
    test, steps = _test_data(recipe, images)
    return model.evaluate(test, steps=steps, verbose=0)


def steps_of(recipe: Recipe, images: datasets.ImageData) -> int:
    """Return the steps of an epoch."""
    whole = images.steps_per_epoch(recipe.batch_size)
    return min(whole, (recipe.images_per_epoch or images.train_count) // recipe.batch_size)


def train_batches_of(
    recipe: Recipe,
    images: datasets.ImageData,
    done: Position,
    shard: datasets.Shard = datasets.WHOLE,
) -> tf.data.Dataset:
    """Return the batches of a stage from a position on: their order depends on the step alone."""
    first = done.epochs * steps_of(recipe, images) + done.steps
    first_epoch, skipped = divmod(first, images.steps_per_epoch(recipe.batch_size))
    return images.train_batches(
        recipe.batch_size,
        seed=recipe.seed,
        first_epoch=first_epoch,
        augment=recipe.augment,
        shard=shard,
    ).skip(skipped)


def _test_data(recipe: Recipe, images: datasets.ImageData) -> tuple[tf.data.Dataset, int | None]:
    """Return the test set once, and its steps where Keras has to be told."""
    workers = current()
    size = workers.test_batch_size(recipe.batch_size, images.test_count)

    def batches(shard):
        test = images.test_batches(size, shard)
        if _soft_labels(recipe):
            test = test.map(lambda image, label: (image, tf.one_hot(label, images.num_classes)))
        # Of a distributed dataset Keras goes on with the iterator that it has.
        return test if workers.count == 1 else test.repeat()

    steps = None if workers.count == 1 else -(-images.test_count // size)
    return workers.distribute(batches), steps


def _soft_labels(recipe: Recipe) -> bool:
    return bool({"cutmix", "mixup"} & set(recipe.augment))
