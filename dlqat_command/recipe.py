"""A recipe: everything that determines a training run, as a plain value that a command line fills.

Nothing here needs TensorFlow, so that help appears at once; what is checked with the package's own
knowledge is in :mod:`dlqat_tf.training.recipe`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dlqat_command.metavars import BITS, COUNT, EPOCHS, FOLDER, RATE


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run; a plain value that a grid can vary."""

    dataset: Literal["digits", "cifar10", "cifar100", "imagenet2012", "folder"] = "cifar100"
    """Where the images come from; "folder" is any image folder with train/ and val/."""
    data_dir: Annotated[Path | None, FOLDER] = None
    """Folder of the dataset; for tensorflow-datasets its data_dir."""
    image_size: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Height and width in pixels, for imagenet2012 and folder (224 by default)."""
    train_size: Annotated[int | None, COUNT] = None
    """Train on a stratified subset of this many images; all by default."""
    validation_size: Annotated[int | None, COUNT] = None
    """Hold out this many training images and measure on them instead of the test set."""
    images_per_epoch: Annotated[int | None, COUNT] = None
    """Call it an epoch after this many images, all of them by default and at most. The order goes
    on."""
    cache: Literal["none", "memory"] = "none"
    """Read the files of imagenet2012 or folder once and hold them in memory, still encoded."""
    augment: tuple[Literal["crop", "flip", "randaugment", "cutmix", "mixup"], ...] = (
        "crop",
        "flip",
    )
    """Training augmentations."""

    head: Literal["linear", "cosine", "gml"] = "gml"
    """Classifier and its loss: linear with cross-entropy, cosine with AMS, gml with GML."""
    method: Annotated[str, arg(metavar="NAME")] = "sat"
    """What rounds weights and activations, a name in dlqat_tf.methods: sat, lsq, bwn and so on, or
    one that a module of your own registers, with --import MODULE. On the command line it brings its
    paper's network and training, which other flags change."""
    weight_bits: Annotated[int | None, BITS] = 1
    """Bits of the hidden weights, 1 to 8; 32 is clamped float, None plain float."""
    activation_bits: Annotated[int | None, BITS] = 2
    """Bits of the hidden activations, 1 to 8; 32 or None is a ReLU."""
    residual_bits: Annotated[int | None, BITS] = 8
    """Bits of both inputs of a residual add, which int8 kernels need; None adds in float."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """3x3 convolution, or 7x7 with stride 2 and max-pooling."""
    width: Annotated[int, arg(metavar="CHANNELS")] = 64
    """Channels of the first stage."""
    block: Literal["post", "pre"] = "post"
    """Batch norm and activation after the convolutions, or before them."""
    shortcut: Literal["A", "B"] = "B"
    """Where a stage begins: B, a 1x1 convolution; A, channels of zeros."""
    end_bits: Literal[8, 32] = 8
    """Bits of the first convolution, the last activation and the head; 32 is float."""
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
    margin_warmup_epochs: Annotated[float, EPOCHS] = 0.0
    """Epochs over which the margin grows from 0, in each stage that starts from random weights."""

    stages: Literal[1, 2] = 2
    """2: train clamped float weights first, then quantize; 1: quantized from scratch."""
    float_stage: Annotated[Path | None, FOLDER] = None
    """Start from this finished float stage, the float/ folder of a run; by default train one."""
    float_epochs: Annotated[int, EPOCHS] = 150
    """Epochs of the float stage."""
    epochs: Annotated[int, EPOCHS] = 150
    """Epochs of the quantized stage."""
    reestimation_images: Annotated[int, COUNT] = 0
    """Measure the last stage's batch norms anew on about this many training images, augmented as in
    training, when it ends; 0 keeps their moving averages, which were as good where measured."""
    teacher: Annotated[Literal["float"] | Path | None, arg(metavar="float|FILE")] = None
    """Distil from the float stage, or from a model file, in the quantized stage."""
    distillation_weight: float = 1.0
    """Weight of what distillation adds to the loss."""
    distillation_temperature: float = 4.0
    """Temperature of the teacher's and the student's probabilities in it."""
    batch_size: Annotated[int, COUNT] = 768
    """Images per optimizer step."""
    learning_rate: Annotated[float, RATE] = 0.2
    """Peak learning rate for a batch of reference_batch; scaled linearly with batch_size."""
    reference_batch: Annotated[int, COUNT] = 768
    """Batch size that learning_rate is meant for."""
    quantized_learning_rate: Annotated[float | None, RATE] = None
    """Peak learning rate of a quantized stage that follows a float one; by default the same."""
    lr_warmup_epochs: Annotated[float, EPOCHS] = 1.0
    """Epochs of linear learning-rate warm-up; then cosine to zero, per step."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 4e-5
    """Coefficient of w in the gradient, for convolution and head kernels only."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras policy; quantizers, heads and losses stay in float32."""
    strategy: Literal["none", "mirrored", "multiworker", "tpu"] = "none"
    """Train on one device, on all GPUs of this machine, with all workers that the environment's
    TF_CONFIG names, or on a TPU. A batch is what all replicas take together."""
    sync_batch_norm: bool = False
    """Let batch norm see the whole batch in training, and not each replica its own part."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and subset."""
    deterministic: bool = False
    """Use deterministic operations only, which take longer on a GPU: bit-equal runs on one kind of
    machine with the same number of threads."""

    monitor: tuple[Literal["quantizers", "mixture"], ...] = ("quantizers",)
    """Written into TensorBoard after each epoch: ranges, clip shares and flip rates of quantizers;
    norms, distances, probabilities and parts of the gradient of GML's mixture. Not with several
    workers."""

    budget: Literal["paper", "short", "smoke"] = "paper"
    """Start from the paper's settings, from about an hour's, or from a minute's on two cores."""
    paper_literal: bool = False
    """Start from GML as in the paper's equation 4: the full margin from the first step."""
    output: Annotated[Path, FOLDER] = Path("runs/run")
    """Folder of the run; the same command continues what it finds there."""
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next inside an epoch; by default there is one every ten
    minutes, and always one after each epoch."""
    resume: Literal["auto", "never"] = "auto"
    """Continue a run that the output folder holds, or refuse to."""
    restart: bool = False
    """Delete what is in the output folder instead of continuing."""

    def __post_init__(self) -> None:
        """Take folders as text too, and lists for tuples."""
        for name in ("data_dir", "float_stage", "output"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("augment", "monitor"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    def plain(self) -> dict:
        """Return the settings as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def with_method(self, name: str) -> Recipe:
        """Return this recipe with a method and what its paper settles, network and training.

        Args:
            name: A name in :mod:`dlqat_tf.methods`.

        Raises:
            ValueError: There is no such method; the message has close names.
        """
        from dlqat_tf import methods

        return dataclasses.replace(self, method=name, **methods.get(name).recipe)

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
        from dlqat_tf.training.recipe import check

        check(self)
