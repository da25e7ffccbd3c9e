import dataclasses
import json
from pathlib import Path

import pytest

from dlqat_command.budgets import SMOKE, defaults_of
from dlqat_tf.training.recipe import Recipe, read_recipe


def test_a_folder_without_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="folder of a run"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"augment": [], "colour": "red"}')
    with pytest.raises(ValueError, match=r"no recipe of this version.*colour"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"augment": [], "data_dir": 5}')
    with pytest.raises(ValueError, match=r"recipe\.json is no recipe of this version"):
        read_recipe(tmp_path)


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    recipe = Recipe(
        data_dir=Path("images"),
        float_stage=tmp_path / "float",
        augment=("flip",),
        weight_bits=None,
        learning_rate=0.3,
        teacher=Path("teacher.keras"),
        output=tmp_path,
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.plain()))
    assert read_recipe(tmp_path) == recipe


@pytest.mark.parametrize("values", [{"augment": 3}, {"data_dir": 3}, {"teacher": 3}, {"width": ""}])
def test_a_recipe_with_values_of_other_types(tmp_path, values):
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="no recipe of this version"):
        read_recipe(str(tmp_path))


def test_folders_may_be_text_and_tuples_lists():
    recipe = Recipe(data_dir="images", output="runs/x", augment=["flip"], monitor=[])
    assert recipe == Recipe(
        data_dir=Path("images"), output=Path("runs/x"), augment=("flip",), monitor=()
    )
    recipe.validate()


def test_peak_learning_rate_by_hand():
    recipe = Recipe(learning_rate=0.2, batch_size=384, reference_batch=768)
    assert recipe.peak_learning_rate() == pytest.approx(0.1)
    assert recipe.peak_learning_rate(starts_random=False) == pytest.approx(0.1)
    lower = dataclasses.replace(recipe, quantized_learning_rate=0.02)
    assert lower.peak_learning_rate() == pytest.approx(0.1)
    assert lower.peak_learning_rate(starts_random=False) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "expected"),
    [(1, 2, True), (32, 2, True), (1, None, True), (32, 32, False), (None, 32, False)],
)
def test_is_quantized(weight_bits, activation_bits, expected):
    recipe = Recipe(weight_bits=weight_bits, activation_bits=activation_bits)
    assert recipe.is_quantized == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "mnist"}, "Expected dataset to be one of digits, cifar10"),
        ({"head": "arc"}, "Expected head to be one of linear, cosine, gml"),
        ({"stem": "vgg"}, "Expected stem to be one of"),
        ({"stages": 3}, "Expected stages to be one of 1, 2"),
        ({"precision": "float8"}, "Expected precision to be one of float32"),
        ({"augment": ("crop", "zoom")}, "Expected augment to be a tuple, each one of crop"),
        ({"weight_bits": 0}, "weight_bits: Expected bits to be an integer from 1 to 8"),
        ({"activation_bits": 9}, "activation_bits: Expected bits"),
        ({"end_bits": 4}, "Expected end_bits to be one of 8, 32"),
        ({"block": "pre", "final_gain": 0.5}, "final_gain=1 with block='pre'"),
        ({"monitor": ("weights",)}, "Expected monitor to be a tuple, each one of quantizers"),
        ({"monitor": ("mixture",), "head": "cosine"}, "monitor=mixture with head=cosine"),
        ({"method": "ls"}, "Received: method='ls'. Did you mean lsq"),
        ({"method": "lsq"}, "weight_bits with method='lsq': LSQ of weights defines 2, 3"),
        ({"residual_bits": 1}, "residual_bits: Expected bits to be an integer from 2 to 8"),
        ({"width": 0}, "Expected width to be a positive integer"),
        ({"epochs": 1.5}, "Expected epochs to be int. Received: 1.5"),
        ({"epochs": True}, "Expected epochs to be int"),
        ({"learning_rate": "0.1"}, "Expected learning_rate to be float"),
        ({"image_size": 64}, r"Expected image_size 32 \(or None\), the only size of cifar100"),
        ({"image_size": 0, "dataset": "folder"}, "image_size of at least 1 pixel"),
        ({"train_size": 0}, "train_size of at least 1"),
        ({"momentum": 1.5}, "momentum of at most 1"),
        ({"learning_rate": float("nan")}, "learning_rate to be finite"),
        ({"margin_warmup_epochs": -1.0}, "margin_warmup_epochs to be finite"),
        ({"final_gain": float("inf")}, "final_gain to be finite"),
        ({"gml_alpha": -1.0}, "alpha"),
        ({"ams_scale": 0.0}, "scale"),
        ({"checkpoint_every": 0}, "checkpoint_every of at least 1"),
        ({"resume": "always"}, "Expected resume to be one of auto, never"),
        ({"teacher": "floats"}, "Expected teacher to be one of float or a Path or None"),
        ({"teacher": "float", "stages": 1}, "a float stage to learn from"),
        ({"teacher": Path("absent.keras")}, "found nothing at absent.keras"),
        (
            {"teacher": "float", "weight_bits": 32, "activation_bits": 32},
            "only where a network is quantized",
        ),
        ({"distillation_weight": 0.0}, "distillation_weight to be finite and above zero"),
        ({"distillation_temperature": -1.0}, "distillation_temperature to be finite and above"),
        ({"reestimation_images": -1}, "reestimation_images to be finite and not negative"),
        ({"seed": -1}, "seed from 0 to 4294967295"),
    ],
)
def test_what_needs_no_images_is_refused_without_them(change, message):
    Recipe().validate()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Recipe(), **change).validate()


@pytest.mark.parametrize("name", ["float_stage", "data_dir", "teacher"])
@pytest.mark.parametrize("inside", ["run", "run/float", "other/../run/float", "link"])
def test_what_a_run_needs_is_not_in_the_folder_that_restart_deletes(tmp_path, name, inside):
    (tmp_path / "run" / "float").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run" / "float")
    recipe = Recipe(output=tmp_path / "run", **{name: tmp_path / inside})
    with pytest.raises(ValueError, match=f"Expected {name} outside of the output folder"):
        recipe.validate()


def test_names_that_are_not_utf8():
    with pytest.raises(OSError, match=r"name in UTF-8. Received: b'runs/\\xff': rename it"):
        Recipe(output=Path("runs/\udcff")).validate()


def test_a_method_brings_what_its_paper_settles():
    recipe = Recipe(batch_size=32, epochs=7).with_method("lsq")
    assert recipe.method == "lsq"
    assert (recipe.block, recipe.residual_bits, recipe.epochs) == ("pre", None, 90)
    assert (recipe.quantized_learning_rate, recipe.weight_decay) == (0.01, 1e-4)
    assert recipe.batch_size == 32  # not of the paper
    assert Recipe().with_method("bwn").end_bits == 32
    with pytest.raises(ValueError, match="Did you mean lsq"):
        Recipe().with_method("lsw")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("sat", "post", 150)),
        (["--method", "lsq"], ("lsq", "pre", 90)),
        (["--method=lsq", "--budget", "smoke"], ("lsq", "pre", 1)),
        (["--method", "unknown"], ("sat", "post", 150)),  # refused with the rest of the recipe
    ],
)
def test_the_command_line_starts_from_the_methods_recipe(arguments, expected):
    defaults, changes = defaults_of(Recipe(), {}, arguments)
    assert (defaults.method, defaults.block, defaults.epochs) == expected
    assert changes == (SMOKE if "smoke" in arguments else {})
