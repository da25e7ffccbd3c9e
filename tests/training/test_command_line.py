import subprocess
import sys
from pathlib import Path

import pytest

from dlqat_tf.training.command_line import main
from dlqat_tf.training.recipe import Recipe


def tiny(output):
    return Recipe(
        dataset="digits", augment=("crop",), width=4, batch_size=64, epochs=2, output=output
    )


def recipe_files():
    return sorted((Path(__file__).parents[2] / "recipes").glob("*_*.py"))


@pytest.mark.parametrize("path", recipe_files(), ids=lambda path: path.stem)
def test_recipe_help(path):
    shown = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--weight-bits" in shown
    assert "--budget" in shown


def test_budget_changes_defaults_and_flags_win(tmp_path, capsys):
    result = main(
        tiny(tmp_path / "run"),
        short={},
        description="digits",
        arguments=["--budget", "smoke", "--width", "4", "--stages", "1", "--batch-size", "32"],
    )
    assert result.recipe["width"] == 4
    assert result.recipe["batch_size"] == 32
    assert result.recipe["epochs"] == 1  # from the budget
    assert (tmp_path / "run_smoke" / "model.keras").is_file()
    assert "--budget smoke shortens" in capsys.readouterr().out


def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            tiny(tmp_path / "run"),
            short={},
            description="digits",
            arguments=["--weight-bits", "9"],
        )
    assert ended.value.code == 2
    assert "Expected bits to be an integer from 1 to 8" in capsys.readouterr().out
