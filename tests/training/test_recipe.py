import dataclasses
import json
from pathlib import Path

import pytest

from dlqat_tf.training.recipe import Recipe, read_recipe


def test_a_folder_without_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="folder of a run"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"augment": [], "colour": "red"}')
    with pytest.raises(ValueError, match=r"no recipe of this version.*colour"):
        read_recipe(tmp_path)


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    recipe = Recipe(
        data_dir=Path("images"),
        float_stage=tmp_path / "float",
        augment=("flip",),
        weight_bits=None,
        learning_rate=0.3,
        output=tmp_path,
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.plain()))
    assert read_recipe(tmp_path) == recipe


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
