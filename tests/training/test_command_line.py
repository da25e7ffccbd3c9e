import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from dlqat_command import training, tree
from dlqat_tf._script import Stopped
from dlqat_tf.training.callbacks import TrainingDiverged
from dlqat_tf.training.recipe import Recipe


def train(recipe, *arguments):
    command = training.command(recipe, short={}, description="digits")
    return tree.run(command, arguments, program="digits")


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
    arguments = ["--budget", "smoke", "--width", "4", "--stages", "1", "--batch-size", "32"]
    result = train(tiny(tmp_path / "run"), *arguments)
    assert result.recipe["width"] == 4
    assert result.recipe["batch_size"] == 32
    assert result.recipe["epochs"] == 1  # from the budget
    assert (tmp_path / "run_smoke" / "model.keras").is_file()
    shown = " ".join(capsys.readouterr().out.split())
    assert "--budget smoke shortens the paper's run: float_epochs=1, epochs=1, images_per" in shown
    assert "width=16" not in shown  # of the budget, and changed again
    assert "batch_size=128" not in shown


def ended(tmp_path, *arguments) -> int:
    with pytest.raises(SystemExit) as ending:
        train(tiny(tmp_path / "run"), *arguments)
    return ending.value.code


def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, capsys):
    assert ended(tmp_path, "--weight-bits", "9") == 2
    error = capsys.readouterr().err
    assert "Expected bits to be an integer from 1 to 8" in error
    assert error.startswith("error: weight_bits")
    assert error.count("\n") == 1


def raising(error):
    def run(recipe):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on after the last checkp"),
        (Stopped("TERM: saved in x", 143), 143, "saved in x; the same command goes on from there"),
        (OSError(28, "No space left on device", "runs/x"), 2, "No space left on device: 'runs/x'"),
        (TrainingDiverged("The loss became nan"), 1, "The loss became nan"),
        (
            tf.errors.ResourceExhaustedError(None, None, "x.data; No space left\n\t [[node]]"),
            2,
            "x.data; No space left",
        ),
    ],
)
def test_no_ending_is_a_traceback(tmp_path, monkeypatch, capsys, error, status, message):
    monkeypatch.setattr("dlqat_tf.training.command_line.run", raising(error))
    assert ended(tmp_path) == status
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_scripts_are_quiet():
    """What a recipe prints before its own first line, in a process that chose no log level."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    arguments = [sys.executable, str(recipe_files()[0]), "--weight-bits", "9"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: weight_bits")
    assert done.stderr.count("\n") == 1
