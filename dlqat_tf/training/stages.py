"""From a recipe to a trained network: two stages, checkpoints and resume."""

from __future__ import annotations

import contextlib
import math
import zipfile
from pathlib import Path

import tensorflow as tf
from rich.console import Console

from dlqat_tf._host import check_folder, naming, read_object, write_whole
from dlqat_tf.levels import activation_ranges, rounded_kernels
from dlqat_tf.loading import ModelFileError, load_model
from dlqat_tf.report import counted
from dlqat_tf.training import data as datasets
from dlqat_tf.training.callbacks import TrainingDiverged, save
from dlqat_tf.training.checkpoints import Position, position
from dlqat_tf.training.distribution import current, replicas
from dlqat_tf.training.fitting import (
    REESTIMATED,
    compile_model,
    evaluate,
    fit,
    remeasure,
    steps_of,
    train_batches_of,
    trainer_of,
)
from dlqat_tf.training.folder import check_output, check_shared, check_workers, claim_output
from dlqat_tf.training.history import read_history
from dlqat_tf.training.lock import locked
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import TrainingResult, draw_curves, environment, summarise
from dlqat_tf.training.starting import (
    build_model,
    prepare,
    set_ranges,
    stages_of,
    start_from,
)

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
        ValueError: It is no recipe, a setting is out of range or asks for devices that there are
            not, the output folder holds another run, or a file in it is damaged.
        dlqat_tf.training.lock.FolderInUse: Another process trains in the output folder.
        dlqat_tf.training.lock.FolderLost: The output folder was removed or renamed in training, or
            another process took it over.
        dlqat_tf.training.data.DataError: The dataset cannot be read.
        TrainingDiverged: The loss became NaN; the last good checkpoint is kept. Or the loss on test
            images is no finite number when a stage ends.
        dlqat_tf.training.checkpoints.CheckpointFailed: The folder is full or gone; the last good
            checkpoint is kept.
        dlqat_tf.training.distribution.WorkerLost: Another worker of the job ended.
        dlqat_tf._script.Stopped: After Ctrl-C or SIGTERM, when a checkpoint is written.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"Expected a Recipe. Received: {recipe!r}: give Recipe(...), or what "
            "read_recipe(folder) returns."
        )
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
            if workers.is_chief:
                check_folder(recipe.output)
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
    compile_model(recipe, stage, model, steps_of(recipe, images))
    train_batches_of(recipe, images, Position(0, 0))
    if recipe.float_stage is not None:
        source = _finished(recipe.float_stage / "last.keras")
        if rounded := [*rounded_kernels(source), *activation_ranges(source)]:
            raise ValueError(
                f"Expected float_stage to hold a float network. Received: {recipe.float_stage}, "
                f"whose layer {rounded[0]!r} rounds: give the float/ folder of a run."
            )
        start_from(source, model)
    if recipe.teacher is not None:
        trainer_of(recipe, model, _teacher(recipe, model))


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
            fit(recipe, images, stage, model, folder, teacher)
            if recipe.reestimation_images and stage is stages[-1]:
                remeasure(recipe, images, stage, model, folder)
            save(model, finished)
        epochs = _epochs_of(folder) if given else stage.epochs
        rows = _history(recipe, images, stage, model, folder, epochs)
        if recipe.reestimation_images and stage is stages[-1]:
            moving = {"moving_averages_accuracy": rows[-1]["val_accuracy"]}
            rows[-1] |= moving | _reestimated(folder / REESTIMATED, finished)
        if not math.isfinite(rows[-1]["val_loss"]):  # steps see the loss before their update
            raise TrainingDiverged(
                f"The {stage.name} stage ended with a loss of {rows[-1]['val_loss']} on images "
                f"that it did not train on, in {folder}. Try a lower --learning-rate, with a new "
                "--output."
            )
        histories[stage.name] = rows
    save(model, recipe.output / "model.keras")
    if not current().is_chief:
        return None
    best = recipe.output / stages[-1].name / "best.keras"
    if best.is_file() and _is_whole(best):
        write_whole(recipe.output / "best.keras", best.read_bytes())
    elif best.is_file():
        _console.print(f"[yellow]{best} is damaged, and is not copied to {recipe.output}.[/yellow]")
    draw_curves(
        histories,
        recipe.output / "curves.png",
        measured_on="held out" if recipe.validation_size else "test",
    )
    result = summarise(recipe, histories, surroundings)
    write_whole(recipe.output / "result.json", result.to_json() + "\n")
    return result


def _reestimated(file: Path, finished: Path) -> dict:
    """Return loss and accuracy of a finished stage after its batch norms were measured anew."""
    advice = f"put the right one back, or delete {finished} too, to measure anew"
    if not file.is_file():
        raise ValueError(f"{file} is gone: {advice}.")
    found = read_object(file, advice, "val_loss", "val_accuracy")
    loss, accuracy = found["val_loss"], found["val_accuracy"]
    if not (isinstance(loss, float | int) and type(accuracy) is float and 0 <= accuracy <= 1):
        raise ValueError(f"{file} is damaged: {advice}.")
    return found


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


def _is_whole(archive: Path) -> bool:
    """Return whether all parts of a .keras file are those that were written."""
    try:
        with zipfile.ZipFile(archive) as parts:
            return parts.testzip() is None
    except zipfile.BadZipFile:
        return False


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
            f"[yellow]{file} has lost {len(lost)} of {counted(epochs, 'epoch')}: the result "
            "names no best accuracy and no time.[/yellow]"
        )
    if lost and lost[-1] == epochs - 1:
        compile_model(recipe, stage, model, steps_of(recipe, images))
        loss, accuracy = evaluate(recipe, images, model)
        rows.append(
            dict.fromkeys(("loss", "accuracy", "seconds"), math.nan)
            | {"epoch": epochs - 1.0, "val_loss": loss, "val_accuracy": accuracy}
        )
    return rows


def _teacher(recipe: Recipe, trained: tf.keras.Model) -> tf.keras.Model:
    """Return the teacher's model, given that of the float stage."""
    return load_model(recipe.teacher) if isinstance(recipe.teacher, Path) else trained
