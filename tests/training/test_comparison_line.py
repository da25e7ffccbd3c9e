"""recipes/table1.py on the digits: cells, archive and report by its command line."""

import runpy
from pathlib import Path

import pytest

from dlqat_tf.training import comparison_line

TABLE1 = Path(__file__).parents[2] / "recipes" / "table1.py"
TINY = ["--dataset", "digits", "--budget", "smoke", "--width", "2"]
TINY += ["--batch-size", "64", "--images-per-epoch", "64"]


def run(*arguments):
    table = runpy.run_path(str(TABLE1))
    comparison_line.main(
        table["PAPER"],
        short=table["SHORT"],
        losses=table["LOSSES"],
        figures=table["FIGURES"],
        description=table["__doc__"],
        arguments=list(map(str, arguments)),
    )


def test_cells_are_trained_kept_and_reported(tmp_path, capsys):
    folders = ("--output", tmp_path / "runs", "--archive", tmp_path / "kept")
    cells = ("--cells", "digits-CEL-W1A2-tuned-s3", "--seeds", 3)
    rates = ("--rates", 0.1, "--rate-epochs", 1, 1, "--held-out", 50)
    run(*TINY, "--train-size", 128, *folders, *cells, *rates)
    kept = {path.parent.name for path in (tmp_path / "kept").glob("*/result.json")}
    assert kept == {
        "rates-digits-CEL-0.1",
        "digits-CEL-W32A32-tuned-s3",
        "digits-CEL-W1A2-tuned-s3",
    }
    capsys.readouterr()
    run(*folders, "--report", tmp_path / "report")
    assert "Delta P" in capsys.readouterr().out
    assert "| digits | W1A2 | CEL |" in (tmp_path / "report" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "digits-XYZ-*"], "which fits none of 27"),
        (["--learning-rate", "0.3"], "Received: --learning-rate, which the comparison decides"),
        (["--report", "nowhere"], "found none"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ending:
        run(*TINY, "--output", tmp_path / "runs", *arguments)
    assert ending.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_papers_figures_are_those_of_its_table():
    figures = runpy.run_path(str(TABLE1))["FIGURES"]
    assert len(figures) == 3 * (3 + 9)
    assert figures["cifar100", (1, 2), "GML"] == 71.3
    assert figures["cifar10", (2, 2), "CEL"] == 76.5
    assert figures["cifar100", (3, 3), "AMS"] == 68.2
