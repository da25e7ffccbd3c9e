"""What a finished run leaves to cite: accuracies, curves, and what a reader needs to place them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tensorflow as tf

import dlqat_command
import dlqat_tf
from dlqat_tf._host import cpu_name, replacing
from dlqat_tf.training.history import read_history
from dlqat_tf.training.recipe import Recipe

__all__ = ["TrainingResult", "draw_curves", "environment", "read_history", "summarise"]

_VERSIONS = ("tensorflow", "tf_keras", "larq", "numpy", "keras-cv", "tensorflow-datasets")


@dataclass(frozen=True)
class TrainingResult:
    """What a run ended with; also in ``result.json``.

    Attributes:
        accuracy: Test top-1 after the last epoch, 0 to 1: the headline. Where the recipe has a
            ``validation_size``, this and the others are top-1 of the images held out.
        best_accuracy: Best test top-1 of any epoch of the last stage; selected on the test set.
            None where the history has lost an epoch.
        float_accuracy: Test top-1 after the last epoch of the float stage, None without one.
        stages: Per stage: name, epochs, how many of them the history has lost, final and best
            accuracy, seconds; where its batch norms were measured anew, also the accuracy with the
            moving averages.
        recipe: The recipe, as plain values.
        seconds: Training and evaluation time of all stages, also of interrupted runs. None where
            the history has lost an epoch.
        environment: Versions, commit, device and command.
    """

    accuracy: float
    best_accuracy: float | None
    float_accuracy: float | None
    stages: list[dict]
    recipe: dict
    seconds: float | None
    environment: dict

    def to_json(self) -> str:
        """Return the result as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def summarise(
    recipe: Recipe, histories: dict[str, list[dict]], surroundings: dict
) -> TrainingResult:
    """Return the result of a finished run.

    Args:
        recipe: Its settings.
        histories: What :func:`dlqat_tf.training.history.read_history` returns, by stage; the row
            of the last epoch must be there.
        surroundings: What :func:`environment` returned when the run started: while it takes its
            hours, the sources that it was started from may change.
    """
    stages = [_summary(name, rows) for name, rows in histories.items()]
    floats = [stage["final_accuracy"] for stage in stages if stage["name"] == "float"]
    return TrainingResult(
        accuracy=stages[-1]["final_accuracy"],
        best_accuracy=stages[-1]["best_accuracy"],
        float_accuracy=floats[0] if floats else None,
        stages=stages,
        recipe=recipe.plain(),
        seconds=_sum([stage["seconds"] for stage in stages]),
        environment=surroundings,
    )


def _summary(name: str, rows: list[dict]) -> dict:
    epochs = int(rows[-1]["epoch"]) + 1
    whole = len(rows) == epochs
    before = "moving_averages_accuracy"
    return {key: rows[-1][key] for key in (before,) if key in rows[-1]} | {
        "name": name,
        "epochs": epochs,
        "unrecorded_epochs": epochs - len(rows),
        "final_accuracy": rows[-1]["val_accuracy"],
        "best_accuracy": max(row["val_accuracy"] for row in rows) if whole else None,
        "seconds": _sum([row["seconds"] for row in rows]) if whole else None,
    }


def _sum(seconds: list[float | None]) -> float | None:
    known = [each for each in seconds if each is not None and math.isfinite(each)]
    return sum(known) if len(known) == len(seconds) else None


def environment() -> dict:
    """Return what a reader needs to place a figure: command, versions, commit and device."""
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _commit(),
        "device": _device(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide what is computed, by name."""
    return {name: metadata.version(name) for name in _VERSIONS}


def sources() -> str:
    """Return what names the sources of this package: its version, and a digest of its files."""
    digest = hashlib.sha256()
    for package in (dlqat_command, dlqat_tf):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\n" + file.read_bytes())
    return f"{dlqat_command.__version__}-{digest.hexdigest()[:10]}"


def _commit() -> str | None:
    """Return the commit of the package's files, None where no repository tracks them."""
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(file))
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, perhaps inside another repository, or no git
    return commit + ("-modified" if changed else "")


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
        return ", ".join(str(name) for name in names)
    return f"{cpu_name()}, {os.cpu_count()} logical cores"


def draw_curves(histories: dict[str, list[dict]], path: Path, *, measured_on: str) -> None:
    """Draw loss and accuracy of every epoch, one stage after the other.

    Args:
        histories: As for :func:`summarise`.
        path: The PNG file.
        measured_on: What the legend calls the images that each epoch ends with.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("loss", "top-1 accuracy"), strict=True
    ):
        first = 1
        for color, (name, rows) in zip(("tab:blue", "tab:orange"), histories.items(), strict=False):
            epochs = [first + row["epoch"] for row in rows]
            for prefix, style, where in (("", "--", "train"), ("val_", "-", measured_on)):
                values = [row[prefix + metric] for row in rows]
                axes.plot(epochs, values, style, color=color, marker=".", label=f"{name}, {where}")
            first = epochs[-1] + 1
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[1].set_ylim(bottom=0)
    figure.axes[1].legend(fontsize="small", loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
