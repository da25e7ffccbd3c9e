import runpy
import sys
from pathlib import Path

import pytest

_TINY = ["--dataset", "digits", "--budget", "smoke", "--width", "2"]
_TINY += ["--batch-size", "64", "--images-per-epoch", "64"]
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def run_recipe(monkeypatch):
    """Runs a script that compares; if tiny, networks of two channels for one step."""

    def run(script, *arguments, tiny=True):
        path = str(RECIPES / script)
        flags = _TINY if tiny else []
        monkeypatch.setattr(sys, "argv", [path, *flags, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return run


@pytest.fixture
def assert_refused(run_recipe, tmp_path, capsys):
    """Asserts that a script ends in one sentence, and leaves nothing behind."""

    def refused(script, arguments, message):
        with pytest.raises(SystemExit) as ending:
            run_recipe(script, "--output", tmp_path / "runs", *arguments)
        assert ending.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()

    return refused
