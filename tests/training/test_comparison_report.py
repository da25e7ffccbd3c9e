"""Reports of made results, whose means and drops a reader can check."""

import csv
import dataclasses
import json

import pytest

from dlqat_tf.training.comparison import Key, Swept
from dlqat_tf.training.comparison_report import ComparisonReport, order_of, spread
from dlqat_tf.training.recipe import Recipe

LOSSES = ("CEL", "AMS", "GML")
FLOAT, W1A2 = (32, 32), (1, 2)
PAPER = {
    ("cifar100", FLOAT, "CEL"): 66.2,
    ("cifar100", FLOAT, "GML"): 73.6,
    ("cifar100", W1A2, "CEL"): 59.0,
    ("cifar100", W1A2, "GML"): 71.3,
}
TOP1 = {  # by widths and loss, one for each seed
    (FLOAT, "CEL"): (0.60, 0.62),
    (FLOAT, "AMS"): (0.61, 0.64),
    (FLOAT, "GML"): (0.63, 0.65),
    (W1A2, "CEL"): (0.50, 0.51),
    (W1A2, "AMS"): (0.55, None),
    (W1A2, "GML"): (0.54, 0.58),
}


def store(folder, name, accuracy, **changes):
    recipe = Recipe(learning_rate=0.2, float_epochs=30, epochs=10, **changes)
    content = {
        "accuracy": accuracy,
        "recipe": recipe.plain(),
        "seconds": 1800.0,
        "stages": [
            {"name": "float", "epochs": 30, "seconds": 900.0, "final_accuracy": 0.5},
            {"name": "quantized", "epochs": 10, "seconds": 900.0, "final_accuracy": accuracy},
        ],
        "environment": {"commit": "abc", "device": "two cores"},
    }
    (folder / name).mkdir(parents=True)
    file = "diverged.json" if accuracy is None else "result.json"
    (folder / name / file).write_text(json.dumps(content))


@pytest.fixture
def report(tmp_path):
    for (widths, loss), accuracies in TOP1.items():
        for seed, accuracy in enumerate(accuracies):
            store(tmp_path, Key("cifar100", loss, widths, "tuned", seed).name, accuracy)
    store(tmp_path, Swept("cifar100", "GML", 0.1).name, 0.4, validation_size=500)
    store(tmp_path, Swept("cifar100", "GML", 0.3).name, None, validation_size=500)
    return ComparisonReport([tmp_path], PAPER, LOSSES)


def row(markdown, *begin):
    """The cells of the table's row that begins so."""
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in markdown.splitlines()]
    return next(line for line in lines if line[: len(begin)] == list(begin))


def test_top1_and_delta_p_stand_beside_the_papers(report):
    text = report.markdown()
    assert row(text, "cifar100", "float", "CEL")[3:] == ["66.2", "61.0 ± 1.4 (2)", "", ""]
    # 60 - 50 and 62 - 51: 10.5 on average, standard deviation sqrt(0.5).
    assert row(text, "cifar100", "W1A2", "CEL")[3:] == [
        "59.0",
        "50.5 ± 0.7 (2)",
        "7.2",
        "10.5 ± 0.7 (2)",
    ]
    assert row(text, "cifar100", "W1A2", "AMS")[3:] == ["", "55.0 (1)", "", "6.0 (1)"]
    assert "Diverged, and left out of the means: cifar100-AMS-W1A2-tuned-s1" in text
    assert "rates-cifar100-GML-0.3" in text
    assert "12 cells, 6.0 hours" in text
    assert "Not one budget" not in text


def test_the_order_is_tested_over_seeds_that_have_every_loss(report):
    text = report.markdown()
    assert row(text, "cifar100", "float", "tuned")[3:] == ["2 of 2", "0.028"]  # (1/6)^2
    assert row(text, "cifar100", "W1A2", "tuned")[3:] == ["0 of 1", "-"]


def test_order_by_hand():
    # Three losses in order for three seeds: one of 6^3 equally probable rankings.
    assert order_of([[1, 2, 3], [4, 5, 6], [1, 5, 9]]).p_value == pytest.approx(1 / 216)
    mixed = order_of([[1, 2, 3], [3, 2, 1]])
    assert (mixed.held, mixed.seeds) == (1, 2)
    assert mixed.p_value > 0.5
    assert order_of([[1, 2], [1, 2]]).p_value is None
    assert order_of([[1, 1, 2]]) == dataclasses.replace(mixed, held=0, seeds=1, p_value=None)


def test_learning_rates_show_both_stages(report):
    text = report.markdown()
    assert row(text, "cifar100", "GML", "50.0 / 40.0", "diverged")
    assert "of 500 training images held out" in text


def test_another_budget_is_said(report, tmp_path):
    store(tmp_path, Key("cifar10", "CEL", FLOAT, "paper", 0).name, 0.9, width=8)
    text = ComparisonReport([tmp_path], PAPER, LOSSES).markdown()
    assert "**Not one budget**" in text
    assert "width 8" in text


def test_files(report, tmp_path):
    paths = report.write(tmp_path / "out")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.png"]
    lines = list(csv.DictReader(paths[1].open()))
    assert len(lines) == 12
    line = next(each for each in lines if each["loss"] == "GML" and each["weight_bits"] == "1")
    assert (line["top1"], line["delta_p"], line["paper_top1"]) == ("54.00", "9.00", "71.3")
    assert (line["images"], line["commit"], line["learning_rate"]) == ("all", "abc", "0.2")
    assert [each["top1"] for each in lines].count("diverged") == 1
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_no_file_is_written_where_one_cannot_be(report, tmp_path):
    (tmp_path / "out" / "table.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="Expected the name of a file"):
        report.write(tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["table.png"]


def test_the_first_folder_that_has_a_cell_counts(report, tmp_path):
    name = Key("cifar100", "CEL", FLOAT, "tuned", 0).name
    store(tmp_path / "other", name, 0.99)
    first = ComparisonReport([tmp_path / "other", tmp_path], PAPER, LOSSES)
    assert first.accuracies("cifar100", FLOAT, "CEL", "tuned") == {0: 99.0, 1: 62.0}


def test_nothing_to_report(tmp_path):
    for folders in ([tmp_path], iter([tmp_path])):
        with pytest.raises(ValueError, match=rf"in {tmp_path}, found none"):
            ComparisonReport(folders, PAPER, LOSSES)


def test_float_cells_alone(tmp_path):
    store(tmp_path, Key("cifar100", "CEL", FLOAT, "paper", 0).name, 0.6)
    found = ComparisonReport([tmp_path], PAPER, LOSSES)
    assert row(found.markdown(), "cifar100", "float", "CEL")[3:] == ["66.2", "60.0 (1)", "", ""]
    assert all(path.is_file() for path in found.write(tmp_path / "out"))


def test_spread():
    assert spread([]) == ""
    assert spread([1.25]) == "1.2 (1)"
    assert spread([1.0, 3.0]) == "2.0 ± 1.4 (2)"
