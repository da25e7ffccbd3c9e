"""From a recipe to a trained network: two stages, checkpoints, resume, and a result to cite."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlqat_tf import data as datasets
from dlqat_tf._host import cpu_name, write_whole
from dlqat_tf.losses import AMSLoss, GMLoss, MarginWarmup
from dlqat_tf.models import resnet18
from dlqat_tf.quantizers import ActivationQuantizer
from dlqat_tf.quantizers.calibration import calibrate

_CALIBRATION_IMAGES = 512
_VERSIONS = ("tensorflow", "tf_keras", "larq", "numpy", "keras-cv", "tensorflow-datasets")
_console = Console()


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the message names the last good checkpoint."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run; a plain value that a grid can vary."""

    dataset: Literal["digits", "cifar10", "cifar100", "imagenet2012", "folder"] = "cifar100"
    """Where the images come from; "folder" is any image folder with train/ and val/."""
    data_dir: Path | None = None
    """Folder of the dataset; for tensorflow-datasets its data_dir."""
    image_size: int | None = None
    """Height and width in pixels, for imagenet2012 and folder (224 by default)."""
    train_size: int | None = None
    """Train on a stratified subset of this many images; all by default."""
    images_per_epoch: int | None = None
    """Call it an epoch after this many images; all of them by default. The order goes on."""
    augment: tuple[Literal["crop", "flip", "randaugment", "cutmix", "mixup"], ...] = (
        "crop",
        "flip",
    )
    """Training augmentations."""

    head: Literal["linear", "cosine", "gml"] = "gml"
    """Classifier and its loss: linear with cross-entropy, cosine with AMS, gml with GML."""
    weight_bits: int | None = 1
    """Bits of the hidden weights, 1 to 8; 32 is clamped float, None plain float."""
    activation_bits: int | None = 2
    """Bits of the hidden activations, 1 to 8; 32 or None is a ReLU."""
    residual_bits: int | None = 8
    """Bits of both inputs of a residual add, which int8 kernels need; None adds in float."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """3x3 convolution, or 7x7 with stride 2 and max-pooling."""
    width: int = 64
    """Channels of the first stage."""
    final_gain: float = 1.0
    """Initial batch-norm gain of the last stage's branch ends."""

    gml_alpha: float = 0.7
    """GML's margin factor."""
    likelihood_weight: float = 0.0
    """GML's likelihood term."""
    ams_margin: float = 0.35
    """AMS's margin, in cosine."""
    ams_scale: float = 30.0
    """AMS's scale of the cosines."""
    margin_warmup_epochs: float = 0.0
    """Epochs over which the margin grows from 0, in each stage that starts from random weights."""

    stages: Literal[1, 2] = 2
    """2: train clamped float weights first, then quantize; 1: quantized from scratch."""
    float_stage: Path | None = None
    """Start from this finished float stage, the float/ folder of a run; by default train one."""
    float_epochs: int = 150
    """Epochs of the float stage."""
    epochs: int = 150
    """Epochs of the quantized stage."""
    batch_size: int = 768
    """Images per optimizer step."""
    learning_rate: float = 0.2
    """Peak learning rate for a batch of reference_batch; scaled linearly with batch_size."""
    reference_batch: int = 768
    """Batch size that learning_rate is meant for."""
    quantized_learning_rate: float | None = None
    """Peak learning rate of a quantized stage that follows a float one; by default the same."""
    lr_warmup_epochs: float = 1.0
    """Epochs of linear learning-rate warm-up; then cosine to zero, per step."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 4e-5
    """Coefficient of w in the gradient, for convolution and head kernels only."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras policy; quantizers, heads and losses stay in float32."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and subset."""

    budget: Literal["paper", "short", "smoke"] = "paper"
    """Start from the paper's settings, from about an hour's, or from a minute's on two cores."""
    output: Path = Path("runs/run")
    """Folder of the run; the same command continues what it finds there."""
    restart: bool = False
    """Delete what is in the output folder instead of continuing."""

    def peak_learning_rate(self, *, starts_random: bool = True) -> float:
        """Return the learning rate after warm-up, scaled to this recipe's batch size.

        Args:
            starts_random: Whether the stage starts from random weights, not from the float stage.
        """
        rate = self.learning_rate
        if not starts_random and self.quantized_learning_rate is not None:
            rate = self.quantized_learning_rate
        return rate * self.batch_size / self.reference_batch

    @property
    def is_quantized(self) -> bool:
        """Whether the last stage rounds anything."""
        return not {self.weight_bits, self.activation_bits} <= {None, 32}

    def validate(self) -> None:
        """Raise ValueError for a value that would fail only after the long work has begun."""
        if self.images_per_epoch is not None and self.images_per_epoch < self.batch_size:
            raise ValueError(
                f"Expected images_per_epoch of at least one batch ({self.batch_size}). "
                f"Received: {self.images_per_epoch}."
            )
        for name in ("float_epochs", "epochs", "batch_size", "reference_batch", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1. Received: {getattr(self, name)}.")
        for name in ("learning_rate", "momentum", "weight_decay", "lr_warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"Expected {name} to be finite and not negative. "
                    f"Received: {getattr(self, name)}."
                )
        if self.quantized_learning_rate is not None and not (
            0 <= self.quantized_learning_rate < math.inf
        ):
            raise ValueError(
                "Expected quantized_learning_rate to be finite and not negative. "
                f"Received: {self.quantized_learning_rate}."
            )
        if self.float_stage is not None:
            if self.stages == 1 or not self.is_quantized:
                raise ValueError(
                    "Expected float_stage only where a quantized stage follows it (stages=2). "
                    f"Received: stages={self.stages}, weight_bits={self.weight_bits}, "
                    f"activation_bits={self.activation_bits}."
                )
            files = (self.float_stage / name for name in ("last.keras", "history.csv"))
            if not all(file.is_file() for file in files):
                raise ValueError(
                    "Expected float_stage to be the float/ folder of a run, with last.keras and "
                    f"history.csv in it. Received: {self.float_stage}."
                )


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run from its folder.

    Raises:
        ValueError: The folder holds no recipe of this version.
    """
    file = run / "recipe.json"
    if not file.is_file():
        raise ValueError(f"Expected the folder of a run, found no {file}.")
    values = json.loads(file.read_text())
    for name in ("data_dir", "float_stage", "output"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    try:
        return Recipe(**values | {"augment": tuple(values["augment"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no recipe of this version: {error}.") from None


@dataclass(frozen=True)
class TrainingResult:
    """What a run ended with; also in ``result.json``.

    Attributes:
        accuracy: Test top-1 after the last epoch, 0 to 1: the headline.
        best_accuracy: Best test top-1 of any epoch of the last stage; selected on the test set.
        float_accuracy: Test top-1 after the last epoch of the float stage, None without one.
        stages: Per stage: name, epochs, final and best accuracy, seconds.
        recipe: The recipe, as plain values.
        seconds: Training and evaluation time of all stages, also of interrupted runs.
        environment: Versions, commit, device and command.
    """

    accuracy: float
    best_accuracy: float
    float_accuracy: float | None
    stages: list[dict]
    recipe: dict
    seconds: float
    environment: dict

    def to_json(self) -> str:
        """Return the result as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def run(recipe: Recipe) -> TrainingResult:
    """Train a recipe, or continue it where it was interrupted.

    The output folder receives ``model.keras`` (last epoch), ``best.keras``, ``curves.png``,
    ``result.json``, ``recipe.json``, and a folder per stage with its history, TensorBoard logs and
    checkpoints. Started again after an interruption, the run ends with the weights that it would
    have had without, because order and augmentation depend on seed and step alone.

    Args:
        recipe: The settings.

    Returns:
        Accuracies, time and environment of the finished run.

    Raises:
        ValueError: A setting is out of range, or the output folder holds another run.
        dlqat_tf.data.DataError: The dataset cannot be read.
        TrainingDiverged: The loss became NaN; the last good checkpoint is kept.
    """
    recipe.validate()
    images = datasets.load(
        recipe.dataset,
        data_dir=recipe.data_dir,
        image_size=recipe.image_size,
        train_size=recipe.train_size,
        seed=recipe.seed,
    )
    images.steps_per_epoch(recipe.batch_size)  # a batch larger than the dataset fails here
    previous_policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(recipe.precision)
    try:
        final = _stages(recipe)[-1]
        build_model(recipe, images, final)  # widths and heads that do not exist fail here
        _claim_output(recipe)
        return _run_stages(recipe, images)
    finally:
        tf.keras.mixed_precision.set_global_policy(previous_policy)


@dataclass(frozen=True)
class _Stage:
    name: str
    weight_bits: int | None
    activation_bits: int | None
    residual_bits: int | None
    epochs: int
    starts_random: bool


def _stages(recipe: Recipe) -> list[_Stage]:
    final = _Stage(
        "quantized" if recipe.is_quantized else "float",
        recipe.weight_bits,
        recipe.activation_bits,
        recipe.residual_bits,
        recipe.epochs if recipe.is_quantized else recipe.float_epochs,
        starts_random=True,
    )
    if recipe.stages == 1 or not recipe.is_quantized:
        return [final]
    return [
        _float_twin(recipe, recipe.float_epochs),
        dataclasses.replace(final, starts_random=False),
    ]


def _float_twin(recipe: Recipe, epochs: int) -> _Stage:
    return _Stage("float", 32, 32, recipe.residual_bits and 32, epochs, starts_random=True)


def build_model(recipe: Recipe, images: datasets.ImageData, stage: _Stage) -> tf.keras.Model:
    """Build the network of one stage, not compiled."""
    tf.keras.utils.set_random_seed(recipe.seed)
    decay = recipe.weight_decay
    return resnet18(
        images.num_classes,
        images.image_shape,
        stage.weight_bits,
        stage.activation_bits,
        recipe.head,
        recipe.stem,
        recipe.width,
        stage.residual_bits,
        final_gain=recipe.final_gain,
        # Keras adds the penalty to the loss: half of the coefficient gives decay * w.
        kernel_regularizer=tf.keras.regularizers.L2(decay / 2) if decay else None,
    )


def copy_weights(source: tf.keras.Model, target: tf.keras.Model) -> list[str]:
    """Copy weights between layers of equal name, for example from the float stage.

    Args:
        source: Network to read.
        target: Network to change.

    Returns:
        Names of the target's weighted layers that kept their own weights, because the source has
        no such layer or its weights have other shapes (a quantizer's range has no float twin).
    """
    sources = {layer.name: layer.get_weights() for layer in source.layers}
    kept = []
    for layer in target.layers:
        weights = sources.get(layer.name)
        shapes = [weight.shape for weight in layer.get_weights()]
        if shapes and (weights is None or [weight.shape for weight in weights] != shapes):
            kept.append(layer.name)
        elif shapes:
            layer.set_weights(weights)
    return kept


def _run_stages(recipe: Recipe, images: datasets.ImageData) -> TrainingResult:
    stages = _stages(recipe)
    histories = {}
    model = None
    for stage in stages:
        folder = recipe.output / stage.name
        if stage.name == "float" and recipe.float_stage is not None:
            folder = recipe.float_stage
        finished = folder / "last.keras"
        if finished.is_file():
            _console.print(f"[bold]{stage.name} stage[/bold] is finished: {finished}")
            model = tf.keras.models.load_model(finished)
        else:
            previous = model
            model = build_model(recipe, images, stage)
            if stage.activation_bits not in (None, 32):
                _set_ranges(recipe, images, model, previous)
            if previous is not None:
                _start_from(previous, model)
            _fit(recipe, images, stage, model, folder)
            _save(model, finished)
        histories[stage.name] = _read_history(folder / "history.csv")
    _save(model, recipe.output / "model.keras")
    best = recipe.output / stages[-1].name / "best.keras"
    if best.is_file():
        (recipe.output / "best.keras").write_bytes(best.read_bytes())
    _draw_curves(histories, recipe.output / "curves.png")
    result = _result(recipe, histories)
    write_whole(recipe.output / "result.json", result.to_json() + "\n")
    return result


def _start_from(trained: tf.keras.Model, model: tf.keras.Model) -> None:
    """Copy the float stage's weights; of another network's, nothing but the start would tell."""
    own = [
        name
        for name in copy_weights(trained, model)
        if not isinstance(model.get_layer(name), ActivationQuantizer)
    ]
    if own:
        raise ValueError(
            "Expected float_stage to be of the same head, stem, width and classes: "
            f"{', '.join(own[:3])} has no weights of that shape there."
        )


def _set_ranges(recipe, images, model, trained: tf.keras.Model | None) -> None:
    """Start every activation range where it loses least on the float network's activations.

    Chosen because batch norm's outputs have unit scale: of 2 bits, SAT's fixed 8 makes a step of
    2.7 and rounds nearly everything to zero. Measured on CIFAR-100 (W1A2, GML, 7x7 stem, batch 128,
    peak learning rate 0.05, one float stage of 38.4 %, one seed): after 100 steps 27.7 % top-1 with
    these ranges, and a diverged loss and 1.0 % with ranges of 8 (and 10 for the last).
    """
    reference = trained
    if reference is None:  # quantized from scratch: the ranges of the untrained float network
        reference = build_model(recipe, images, _float_twin(recipe, 1))
        copy_weights(model, reference)
    batches = images.train_batches(
        min(recipe.batch_size, _CALIBRATION_IMAGES), seed=recipe.seed, augment=()
    )
    count = math.ceil(_CALIBRATION_IMAGES / min(recipe.batch_size, _CALIBRATION_IMAGES))
    sample = np.concatenate([batch.numpy() for batch, _ in batches.take(count)])
    calibrate(model, reference, sample, trained=trained is not None)


def _fit(recipe, images, stage, model, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    epoch_images = min(images.train_count, recipe.images_per_epoch or images.train_count)
    steps = epoch_images // recipe.batch_size
    soft_labels = bool({"cutmix", "mixup"} & set(recipe.augment))
    _compile(recipe, stage, model, steps, soft_labels)

    done = _completed_epochs(folder / "backup")
    # The order of images is a function of the step, so the stream can begin at any epoch.
    first_epoch, skipped = divmod(done * steps, images.steps_per_epoch(recipe.batch_size))
    train = images.train_batches(
        recipe.batch_size, seed=recipe.seed, first_epoch=first_epoch, augment=recipe.augment
    ).skip(skipped)
    test = images.test_batches(recipe.batch_size)
    if soft_labels:
        test = test.map(lambda image, label: (image, tf.one_hot(label, images.num_classes)))

    history = folder / "history.csv"
    callbacks = [
        _StopWhenNotFinite(folder),
        _Clock(),
        tf.keras.callbacks.CSVLogger(str(history), append=True),
        tf.keras.callbacks.TensorBoard(str(folder / "tensorboard"), profile_batch=0),
        tf.keras.callbacks.ModelCheckpoint(
            str(folder / "best.keras"),
            monitor="val_accuracy",
            mode="max",
            save_best_only=True,
            initial_value_threshold=max(
                (row["val_accuracy"] for row in _read_history(history)[:done]), default=None
            ),
        ),
        # Last: an epoch counts as done when everything about it is on disk.
        tf.keras.callbacks.BackupAndRestore(str(folder / "backup"), delete_checkpoint=False),
    ]
    if recipe.head != "linear":
        ramp = recipe.margin_warmup_epochs if stage.starts_random else 0.0
        callbacks.insert(0, MarginWarmup(ramp, steps))
    _console.print(
        f"[bold]{stage.name} stage[/bold]: {stage.epochs} epochs of {steps} steps, batch "
        f"{recipe.batch_size}, peak learning rate "
        f"{recipe.peak_learning_rate(starts_random=stage.starts_random):.4g}"
        + (f"; continuing after epoch {done}" if done else "")
    )
    model.fit(
        train,
        steps_per_epoch=steps,
        epochs=stage.epochs,
        validation_data=test,
        callbacks=callbacks,
        verbose=1 if sys.stdout.isatty() else 2,
    )


def _compile(recipe, stage, model, steps: int, soft_labels: bool) -> None:
    total = steps * stage.epochs
    warmup = min(round(recipe.lr_warmup_epochs * steps), total - 1)
    peak = recipe.peak_learning_rate(starts_random=stage.starts_random)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        peak if warmup == 0 else 0.0,
        decay_steps=total - warmup,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )
    cross_entropy = (
        tf.keras.losses.CategoricalCrossentropy
        if soft_labels
        else tf.keras.losses.SparseCategoricalCrossentropy
    )
    losses = {
        "linear": lambda: cross_entropy(from_logits=True),
        "cosine": lambda: AMSLoss(recipe.ams_margin, recipe.ams_scale),
        "gml": lambda: GMLoss(recipe.gml_alpha, recipe.likelihood_weight),
    }
    model.compile(
        tf.keras.optimizers.SGD(schedule, momentum=recipe.momentum, nesterov=recipe.momentum > 0),
        losses[recipe.head](),
        metrics=["accuracy"],
        # XLA made this network 4 to 6 times slower on a CPU.
        jit_compile=bool(tf.config.list_physical_devices("GPU")),
    )
    model.optimizer.build(model.trainable_variables)  # so that a checkpoint finds its slots


class _StopWhenNotFinite(tf.keras.callbacks.Callback):
    """Ends training at the first bad loss, before any checkpoint is written over a good one."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, batch, logs=None):
        if logs and not math.isfinite(logs["loss"]):
            done = _completed_epochs(self.folder / "backup")
            kept = f"epoch {done} is kept in {self.folder / 'backup'}" if done else "none yet"
            raise TrainingDiverged(
                f"The loss became {logs['loss']} at step {int(self.model.optimizer.iterations)}; "
                f"last good checkpoint: {kept}. Try a lower --learning-rate or a longer "
                "--margin-warmup-epochs, with a new --output."
            )


class _Clock(tf.keras.callbacks.Callback):
    """Adds the seconds of each epoch to its logs."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = time.perf_counter() - self.started


def _completed_epochs(backup: Path) -> int:
    """Return how many epochs ``BackupAndRestore`` has on disk."""
    checkpoint = tf.train.latest_checkpoint(str(backup / "chief"))
    if checkpoint is None:
        return 0
    return 1 + int(
        tf.train.load_variable(checkpoint, "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")
    )


def _read_history(path: Path) -> list[dict[str, float]]:
    """Return one row per epoch; the last one where a kill made an epoch run twice."""
    if not path.is_file():
        return []
    rows = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if all(row.values()):  # a kill can also cut a line short
                rows[row["epoch"]] = {name: float(value) for name, value in row.items()}
    return sorted(rows.values(), key=lambda row: row["epoch"])


def _claim_output(recipe: Recipe) -> None:
    """Create the output folder, or make sure that it holds this recipe's unfinished run."""
    file = recipe.output / "recipe.json"
    if recipe.restart and file.is_file():
        shutil.rmtree(recipe.output)
    mine = _plain(recipe)
    if file.is_file():
        theirs = json.loads(file.read_text())
        location = ("output", "restart", "data_dir", "budget")
        different = [
            f"{name} (there {theirs.get(name)!r}, here {value!r})"
            for name, value in mine.items()
            if name not in location and theirs.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{recipe.output} holds a run with other settings: {', '.join(different)}. "
                "Choose another --output, or --restart to delete it."
            )
    elif recipe.output.is_dir() and any(recipe.output.iterdir()):
        raise ValueError(
            f"Expected {recipe.output} to be new, empty or a run of this recipe; it has other "
            "files. Choose another --output."
        )
    else:
        recipe.output.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(mine, indent=2) + "\n")


def _plain(recipe: Recipe) -> dict:
    """Return the recipe as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))


def _save(model: tf.keras.Model, path: Path) -> None:
    """Save so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}")
    model.save(temporary, save_format="keras")
    os.replace(temporary, path)


def _result(recipe: Recipe, histories: dict[str, list[dict]]) -> TrainingResult:
    stages = [
        {
            "name": name,
            "epochs": len(rows),
            "final_accuracy": rows[-1]["val_accuracy"],
            "best_accuracy": max(row["val_accuracy"] for row in rows),
            "seconds": sum(row["seconds"] for row in rows),
        }
        for name, rows in histories.items()
    ]
    floats = [stage["final_accuracy"] for stage in stages if stage["name"] == "float"]
    return TrainingResult(
        accuracy=stages[-1]["final_accuracy"],
        best_accuracy=stages[-1]["best_accuracy"],
        float_accuracy=floats[0] if floats else None,
        stages=stages,
        recipe=_plain(recipe),
        seconds=sum(stage["seconds"] for stage in stages),
        environment=environment(),
    )


def environment() -> dict:
    """Return what a reader needs to place a figure: command, versions, commit and device."""
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "commit": _commit(),
        "device": _device(),
    }


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "."],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git
    return commit + ("-modified" if changed else "")


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
        return ", ".join(str(name) for name in names)
    return f"{cpu_name()}, {os.cpu_count()} logical cores"


def _draw_curves(histories: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("loss", "top-1 accuracy"), strict=True
    ):
        first = 1
        for color, (name, rows) in zip(("tab:blue", "tab:orange"), histories.items(), strict=False):
            epochs = range(first, first + len(rows))
            for prefix, style, where in (("", "--", "train"), ("val_", "-", "test")):
                values = [row[prefix + metric] for row in rows]
                axes.plot(epochs, values, style, color=color, marker=".", label=f"{name}, {where}")
            first += len(rows)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[1].set_ylim(bottom=0)
    figure.axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


SMOKE = {
    "float_epochs": 1,
    "epochs": 1,
    "images_per_epoch": 2560,
    "batch_size": 128,
    "stem": "imagenet",
    "width": 16,
}
"""What ``--budget smoke`` changes: enough to see that everything runs, not to learn."""

CIFAR_SHORT = {
    "float_epochs": 10,
    "epochs": 5,
    "batch_size": 128,
    "learning_rate": 0.05,
    "quantized_learning_rate": 0.02,
    "reference_batch": 128,
    "stem": "imagenet",
}
"""What ``--budget short`` changes on CIFAR: about an hour on two cores."""

IMAGENET_SHORT = {
    "float_epochs": 2,
    "epochs": 2,
    "images_per_epoch": 6400,
    "batch_size": 64,
    "learning_rate": 0.05,
    "reference_batch": 64,
}
"""What ``--budget short`` changes on ImageNet: about an hour on two cores, and the evaluations."""


def main(
    paper: Recipe, *, short: dict, description: str, arguments: list[str] | None = None
) -> TrainingResult:
    """Run a recipe script: parse its command line, train, print the result.

    Args:
        paper: The recipe with the paper's settings, the defaults of every flag.
        short: The fields that ``--budget short`` changes.
        description: The script's docstring, shown by ``--help``.
        arguments: Command line without the program's name; ``sys.argv`` by default.

    Returns:
        The result of the run. What a user can mend ends the process with one sentence and status 2,
        a diverged training with status 1.
    """
    # The budget chooses the defaults of the other flags, so it is read before them.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--budget", choices=("paper", "short", "smoke"), default="paper")
    budget = first.parse_known_args(arguments)[0].budget
    changes = {"paper": {}, "short": short, "smoke": SMOKE}[budget]
    defaults = dataclasses.replace(paper, budget=budget, **changes)
    if budget != "paper":
        defaults = dataclasses.replace(
            defaults, output=paper.output.with_name(f"{paper.output.name}_{budget}")
        )
    recipe = tyro.cli(Recipe, default=defaults, description=description, args=arguments)
    shortened = ", ".join(f"{name}={value}" for name, value in changes.items())
    if shortened:
        _console.print(f"--budget {budget} shortens the paper's run: {shortened}")
    try:
        result = run(recipe)
    except ValueError as error:
        _console.print(f"[red]{escape(str(error))}[/red]")
        raise SystemExit(2) from None
    except TrainingDiverged as error:
        _console.print(f"[red]{escape(str(error))}[/red]")
        raise SystemExit(1) from None
    _print(recipe, result)
    return result


def _print(recipe: Recipe, result: TrainingResult) -> None:
    table = Table(title=f"{recipe.dataset}, {recipe.head}, test top-1")
    for heading in ("stage", "epochs", "last epoch", "best epoch", "minutes"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in result.stages:
        name = stage["name"]
        if name == "quantized":
            name = f"W{recipe.weight_bits}A{recipe.activation_bits}"
        table.add_row(
            name,
            str(stage["epochs"]),
            f"{stage['final_accuracy']:.2%}",
            f"{stage['best_accuracy']:.2%}",
            f"{stage['seconds'] / 60:.1f}",
        )
    _console.print(table)
    _console.print(f"{recipe.output / 'model.keras'}, {recipe.output / 'result.json'}")
