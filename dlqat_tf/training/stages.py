"""From a recipe to a trained network: two stages, checkpoints and resume."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
from pathlib import Path

import tensorflow as tf
from rich.console import Console

from dlqat_tf import methods
from dlqat_tf._host import naming, read_object, write_whole
from dlqat_tf.distillation import distill
from dlqat_tf.levels import activation_ranges, rounded_kernels
from dlqat_tf.loading import ModelFileError, load_model
from dlqat_tf.losses import AMSLoss, GMLoss, MarginWarmup
from dlqat_tf.training import data as datasets
from dlqat_tf.training.batch_norm import reestimate
from dlqat_tf.training.callbacks import Clock, KeepBest, StopWhenNotFinite, save
from dlqat_tf.training.checkpoints import Backup, Position, position
from dlqat_tf.training.distribution import current, replicas
from dlqat_tf.training.folder import check_output, check_shared, check_workers, claim_output
from dlqat_tf.training.history import mend_history, read_history
from dlqat_tf.training.lock import locked
from dlqat_tf.training.monitoring import MixtureMonitor, QuantizerMonitor
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import TrainingResult, draw_curves, environment, summarise
from dlqat_tf.training.starting import (
    build_model,
    prepare,
    set_ranges,
    stages_of,
    start_from,
    training_images,
)

REESTIMATED = "reestimated.json"  # in a stage's folder: loss and accuracy after re-estimation
_MONITORED_IMAGES = 256
_CLIPPED_IMAGES = 64  # of these: each has thousands of activations
_console = Console()


def run(recipe: Recipe) -> TrainingResult | None:
    """Train a recipe, or continue it where it was interrupted.

    The output folder receives ``model.keras`` (last epoch), ``best.keras``, ``curves.png``,
    ``result.json``, ``recipe.json``, and a folder per stage with its history, TensorBoard logs and
    checkpoints. Started again after an interruption, the run ends with the weights that it would
    have had without, because order and augmentation depend on seed and step alone.

    Args:
        recipe: The settings.

    Returns:
        Accuracies, time and environment of the finished run; None where another worker, the first
        one, writes them.

    Raises:
        ValueError: A setting is out of range or asks for devices that there are not, the output
            folder holds another run, or a file in it is damaged.
        dlqat_tf.training.lock.FolderInUse: Another process trains in the output folder.
        dlqat_tf.training.data.DataError: The dataset cannot be read.
        TrainingDiverged: The loss became NaN; the last good checkpoint is kept.
        dlqat_tf.training.checkpoints.CheckpointFailed: The folder is full or gone; the last good
            checkpoint is kept.
        dlqat_tf.training.distribution.WorkerLost: Another worker of the job ended.
        dlqat_tf._script.Stopped: After Ctrl-C or SIGTERM, when a checkpoint is written.
    """
    previous_policy = tf.keras.mixed_precision.global_policy()
    with replicas(recipe.strategy) as workers:  # first: workers cannot be joined any later
        recipe.validate()
        workers.check(recipe.batch_size)
        if recipe.deterministic:
            tf.config.experimental.enable_op_determinism()  # for the rest of the process
            # What keras-cv's policies draw from, else in a state that no seed decides.
            tf.random.set_global_generator(tf.random.Generator.from_seed(recipe.seed))
        check_output(recipe)  # before the lock makes the folder
        check_workers(recipe, workers)
        surroundings = environment()
        tf.keras.mixed_precision.set_global_policy(recipe.precision)
        try:
            with locked(recipe.output) if workers.is_chief else contextlib.nullcontext():
                if workers.is_chief:
                    check_output(recipe)
                images = datasets.load(
                    recipe.dataset,
                    data_dir=recipe.data_dir,
                    image_size=recipe.image_size,
                    train_size=recipe.train_size,
                    validation_size=recipe.validation_size,
                    seed=recipe.seed,
                    cache=recipe.cache,
                )
                _rehearse(recipe, images)
                if (recipe.images_per_epoch or 0) > images.train_count:
                    _console.print(
                        f"[yellow]images_per_epoch {recipe.images_per_epoch:,} is above the "
                        f"{images.train_count:,} training images: an epoch is all of them.[/yellow]"
                    )
                if workers.is_chief:
                    claim_output(recipe)
                workers.any(False)  # nobody reads the folder before it is claimed
                check_shared(recipe, workers)
                with naming(recipe.output), images.readable():
                    return _run_stages(recipe, images, surroundings)
        finally:
            tf.keras.mixed_precision.set_global_policy(previous_policy)


def _rehearse(recipe: Recipe, images: datasets.ImageData) -> None:
    """Do all that may refuse a setting, before anything is written or deleted."""
    if images.num_classes < 2:
        raise ValueError(
            "Expected images of at least two classes to train on. Received: "
            f"{', '.join(images.class_names)} alone: add a class folder."
        )
    stage = stages_of(recipe)[-1]
    model = build_model(recipe, images, stage)
    _compile(recipe, stage, model, _steps(recipe, images))
    _train_batches(recipe, images, Position(0, 0))
    if recipe.float_stage is not None:
        source = _finished(recipe.float_stage / "last.keras")
        if rounded := [*rounded_kernels(source), *activation_ranges(source)]:
            raise ValueError(
                f"Expected float_stage to hold a float network. Received: {recipe.float_stage}, "
                f"whose layer {rounded[0]!r} rounds: give the float/ folder of a run."
            )
        start_from(source, model)
    if recipe.teacher is not None:
        _trainer(recipe, model, _teacher(recipe, model))


def _run_stages(
    recipe: Recipe, images: datasets.ImageData, surroundings: dict
) -> TrainingResult | None:
    stages = stages_of(recipe)
    histories = {}
    model = None
    for stage in stages:
        folder, given = recipe.output / stage.name, False
        if stage.name == "float" and recipe.float_stage is not None:
            folder, given = recipe.float_stage, True
        finished = folder / "last.keras"
        if finished.is_file():
            _console.print(f"[bold]{stage.name} stage[/bold] is finished: {finished}")
            model = _finished(finished)
        else:
            previous = model
            model = build_model(recipe, images, stage)
            if stage.activation_bits not in (None, 32):
                set_ranges(recipe, images, model, previous)
            if previous is not None:
                start_from(previous, model)
                prepare(recipe, images, stage, model)
            distils = recipe.teacher is not None and stage is stages[-1]
            teacher = _teacher(recipe, previous) if distils else None
            _fit(recipe, images, stage, model, folder, teacher)
            if recipe.reestimation_images and stage is stages[-1]:
                _reestimate(recipe, images, stage, model, folder)
            save(model, finished)
        epochs = _epochs_of(folder) if given else stage.epochs
        rows = _history(recipe, images, stage, model, folder, epochs)
        if recipe.reestimation_images and stage is stages[-1]:
            moving = {"moving_averages_accuracy": rows[-1]["val_accuracy"]}
            rows[-1] |= moving | read_object(
                folder / REESTIMATED,
                f"put the right one back, or delete {finished} too, to measure anew",
                "val_loss",
                "val_accuracy",
            )
        histories[stage.name] = rows
    save(model, recipe.output / "model.keras")
    if not current().is_chief:
        return None
    best = recipe.output / stages[-1].name / "best.keras"
    if best.is_file():
        write_whole(recipe.output / "best.keras", best.read_bytes())
    draw_curves(
        histories,
        recipe.output / "curves.png",
        measured_on="held out" if recipe.validation_size else "test",
    )
    result = summarise(recipe, histories, surroundings)
    write_whole(recipe.output / "result.json", result.to_json() + "\n")
    return result


def _finished(path: Path) -> tf.keras.Model:
    try:
        return load_model(path)
    except ModelFileError as error:
        raise ValueError(
            f"{error} Delete it: the stage's checkpoint in {path.parent / 'backup'} has the same "
            "weights, and its run goes on from there."
        ) from None


def _epochs_of(folder: Path) -> int | None:
    """Return how many epochs a stage of another run had, None where its checkpoint is gone."""
    with contextlib.suppress(ValueError):
        return position(folder / "backup").epochs or None
    return None


def _history(recipe, images, stage, model, folder: Path, epochs: int | None) -> list[dict]:
    """Return the rows of a finished stage, the last epoch's measured anew where it is lost."""
    file = folder / "history.csv"
    rows = read_history(file)
    epochs = epochs or len(rows)
    if epochs == 0:
        raise ValueError(f"{file} has no whole row: put the right one back.")
    rows = [row for row in rows if row["epoch"] < epochs]
    lost = sorted({*range(epochs)} - {int(row["epoch"]) for row in rows})
    if lost:
        _console.print(
            f"[yellow]{file} has lost {len(lost)} of {epochs} epochs: the result names no best "
            "accuracy and no time.[/yellow]"
        )
    if lost and lost[-1] == epochs - 1:
        _compile(recipe, stage, model, _steps(recipe, images))
        loss, accuracy = _evaluate(recipe, images, model)
        rows.append(
            dict.fromkeys(("loss", "accuracy", "seconds"), math.nan)
            | {"epoch": epochs - 1.0, "val_loss": loss, "val_accuracy": accuracy}
        )
    return rows


def _monitors(recipe: Recipe, images, stage, network: tf.keras.Model, folder: Path) -> list:
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
        "mixture": lambda: MixtureMonitor(folder / "mixture", some, labels, _loss(recipe), network),
    }
    return [make[name]() for name in wanted]


def _steps(recipe: Recipe, images: datasets.ImageData) -> int:
    """Return the steps of an epoch."""
    whole = images.steps_per_epoch(recipe.batch_size)
    return min(whole, (recipe.images_per_epoch or images.train_count) // recipe.batch_size)


def _soft_labels(recipe: Recipe) -> bool:
    return bool({"cutmix", "mixup"} & set(recipe.augment))


def _train_batches(
    recipe: Recipe,
    images: datasets.ImageData,
    done: Position,
    shard: datasets.Shard = datasets.WHOLE,
) -> tf.data.Dataset:
    # The order of images is a function of the step, so the stream can begin at any.
    first = done.epochs * _steps(recipe, images) + done.steps
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


def _evaluate(recipe: Recipe, images: datasets.ImageData, model) -> tuple[float, float]:
    """Return the loss and the accuracy of a compiled model."""
    test, steps = _test_data(recipe, images)
    return model.evaluate(test, steps=steps, verbose=0)


def _teacher(recipe: Recipe, trained: tf.keras.Model) -> tf.keras.Model:
    """Return the teacher's model, given that of the float stage."""
    return load_model(recipe.teacher) if isinstance(recipe.teacher, Path) else trained


def _trainer(recipe: Recipe, model: tf.keras.Model, teacher: tf.keras.Model) -> tf.keras.Model:
    """Return what trains a model on labels and its teacher."""
    return distill(
        model,
        teacher,
        weight=recipe.distillation_weight,
        temperature=recipe.distillation_temperature,
        cosine_scale=recipe.ams_scale,
    )


def _fit(recipe, images, stage, model, folder: Path, teacher=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    steps = _steps(recipe, images)
    student = model
    model = student if teacher is None else _trainer(recipe, student, teacher)
    _compile(recipe, stage, model, steps)
    done = position(folder / "backup", steps)
    if model.jit_compile:
        _check_first_batch(model, _train_batches(recipe, images, done))
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
    monitors = _monitors(recipe, images, stage, student, folder / "tensorboard")
    callbacks[:0] = monitors
    if recipe.head != "linear":
        ramp = recipe.margin_warmup_epochs if stage.starts_random else 0.0
        callbacks.insert(0, MarginWarmup(ramp, steps))
    if stage.weight_bits not in (None, 32):
        callbacks[:0] = methods.get(recipe.method).callbacks(stage.epochs, steps)
    _console.print(
        f"[bold]{stage.name} stage[/bold]: {stage.epochs} epochs of {steps} steps, batch "
        f"{recipe.batch_size}, peak learning rate "
        f"{recipe.peak_learning_rate(starts_random=stage.starts_random):.4g}"
        + (f", teacher {recipe.teacher}" if teacher is not None else "")
        + (f"; continuing after {done}" if any(done) else "")
    )
    test, test_steps = _test_data(recipe, images)
    try:
        model.fit(
            current().distribute(functools.partial(_train_batches, recipe, images, done)),
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


def _reestimate(recipe, images, stage, model, folder: Path) -> None:
    """Measure batch norms anew, and note what that did to the accuracy."""
    count = math.ceil(recipe.reestimation_images / recipe.batch_size)
    batches = images.train_batches(recipe.batch_size, seed=recipe.seed, augment=recipe.augment)
    reestimate(model, batches.take(count))
    _compile(recipe, stage, model, _steps(recipe, images))
    loss, accuracy = _evaluate(recipe, images, model)
    if current().is_chief:
        write_whole(folder / REESTIMATED, json.dumps({"val_loss": loss, "val_accuracy": accuracy}))


def _compile(recipe, stage, model, steps: int) -> None:
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
        _loss(recipe),
        metrics=["accuracy"],
        # XLA made this network 4 to 6 times slower on a CPU; with replicas it was not tried.
        jit_compile=bool(tf.config.list_physical_devices("GPU")) and current().count == 1,
    )
    model.optimizer.build(model.trainable_variables)  # so that a checkpoint finds its slots


def _loss(recipe: Recipe) -> tf.keras.losses.Loss:
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


def _check_first_batch(model: tf.keras.Model, batches: tf.data.Dataset) -> None:
    """Let the loss see one batch outside the compiled step, where its checks can speak."""
    images, labels = next(iter(batches))
    try:
        model.loss(labels, model(images, training=False))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"The first batch of training is wrong: {error.message}") from None
