import dataclasses
import functools
import json
import os
import re
from importlib import metadata
from pathlib import Path

import pytest

from dlqat_tf.training import folder, results
from dlqat_tf.training.folder import check_output, check_shared, check_workers, claim_output
from dlqat_tf.training.recipe import Recipe
from dlqat_tf.training.results import sources


@pytest.fixture
def recipe(tmp_path):
    return Recipe(output=tmp_path / "run")


def claim(recipe):
    check_output(recipe)
    claim_output(recipe)


def test_a_run_of_another_method(recipe):
    claim(recipe)
    other = dataclasses.replace(recipe, method="bwn")
    # Not --restart: comparisons, whose cells are runs too, refuse it.
    named = r"other settings: method \(there 'sat', here 'bwn'\)\..* or delete the folder\."
    with pytest.raises(ValueError, match=named):
        check_output(other)


def test_restart_deletes_a_run_of_other_settings(recipe):
    claim(recipe)
    (recipe.output / "float").mkdir()
    (recipe.output / "float" / "last.keras").touch()
    claim(recipe)
    assert (recipe.output / "float" / "last.keras").exists()
    other = dataclasses.replace(recipe, weight_bits=4)
    with pytest.raises(ValueError, match=r"other settings: weight_bits \(there 1, here 4\)"):
        check_output(other)
    claim(dataclasses.replace(other, restart=True))
    assert [path.name for path in recipe.output.iterdir()] == ["recipe.json"]
    assert json.loads((recipe.output / "recipe.json").read_text())["weight_bits"] == 4


def test_a_run_goes_on_after_settings_were_added(recipe):
    claim(recipe)
    file = recipe.output / "recipe.json"
    values = json.loads(file.read_text())
    del values["gml_fit_power"]
    file.write_text(json.dumps(values))
    check_output(recipe)
    with pytest.raises(ValueError, match=r"gml_fit_power \(there 8.0, here 2.0\)"):
        check_output(dataclasses.replace(recipe, gml_fit_power=2.0))


def test_a_setting_that_is_unknown_is_another_one(recipe):
    """As another version, or a hand, may have written it."""
    claim(recipe)
    file = recipe.output / "recipe.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label_smoothing": 0.1}))
    with pytest.raises(
        ValueError, match=r"settings: label_smoothing \(there 0\.1, here unknown\)\."
    ):
        check_output(recipe)


class Workers:
    """A job of two, of which the other one is as told."""

    def __init__(self, text="", misses=False):
        self.text, self.misses = text, misses

    def texts(self, text):
        return [self.text, text]

    def any(self, is_so):
        return is_so or self.misses


def worker(recipe, *, without=(), versions=None, **changes):
    """A job whose other worker has changes of the recipe, or of the packages' versions."""
    there = {"dlqat_tf": sources(), **results.versions(), **(versions or {})}
    there = {name: each for name, each in there.items() if name not in without}
    settings = dataclasses.replace(recipe, **changes).plain()
    return Workers(json.dumps(settings | {"versions": there}))


def test_workers_of_one_job_have_the_same_settings(recipe):
    other = functools.partial(worker, recipe)
    check_workers(recipe, other(output=Path("/mnt/run"), data_dir=Path("/mnt"), cache="memory"))
    named = r"in all workers.*teacher \(there 'float', here None\), seed \(there 3, here 0\)\. Give"
    with pytest.raises(ValueError, match=named):
        check_workers(recipe, other(seed=3, teacher="float"))


def test_workers_of_one_job_have_the_same_versions(recipe):
    check_workers(recipe, worker(recipe))
    other = worker(recipe, versions={"larq": "0.13.1"}, without=["dlqat_tf"], seed=3)
    named = (
        rf"same versions.*: dlqat_tf \(there unknown, here {re.escape(sources())}\), "
        rf"larq \(there 0\.13\.1, here {re.escape(metadata.version('larq'))}\)\. Install"
    )
    with pytest.raises(ValueError, match=named):
        check_workers(recipe, other)


def test_workers_of_one_job_see_one_folder(recipe, monkeypatch):
    waited = []
    monkeypatch.setattr(folder.time, "sleep", waited.append)
    with pytest.raises(ValueError, match=r"all workers see\. Received: .*recipe\.json of the fi"):
        check_shared(recipe, Workers())
    assert sum(waited) == 90  # so long a file system may not know of a new file
    claim(recipe)
    check_shared(recipe, Workers())
    with pytest.raises(ValueError, match="missing in another one: choose a shared --output"):
        check_shared(recipe, Workers(misses=True))
    assert sum(waited) == 90


def test_a_run_is_continued_only_where_that_is_wanted(recipe):
    never = dataclasses.replace(recipe, resume="never")
    claim(never)  # there is nothing to continue
    with pytest.raises(ValueError, match=r"holds a run, and resume=never: choose another --output"):
        check_output(never)
    check_output(recipe)
    check_output(dataclasses.replace(never, restart=True))
    check_output(dataclasses.replace(recipe, checkpoint_every=7))  # decides nothing of the result


@pytest.mark.parametrize("setting", ["float_stage", "teacher"])
def test_a_run_goes_on_from_another_directory(tmp_path, monkeypatch, setting):
    def recipe(output, file):
        return dataclasses.replace(Recipe(output=output), **{setting: file})

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    claim(recipe(Path("runs/a"), Path("runs/f/float")))
    monkeypatch.chdir("here")
    check_output(recipe(Path("../runs/a"), Path("../runs/f/float")))
    check_output(recipe(tmp_path / "runs" / "a", tmp_path / "runs" / "f" / "float"))
    (tmp_path / "runs").rename(tmp_path / "moved")  # as another machine may see it
    check_output(recipe(Path("../moved/a"), Path("../moved/f/float")))
    for other in (Path("../moved/g/float"), None):
        with pytest.raises(ValueError, match=rf"{setting} \(there 'runs/f/float', here"):
            check_output(recipe(Path("../moved/a"), other))


def test_the_same_place_by_another_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim(Recipe(output=Path("runs/a"), float_stage=Path("f/float")))
    check_output(Recipe(output=tmp_path / "runs" / "a", float_stage=Path("f/../f/float")))


@pytest.mark.parametrize("output", ["file", "file/run"])
def test_a_file_where_the_folder_should_be(tmp_path, output):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=rf"found the file {tmp_path / 'file'}: choose another"):
        check_output(Recipe(output=tmp_path / output, restart=True))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("float", Path.touch, "a folder of the run at .*float, found something else"),
        ("quantized", lambda path: path.symlink_to("nowhere"), "of the run at .*quantized, found"),
        ("float/backup", lambda path: (path.parent.mkdir(), path.touch()), "at .*float/backup, fo"),
        ("model.keras", Path.mkdir, "received .*model.keras, which is a folder"),
        ("result.json", os.mkfifo, "received .*result.json, which is a device or a pipe"),
        ("float/history.csv", lambda path: path.mkdir(parents=True), "float/history.csv, which is"),
        (
            "float/history.csv",
            lambda path: (path.parent.mkdir(), path.symlink_to(path.name)),
            "at .*float/history.csv, found a link to itself",
        ),
    ],
)
def test_what_could_not_be_written_in_the_end(recipe, name, make, message):
    claim(recipe)
    make(recipe.output / name)
    with pytest.raises(OSError, match=message):
        check_output(recipe)
    claim(dataclasses.replace(recipe, restart=True))
    assert [path.name for path in recipe.output.iterdir()] == ["recipe.json"]


def test_a_lock_that_is_no_file(recipe):
    claim(recipe)
    os.mkfifo(recipe.output / ".lock")
    with pytest.raises(OSError, match=r"\.lock, which is a device or a pipe"):
        check_output(recipe)


def test_restart_follows_no_links(recipe, tmp_path):
    claim(recipe)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "last.keras").touch()
    (recipe.output / "float").symlink_to(tmp_path / "elsewhere")
    claim(dataclasses.replace(recipe, restart=True))
    assert not (recipe.output / "float").exists()
    assert (tmp_path / "elsewhere" / "last.keras").exists()


def test_what_a_kill_leaves_does_not_block(recipe, monkeypatch):
    def kill(*_, **__):
        raise SystemExit

    monkeypatch.setattr("dlqat_tf._host.os.replace", kill)
    monkeypatch.setattr("dlqat_tf._host.Path.unlink", kill)  # no clearing up after a kill
    with pytest.raises(SystemExit):
        claim(recipe)
    monkeypatch.undo()
    (leftover,) = recipe.output.iterdir()
    assert leftover.name.startswith(".recipe.json.")
    (recipe.output / ".lock").touch()
    claim(dataclasses.replace(recipe, weight_bits=4))  # the corrected command
    assert {path.name for path in recipe.output.iterdir()} == {".lock", "recipe.json"}


def test_a_kill_during_restart_leaves_a_run(recipe, monkeypatch):
    claim(recipe)
    for name in ("a", "float", "z"):
        (recipe.output / name).mkdir()

    def kill(*_, **__):
        raise SystemExit

    monkeypatch.setattr(folder.shutil, "rmtree", kill)
    restart = dataclasses.replace(recipe, restart=True)
    with pytest.raises(SystemExit):
        claim(restart)
    monkeypatch.undo()
    claim(restart)
    assert [path.name for path in recipe.output.iterdir()] == ["recipe.json"]


def test_files_of_others_are_not_touched(recipe):
    recipe.output.mkdir()
    (recipe.output / "thesis.tex").touch()
    for restart in (False, True):
        with pytest.raises(ValueError, match="it has other files"):
            check_output(dataclasses.replace(recipe, restart=restart))
    assert (recipe.output / "thesis.tex").exists()


@pytest.mark.parametrize("text", ["", '{"seed": ', "[1]", "\0\0", b"\xff\xfe"])
def test_a_damaged_recipe_is_named(recipe, text):
    claim(recipe)
    file = recipe.output / "recipe.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"recipe\.json is damaged: put the right one back, or"):
        check_output(recipe)
    claim(dataclasses.replace(recipe, restart=True))
    check_output(recipe)
