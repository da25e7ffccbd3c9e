"""The stages of a recipe, and the network of each as it is before the first step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from rich.console import Console

from dlqat_tf import methods
from dlqat_tf.loading import load_weights
from dlqat_tf.models import resnet18
from dlqat_tf.quantizers import ActivationQuantizer
from dlqat_tf.quantizers.calibration import calibrate, calibrated
from dlqat_tf.training.data import ImageData
from dlqat_tf.training.recipe import Recipe

_CALIBRATION_IMAGES = 512
_console = Console()


@dataclass(frozen=True)
class Stage:
    """A stage's name and epochs, the widths of its network, and whether it starts from nothing."""

    name: str
    weight_bits: int | None
    activation_bits: int | None
    residual_bits: int | None
    epochs: int
    starts_random: bool


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages in their order: a float one in front where the recipe has two."""
    final = Stage(
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
        float_twin(recipe, recipe.float_epochs),
        dataclasses.replace(final, starts_random=False),
    ]


def float_twin(recipe: Recipe, epochs: int) -> Stage:
    """Return a stage of the network that the recipe's own one is compared with, and starts from."""
    return Stage("float", 32, 32, recipe.residual_bits and 32, epochs, starts_random=True)


def build_model(recipe: Recipe, images: ImageData, stage: Stage) -> tf.keras.Model:
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
        method=recipe.method,
        sync_batch_norm=recipe.sync_batch_norm,
        block=recipe.block,
        shortcut=recipe.shortcut,
        end_bits=recipe.end_bits,
    )


def start_from(trained: tf.keras.Model, model: tf.keras.Model) -> None:
    """Copy the float stage's weights.

    Raises:
        ValueError: They are of another network; training would go on from what fits, and nothing
            but its start would tell.
    """
    expected = "Expected float_stage to be of the same head, stem, width and classes"
    try:
        kept = load_weights(model, trained, quiet=True).kept
    except ValueError as error:
        raise ValueError(f"{expected}. {error}") from None
    for name, reason in kept.items():
        layer, variable = model.get_layer(name.split("/")[0]), name.split("/")[-1]
        own = {each.name for each in layer._trainable_weights + layer._non_trainable_weights}
        own = {each.rpartition("/")[-1].partition(":")[0] for each in own}
        # What a quantizer learns is not in the float stage.
        if variable in own and not isinstance(layer, ActivationQuantizer):
            raise ValueError(f"{expected}. {name} is kept, since {reason}.")


def set_ranges(recipe, images, model, trained: tf.keras.Model | None) -> None:
    """Start every activation range where it loses least on the float network's activations.

    Chosen because batch norm's outputs have unit scale: of 2 bits, SAT's fixed 8 makes a step of
    2.7 and rounds nearly everything to zero. Measured on CIFAR-100 (W1A2, GML, 7x7 stem, batch 128,
    peak learning rate 0.05, one float stage of 38.4 %, one seed): after 100 steps 27.7 % top-1 with
    these ranges, and a diverged loss and 1.0 % with ranges of 8 (and 10 for the last).
    """
    if not calibrated(model):
        return
    reference = trained
    if reference is None:  # quantized from scratch: the ranges of the untrained float network
        reference = build_model(recipe, images, float_twin(recipe, 1))
        load_weights(reference, model, quiet=True)
    sample, _ = training_images(recipe, images, _CALIBRATION_IMAGES)
    ranges = calibrate(model, reference, sample, trained=trained is not None)
    _console.print(f"{len(ranges)} activation ranges start from {len(sample)} training images")


def prepare(recipe, images, stage, model) -> None:
    """Do what the method does to a trained network before it goes on with low-bit weights."""
    method = methods.get(recipe.method)
    if method.prepare is not None and stage.weight_bits not in (None, 32):
        sample, _ = training_images(recipe, images, _CALIBRATION_IMAGES)
        method.prepare(model, sample)
        _console.print(f"weights start from {recipe.method} on {len(sample)} training images")


def training_images(recipe: Recipe, images, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at least ``count`` training images as they are, and their labels."""
    size = min(recipe.batch_size, count)
    batches = images.train_batches(size, seed=recipe.seed, augment=()).take(math.ceil(count / size))
    some, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(some), np.concatenate(labels)
