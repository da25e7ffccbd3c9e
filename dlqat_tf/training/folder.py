"""The output folder of a run: whose it is, and what may be in it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from dlqat_tf._host import PARTIAL, check_regular, target_of, write_whole
from dlqat_tf.training.distribution import Replicas
from dlqat_tf.training.lock import LOCK
from dlqat_tf.training.recipe import FILE, Recipe, read_values
from dlqat_tf.training.results import sources, versions
from dlqat_tf.training.starting import stages_of

# Settings that a run may go on without.
_FREE = (
    *("output", "restart", "resume", "data_dir", "cache", "budget", "checkpoint_every"),
    "monitor",
)
_SECONDS_OF_CACHES = 90  # after which NFS has noticed, by its defaults, that there is a new file
_PLACES = ("float_stage", "teacher")
_WRITTEN = (LOCK, "model.keras", "best.keras", "curves.png", "result.json")
_WRITTEN_BY_STAGES = ("last.keras", "best.keras", "history.csv")


def check_output(recipe: Recipe) -> None:
    """Refuse an output folder that holds something else than this recipe's run.

    Raises:
        ValueError: It has a run of other settings or other files, or is a file.
        OSError: What a run writes there is something else than a file.
    """
    file = recipe.output / FILE
    taken = [each for each in (recipe.output, *recipe.output.parents) if each.is_file()]
    if taken:
        raise ValueError(
            f"Expected a folder for the run, found the file {taken[0]}: choose another --output."
        )
    if not file.is_file():
        if _others(recipe.output):
            raise ValueError(
                f"Expected {recipe.output} to be new, empty or a run of this recipe; it has other "
                "files. Choose another --output."
            )
    elif recipe.resume == "never" and not recipe.restart:
        raise ValueError(
            f"{recipe.output} holds a run, and resume=never: choose another --output, or "
            "--resume auto to continue it, or delete the folder."
        )
    elif not recipe.restart:
        different = different_settings(recipe, read_values(file))
        if different:
            raise ValueError(
                f"{recipe.output} holds a run with other settings: {', '.join(different)}. "
                "Choose another --output, or delete the folder."
            )
        _check_written(recipe)


def _check_written(recipe: Recipe) -> None:
    """Refuse now what would end the run when its stages, or all of its hours, are done."""
    run = recipe.output
    for stage in (run / each.name for each in stages_of(recipe)):
        for folder in (stage, stage / "backup", stage / "tensorboard"):
            if os.path.lexists(folder) and not folder.is_dir():
                raise NotADirectoryError(
                    f"Expected a folder of the run at {folder}, found something else: move it away."
                )
        for file in (stage / name for name in _WRITTEN_BY_STAGES):
            check_regular(file)
            if target_of(file).is_symlink():  # Keras appends to the history, which replaces no link
                raise OSError(f"Expected a file of the run at {file}, found a link to itself.")
    for name in _WRITTEN:
        check_regular(run / name)


def check_workers(recipe: Recipe, workers: Replicas) -> None:
    """Refuse a job whose workers have different recipes or versions; all workers must call it.

    Raises:
        ValueError: Another one's recipe, or its version of a package, computes something else.
    """
    here = {"dlqat_tf": sources(), **versions()}
    for text in workers.texts(json.dumps(recipe.plain() | {"versions": here})):
        theirs = json.loads(text)
        there = theirs.pop("versions", {})
        others = [
            f"{name} (there {there.get(name, 'unknown')}, here {version})"
            for name, version in here.items()
            if there.get(name) != version
        ]
        if others:
            raise ValueError(
                "Expected the same versions in all workers. Received in another one: "
                f"{', '.join(others)}. Install the same in all of them."
            )
        different = different_settings(recipe, theirs)
        if different:
            raise ValueError(
                f"Expected the same settings in all workers. Received in another one: "
                f"{', '.join(different)}. Give all of them the same command."
            )


def check_shared(recipe: Recipe, workers: Replicas) -> None:
    """Refuse an output folder, once claimed, that workers do not share; all must call it.

    Raises:
        ValueError: A worker does not see what the first one has written there.
    """
    file = recipe.output / FILE
    for _ in range(_SECONDS_OF_CACHES):
        if file.is_file():
            break
        time.sleep(1)
    if workers.any(not file.is_file()):
        raise ValueError(
            f"Expected an output folder that all workers see. Received: {recipe.output}, where "
            f"{FILE} of the first worker is missing in another one: choose a shared --output."
        )


def different_settings(recipe: Recipe, theirs: dict) -> list[str]:
    """Return which settings of a run decide what it computes and are others than a recipe's.

    Args:
        recipe: The recipe.
        theirs: Settings of the run, as :meth:`Recipe.plain` gives them.
    """
    here = recipe.plain()
    there = Recipe().plain() | theirs  # a setting that came later stood at what is its default now
    return [
        f"{name} (there {value!r}, here {repr(here[name]) if name in here else 'unknown'})"
        for name, value in there.items()
        if name not in _FREE
        and not (name in here and here[name] == value)
        and not (name in _PLACES and _is_same_place(name, here, there))
    ]


def _is_same_place(name: str, here: dict, there: dict) -> bool:
    """Return whether two paths are one that is seen from elsewhere."""
    if not {here[name], there[name]}.isdisjoint((None, "float")):
        return False
    if Path(here[name]).resolve() == Path(there[name]).resolve():
        return True
    # The working directory of then is not known, but the output folder was seen from it too.
    beside = (os.path.relpath(each[name], each["output"]) for each in (here, there))
    return next(beside) == next(beside)


def claim_output(recipe: Recipe) -> None:
    """Make the output folder this recipe's, when nothing can refuse the recipe any more.

    With ``restart`` all that is in it is deleted first, the recipe last: after a kill in between
    the folder is still known for a run.
    """
    recipe.output.mkdir(parents=True, exist_ok=True)
    file = recipe.output / FILE
    if recipe.restart and file.is_file():
        for path in recipe.output.iterdir():
            if path.name not in (FILE, LOCK):
                _delete(path)
        file.unlink()
    for leftover in [*recipe.output.rglob(f".*.{PARTIAL}*"), *recipe.output.glob(f".{FILE}.*")]:
        _delete(leftover)
    if not file.is_file():
        write_whole(file, json.dumps(recipe.plain(), indent=2) + "\n")


def _others(folder: Path) -> list[Path]:
    """Return what is in a folder beside the lock and a recipe that a kill kept from being one."""
    return [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name != LOCK and not path.name.startswith(f".{FILE}.")
    ]


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
