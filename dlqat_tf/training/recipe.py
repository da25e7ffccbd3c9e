"""What makes a recipe valid, and reading one back from the folder of its run."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from dlqat_command.recipe import Recipe
from dlqat_tf._host import check_name, read_object
from dlqat_tf.distillation import check_numbers
from dlqat_tf.losses import AMSLoss, GMLoss
from dlqat_tf.models.resnet import check_settings
from dlqat_tf.training.data import check_size

__all__ = ["FILE", "Recipe", "check", "read_recipe", "read_values"]

FILE = "recipe.json"  # in the folder of a run


def check(recipe: Recipe) -> None:
    """Refuse what can be known to be wrong without the images, before they are looked for.

    Raises:
        ValueError: A setting is of another type, out of range, or does not go with another.
        OSError: A path is not UTF-8.
    """
    _check_types(recipe)
    for path in (recipe.data_dir, recipe.float_stage, recipe.teacher, recipe.output):
        if isinstance(path, Path):
            check_name(path)
    check_settings(
        recipe.weight_bits,
        recipe.activation_bits,
        recipe.head,
        recipe.stem,
        recipe.width,
        recipe.residual_bits,
        recipe.method,
        block=recipe.block,
        shortcut=recipe.shortcut,
        end_bits=recipe.end_bits,
        final_gain=recipe.final_gain,
    )
    check_size(recipe.dataset, recipe.image_size)
    _check_numbers(recipe)
    _check_folders(recipe)


def _check_types(recipe: Recipe) -> None:
    for name, hint in get_type_hints(Recipe).items():
        value = getattr(recipe, name)
        if not _fits(value, hint):
            raise ValueError(f"Expected {name} to be {_described(hint)}. Received: {value!r}.")


def _check_numbers(recipe: Recipe) -> None:
    counts = (
        "float_epochs",
        "epochs",
        "batch_size",
        "reference_batch",
        "train_size",
        "validation_size",
        "checkpoint_every",
    )
    for name in counts:
        value = getattr(recipe, name)
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
        value = getattr(recipe, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"Expected {name} to be finite and not negative. Received: {value}.")
    if recipe.momentum > 1:
        raise ValueError(f"Expected momentum of at most 1. Received: {recipe.momentum}.")
    if not 0 <= recipe.seed < 2**32:
        raise ValueError(f"Expected seed from 0 to {2**32 - 1}. Received: {recipe.seed}.")
    if recipe.images_per_epoch is not None and recipe.images_per_epoch < recipe.batch_size:
        raise ValueError(
            f"Expected images_per_epoch of at least one batch ({recipe.batch_size}). "
            f"Received: {recipe.images_per_epoch}."
        )
    if "mixture" in recipe.monitor and recipe.head != "gml":
        raise ValueError(
            "Expected monitor of the mixture only with the head gml, which has one. Received: "
            f"monitor={', '.join(recipe.monitor)} with head={recipe.head}."
        )
    check_numbers(
        distillation_weight=recipe.distillation_weight,
        distillation_temperature=recipe.distillation_temperature,
    )
    # The losses know their own ranges.
    AMSLoss(recipe.ams_margin, recipe.ams_scale)
    GMLoss(recipe.gml_alpha, recipe.likelihood_weight, fit_power=recipe.gml_fit_power)


def _check_folders(recipe: Recipe) -> None:
    output = recipe.output.resolve()
    for name in ("float_stage", "data_dir", "teacher"):
        path = getattr(recipe, name) if getattr(recipe, name) != "float" else None
        # The output is deleted by restart, and nobody means that.
        if path is not None and path.expanduser().resolve().is_relative_to(output):
            raise ValueError(
                f"Expected {name} outside of the output folder. Received: {path}, which is in "
                f"{recipe.output}: choose another output."
            )
    if recipe.teacher is not None and not recipe.is_quantized:
        raise ValueError(
            "Expected a teacher only where a network is quantized: the float stage learns from "
            f"labels. Received: teacher={recipe.teacher}, weight_bits={recipe.weight_bits}, "
            f"activation_bits={recipe.activation_bits}."
        )
    if isinstance(recipe.teacher, Path) and not recipe.teacher.exists():
        raise ValueError(
            f"Expected teacher to be float or the file of a model, found nothing at "
            f"{recipe.teacher}."
        )
    if recipe.teacher == "float" and recipe.stages == 1:
        raise ValueError(
            "Expected a float stage to learn from. Received: teacher=float with stages=1: give "
            "two stages, or the file of a model."
        )
    if recipe.float_stage is not None:
        if recipe.stages == 1 or not recipe.is_quantized:
            raise ValueError(
                "Expected float_stage only where a quantized stage follows it (stages=2). "
                f"Received: stages={recipe.stages}, weight_bits={recipe.weight_bits}, "
                f"activation_bits={recipe.activation_bits}."
            )
        files = (recipe.float_stage / name for name in ("last.keras", "history.csv"))
        if not all(file.is_file() for file in files):
            raise ValueError(
                "Expected float_stage to be the float/ folder of a run, with last.keras and "
                f"history.csv in it. Received: {recipe.float_stage}."
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


def read_recipe(run: str | Path) -> Recipe:
    """Return the recipe of a run from its folder.

    Raises:
        ValueError: The folder holds no recipe of this version, or a damaged one.
    """
    file = Path(run) / FILE
    if not file.is_file():
        raise ValueError(f"Expected the folder of a run, found no {file}.")
    values = read_values(file)
    try:
        if values.get("teacher") not in (None, "float"):
            values["teacher"] = Path(values["teacher"])
        recipe = Recipe(**values)
        _check_types(recipe)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is no recipe of this version: {error}.") from None
    return recipe


def read_values(file: Path) -> dict:
    """Return the settings in the file of a recipe.

    Raises:
        ValueError: The file is damaged.
    """
    return read_object(file, "put the right one back, or delete its folder")
