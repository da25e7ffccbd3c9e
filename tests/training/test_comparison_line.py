"""recipes/table1.py on the digits: cells, archive and report by its command line."""

import pytest

from dlqat_command.tables import table1

TABLE1 = "table1.py"


def test_cells_are_trained_kept_and_reported(run_recipe, tmp_path, capsys):
    folders = ("--output", tmp_path / "runs", "--archive", tmp_path / "kept")
    cells = ("--cells", "digits-CEL-W1A2-tuned-s3", "--seeds", 3)
    rates = ("--rates", 0.1, "--rate-epochs", 1, 1, "--held-out", 50)
    run_recipe(TABLE1, "--train-size", 128, *folders, *cells, *rates)
    kept = {path.parent.name for path in (tmp_path / "kept").glob("*/result.json")}
    assert kept == {
        "rates-digits-CEL-0.1",
        "digits-CEL-W32A32-tuned-s3",
        "digits-CEL-W1A2-tuned-s3",
    }
    capsys.readouterr()
    run_recipe(TABLE1, *folders, "--report", tmp_path / "report", tiny=False)
    assert "Delta P" in capsys.readouterr().out
    assert "| digits | W1A2 | CEL |" in (tmp_path / "report" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "digits-XYZ-*"], "which fits none of 27"),
        (["--learning-rate", "0.3"], "Received: --learning-rate, which the comparison decides"),
        (["--seeds", "--rates", "0.1"], "Expected a comparison of one cell at least"),
        (["--report", "nowhere"], "found none"),
        (["--report", __file__], f"Expected a folder to write to, received {__file__}"),
    ],
)
def test_mistakes_are_one_sentence(assert_refused, arguments, message):
    assert_refused(TABLE1, arguments, message)


def test_the_papers_figures_are_those_of_its_table():
    figures = table1.FIGURES
    assert len(figures) == 3 * (3 + 9)
    assert figures["cifar100", (1, 2), "GML"] == 71.3
    assert figures["cifar10", (2, 2), "CEL"] == 76.5
    assert figures["cifar100", (3, 3), "AMS"] == 68.2
