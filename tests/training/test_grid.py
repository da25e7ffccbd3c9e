"""Grids on the digits: tiny networks, one epoch a stage."""

import dataclasses
import json
import math
import shutil

import pytest

from dlqat_tf.training import TrainingDiverged, grid
from dlqat_tf.training.grid import Cell, Grid, Outcome
from dlqat_tf.training.lock import locked
from dlqat_tf.training.recipe import Recipe

TINY = Recipe(
    dataset="digits",
    augment=(),
    head="linear",
    stem="imagenet",
    width=2,
    train_size=128,
    float_epochs=1,
    epochs=1,
    batch_size=64,
    learning_rate=0.05,
    reference_batch=64,
)
FLOAT = dataclasses.replace(TINY, weight_bits=32, activation_bits=32, residual_bits=32)


def cells():
    return [
        Cell("quantized", TINY, starts_from="float"),
        Cell("float", FLOAT),
    ]


@pytest.fixture
def runs(monkeypatch):
    """What the grid trains, without training it: each recipe's folder and float stage."""
    calls = []

    def fake_run(recipe):
        calls.append((recipe.output.name, recipe.float_stage))
        with locked(recipe.output):
            if recipe.learning_rate == 99:
                raise TrainingDiverged("The loss became nan at step 3.")
            (recipe.output / "float").mkdir()
            (recipe.output / "float" / "last.keras").touch()
            (recipe.output / "float" / "history.csv").write_text("epoch\n0\n")
            stage = "quantized" if recipe.is_quantized else "float"
            stages = [{"name": stage, "epochs": 1, "seconds": 90.0, "final_accuracy": 0.5}]
            content = {
                "accuracy": 0.5,
                "stages": stages,
                "recipe": recipe.plain(),
                "environment": {"commit": None, "device": "none"},
            }
            (recipe.output / "result.json").write_text(json.dumps(content))

    monkeypatch.setattr(grid, "run", fake_run)
    return calls


def test_a_real_grid_shares_its_float_stage_and_skips_what_is_done(tmp_path, monkeypatch):
    outcomes = Grid(cells(), tmp_path / "grid", tmp_path / "kept").run()
    assert set(outcomes) == {"float", "quantized"}
    assert 0 <= outcomes["quantized"].accuracy <= 1
    assert not (tmp_path / "grid" / "quantized" / "float").exists()
    assert files_in(tmp_path / "kept") == [
        "float/float/history.csv",
        "float/result.json",
        "quantized/quantized/history.csv",
        "quantized/result.json",
    ]
    monkeypatch.setattr(grid, "run", lambda recipe: pytest.fail("trained again"))
    assert Grid(cells(), tmp_path / "grid").run() == outcomes


def files_in(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_cells_start_after_the_one_that_they_start_from(tmp_path, runs):
    Grid(cells(), tmp_path).run()
    assert runs == [("float", None), ("quantized", tmp_path / "float" / "float")]


def test_a_diverged_cell_is_a_result_also_for_those_that_start_from_it(tmp_path, runs):
    first, second = cells()
    second = dataclasses.replace(second, recipe=dataclasses.replace(FLOAT, learning_rate=99))
    outcomes = Grid([first, second, Cell("other", FLOAT)], tmp_path / "a", tmp_path / "b").run()
    assert {name: each.accuracy for name, each in outcomes.items()} == {
        "float": None,
        "quantized": None,
        "other": 0.5,
    }
    assert outcomes["float"].result["reason"] == "The loss became nan at step 3."
    assert outcomes["quantized"].result["reason"] == "Its float stage float diverged."
    assert (tmp_path / "b" / "float" / "diverged.json").is_file()
    assert [name for name, _ in runs] == ["float", "other"]


def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path, runs, monkeypatch):
    waits = []
    held = locked(tmp_path / "float")
    held.__enter__()

    def sleep(seconds):
        waits.append(seconds)
        held.__exit__(None, None, None)

    monkeypatch.setattr(grid.time, "sleep", sleep)
    Grid([Cell("float", FLOAT), Cell("other", FLOAT)], tmp_path).run()
    # float is tried and held, other is trained, float is tried again and waited for.
    assert [name for name, _ in runs][-1] == "float"
    assert ("other", None) in runs
    assert len(waits) == 1


def test_an_archive_stands_for_runs_that_are_lost(tmp_path, runs):
    Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()
    shutil.rmtree(tmp_path / "runs")
    Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()
    assert len(runs) == 1  # nothing to do
    Grid(cells(), tmp_path / "runs", tmp_path / "kept").run()
    assert [name for name, _ in runs] == ["float", "float", "quantized"]  # its checkpoint is needed


def test_the_archive_gets_what_a_kill_kept_from_it(tmp_path, runs):
    def train():
        return Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()

    train()
    names = ["float/float/history.csv", "float/result.json"]
    assert files_in(tmp_path / "kept") == names
    (tmp_path / "kept" / "float" / "result.json").unlink()
    train()
    assert files_in(tmp_path / "kept") == names
    assert len(runs) == 1


def test_the_archive_has_what_was_trained_last(tmp_path, runs):
    def train():
        return Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()

    train()
    ours, kept = (tmp_path / folder / "float" / "float/history.csv" for folder in ("runs", "kept"))
    kept.write_text("cut")
    train()
    assert kept.read_text() == ours.read_text()
    # While it is trained again its history is not whole.
    (tmp_path / "runs" / "float" / "result.json").unlink()
    whole = ours.read_text()
    ours.write_text("half")
    train()
    assert kept.read_text() == whole
    assert len(runs) == 1


def test_a_cell_is_archived_when_its_other_files_are(tmp_path, runs, monkeypatch):
    written = []
    monkeypatch.setattr(grid, "write_whole", lambda path, data: written.append(path.name))
    Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()
    assert written == ["history.csv", "result.json"]


def result(**changes):
    values = {
        "accuracy": 0.5,
        "stages": [{"name": "float", "epochs": 1, "seconds": 1.0, "final_accuracy": 0.5}],
        "recipe": {},
        "environment": {"commit": None, "device": "none"},
    }
    return json.dumps(values | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"accura', b"[]", b"{}", b"\xff", b'{"accuracy": 0.5}'),
        *(result(accuracy="0.5"), result(accuracy=50.3), result(accuracy=math.nan)),
        *(result(recipe=[]), result(environment={})),
        *(result(stages=1), result(stages=[1]), result(stages=[{"name": "float"}])),
    ],
)
@pytest.mark.parametrize("where", ["runs", "kept"])
def test_a_damaged_result_is_named(tmp_path, runs, where, content):
    file = tmp_path / where / "float" / "result.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged: put the right one back, or delete"):
        Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()
    assert not runs
    file.unlink()
    Grid([Cell("float", FLOAT)], tmp_path / "runs", tmp_path / "kept").run()
    assert len(runs) == 1


def test_cells_of_other_settings_are_named(tmp_path, runs, capsys):
    Grid(cells(), tmp_path).run()
    capsys.readouterr()
    Grid(cells(), tmp_path).run()
    assert "other settings" not in capsys.readouterr().out  # though a float stage was chosen
    longer = [
        dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, epochs=7))
        for cell in cells()
    ]
    Grid(longer, tmp_path).run()
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "quantized was trained with other settings and is not trained again: epochs (there 1, "
        "here 7)."
    ) in said
    assert len(runs) == 2


def test_progress_tells_what_is_left(tmp_path, runs):
    grid_of_three = Grid([*cells(), Cell("two", dataclasses.replace(TINY, epochs=40))], tmp_path)
    assert grid_of_three.progress() == "0 of 3 cells done, 3 to train"
    Grid(cells(), tmp_path).run()
    # 1 float epoch and 40 quantized ones at 90 seconds each
    assert grid_of_three.progress() == (
        "2 of 3 cells done, 1 to train, about 1 h 02 min in one process"
    )


def test_pace_of_an_outcome():
    stages = [{"name": "float", "epochs": 4, "seconds": 10.0}]
    outcome = Outcome(Cell("float", FLOAT), 0.5, {"stages": stages})
    assert outcome.seconds_per_epoch == {"float": 2.5}
    stages.append({"name": "quantized", "epochs": 4, "seconds": None})  # its history lost an epoch
    assert outcome.seconds_per_epoch == {"float": 2.5}


def test_a_finished_cell_needs_its_teacher_no_more(tmp_path, runs):
    teacher = tmp_path / "teacher.keras"
    teacher.touch()
    cells = [Cell("a", dataclasses.replace(TINY, teacher=teacher))]
    Grid(cells, tmp_path / "runs").run()
    teacher.unlink()
    assert Grid(cells, tmp_path / "runs").run()["a"].accuracy is not None
    with pytest.raises(ValueError, match=r"Cell 'a' cannot be trained.*found nothing at"):
        Grid(cells, tmp_path / "others")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([Cell("a", TINY), Cell("a", TINY)], r"Received twice: \['a'\]"),
        ([Cell("a", TINY, "b")], "starts_from='b'"),
        ([Cell("a", dataclasses.replace(TINY, strategy="multiworker"))], "one process trains each"),
        ([Cell("a", dataclasses.replace(TINY, epochs=0))], "epochs of at least 1"),
    ],
)
def test_grids_that_cannot_be(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        Grid(wrong, tmp_path)


@pytest.mark.parametrize("folders", [("file", None), ("runs", "file"), ("runs", "file/kept")])
def test_files_where_folders_should_be(tmp_path, folders):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"found the file {tmp_path / 'file'}: choose others"):
        Grid([Cell("a", TINY)], *(each and tmp_path / each for each in folders))


def test_cells_that_wait_for_each_other_are_refused(tmp_path):
    circle = [Cell("a", TINY, "b"), Cell("b", TINY, "a")]
    with pytest.raises(ValueError, match="wait for each other"):
        Grid(circle, tmp_path).run()
