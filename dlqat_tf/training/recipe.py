"""A recipe: everything that determines a training run, as a plain value."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from dlqat_tf._host import check_name
from dlqat_tf.distillation import check_numbers
from dlqat_tf.losses import AMSLoss, GMLoss
from dlqat_tf.models.resnet import check_settings
from dlqat_tf.training.data import check_size

FILE = "recipe.json"  # in the folder of a run


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
    validation_size: int | None = None
    """Hold out this many training images and measure on them instead of the test set."""
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
    gml_fit_power: float = 8.0
    """GML's margin follows the fit of the training images to this power; 0 is the full margin."""
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
    reestimation_images: int = 0
    """Measure the last stage's batch norms anew on about this many training images, when it ends;
    0 keeps their moving averages."""
    teacher: Literal["float"] | Path | None = None
    """Distil from the float stage, or from a model file, in the quantized stage."""
    distillation_weight: float = 1.0
    """Weight of what distillation adds to the loss."""
    distillation_temperature: float = 4.0
    """Temperature of the teacher's and the student's probabilities in it."""
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
    paper_literal: bool = False
    """Start from GML as in the paper's equation 4: the full margin from the first step."""
    output: Path = Path("runs/run")
    """Folder of the run; the same command continues what it finds there."""
    restart: bool = False
    """Delete what is in the output folder instead of continuing."""

    def plain(self) -> dict:
        """Return the settings as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

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
        """Refuse what can be known to be wrong without the images, before they are looked for.

        Raises:
            ValueError: A setting is of another type, out of range, or does not go with another.
            OSError: A path is not UTF-8.
        """
        for name, hint in get_type_hints(Recipe).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise ValueError(f"Expected {name} to be {_described(hint)}. Received: {value!r}.")
            if isinstance(value, Path):
                check_name(value)
        check_settings(
            self.weight_bits,
            self.activation_bits,
            self.head,
            self.stem,
            self.width,
            self.residual_bits,
        )
        check_size(self.dataset, self.image_size)
        self._check_numbers()
        self._check_folders()

    def _check_numbers(self) -> None:
        counts = (
            "float_epochs",
            "epochs",
            "batch_size",
            "reference_batch",
            "train_size",
            "validation_size",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected {name} of at least 1. Received: {value}.")
        for name in (
            "learning_rate",
            "quantized_learning_rate",
            "momentum",
            "weight_decay",
            "lr_warmup_epochs",
            "margin_warmup_epochs",
            "final_gain",
            "reestimation_images",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(
                    f"Expected {name} to be finite and not negative. Received: {value}."
                )
        if self.momentum > 1:
            raise ValueError(f"Expected momentum of at most 1. Received: {self.momentum}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Expected seed from 0 to {2**32 - 1}. Received: {self.seed}.")
        if self.images_per_epoch is not None and self.images_per_epoch < self.batch_size:
            raise ValueError(
                f"Expected images_per_epoch of at least one batch ({self.batch_size}). "
                f"Received: {self.images_per_epoch}."
            )
        check_numbers(
            distillation_weight=self.distillation_weight,
            distillation_temperature=self.distillation_temperature,
        )
        # The losses know their own ranges.
        AMSLoss(self.ams_margin, self.ams_scale)
        GMLoss(self.gml_alpha, self.likelihood_weight, fit_power=self.gml_fit_power)

    def _check_folders(self) -> None:
        output = self.output.resolve()
        for name in ("float_stage", "data_dir", "teacher"):
            path = getattr(self, name) if getattr(self, name) != "float" else None
            # The output is deleted by restart, and nobody means that.
            if path is not None and path.expanduser().resolve().is_relative_to(output):
                raise ValueError(
                    f"Expected {name} outside of the output folder. Received: {path}, which is in "
                    f"{self.output}: choose another output."
                )
        if self.teacher is not None and not self.is_quantized:
            raise ValueError(
                "Expected a teacher only where a network is quantized: the float stage learns from "
                f"labels. Received: teacher={self.teacher}, weight_bits={self.weight_bits}, "
                f"activation_bits={self.activation_bits}."
            )
        if self.teacher == "float" and self.stages == 1:
            raise ValueError(
                "Expected a float stage to learn from. Received: teacher=float with stages=1: give "
                "two stages, or the file of a model."
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


def _fits(value, hint) -> bool:
    """Return whether a value is of a field's type: a plain one, or of those as unions or tuples."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if arguments:
        return any(_fits(value, each) for each in arguments)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(hint) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) is tuple:
        return f"a tuple, each {_described(arguments[0])}"
    if arguments:
        return " or ".join(map(_described, arguments))
    return {type(None): "None", Path: "a Path"}.get(hint, hint.__name__)


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run from its folder.

    Raises:
        ValueError: The folder holds no recipe of this version, or a damaged one.
    """
    file = run / FILE
    if not file.is_file():
        raise ValueError(f"Expected the folder of a run, found no {file}.")
    values = read_values(file)
    for name in ("data_dir", "float_stage", "output", "teacher"):
        if values.get(name) not in (None, "float"):
            values[name] = Path(values[name])
    try:
        return Recipe(**values | {"augment": tuple(values["augment"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no recipe of this version: {error}.") from None


def read_values(file: Path) -> dict:
    """Return the settings in the file of a recipe.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        values = json.loads(file.read_bytes())
    except ValueError:  # of the text or of its encoding
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{file} is damaged: put the right one back, or delete the run with --restart."
        )
    return values
