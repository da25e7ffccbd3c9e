"""What is installed, and what is wrong with it: ``dlqat env``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

_DISTRIBUTION = "dlqat_tf"
_LEGACY = "TF_USE_LEGACY_KERAS"
_IMPORTS = ("dlqat_tf", "larq", "larq_compute_engine", "tensorflow_model_optimization")
# In a process of its own: a library that is wrong for the processor ends it.
_PROBE = """
import importlib, sys
sys.path = [path for path in sys.path if path]  # as for a command, without the current folder
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}".replace("\\n", " ")
    else:
        outcome = ""
    print(f"\\n{name}\\t{outcome}", flush=True)
    if name == "dlqat_tf" and not outcome:
        import tensorflow
        print(f"tf.keras\\t{tensorflow.keras.Model.__module__.split('.')[0]}", flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        found: Its version or value.
        problem: What is wrong and what to do, empty where nothing is.
    """

    name: str
    found: str
    problem: str = ""


def env() -> None:
    """Show the versions of what matters, and what is wrong with them.

    Exit status: 0 where everything is as it must be, 1 otherwise.
    """
    from rich.console import Console
    from rich.table import Table

    findings = [*versions(), legacy_keras(), *imports()]
    table = Table()
    table.add_column("what", no_wrap=True)
    for heading in ("found", "problem"):
        table.add_column(heading, overflow="fold")
    for each in findings:
        table.add_row(each.name, each.found, each.problem and f"[red]{each.problem}[/red]")
    Console().print(table)
    problems = [each for each in findings if each.problem]
    print(f"problems: {len(problems)}" if problems else "nothing is wrong")
    sys.exit(1 if problems else 0)


def versions() -> Iterator[Finding]:
    """Compare Python and each dependency with what the installed package declares."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    yield Finding("platform", platform.platform())
    try:
        declared = metadata.metadata(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Finding("python", platform.python_version())
        yield Finding(_DISTRIBUTION, "not installed", "run `pip install .` where pyproject.toml is")
        return
    python = platform.python_version()
    wanted = SpecifierSet(declared["Requires-Python"])
    yield Finding("python", python, "" if python in wanted else f"needs Python {wanted}")
    yield Finding(_DISTRIBUTION, declared["Version"])
    for line in metadata.requires(_DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield _dependency(requirement.name, requirement.specifier)


def _dependency(name: str, wanted: SpecifierSet) -> Finding:
    remedy = f'run `pip install "{name}{wanted}"`'
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", remedy)
    return Finding(name, found, "" if wanted.contains(found, prereleases=True) else remedy)


def legacy_keras() -> Finding:
    """Look at the variable that makes tf.keras Keras 2, which larq and TF-MOT need."""
    value = os.environ.get(_LEGACY)
    if value is None:
        return Finding(_LEGACY, "not set: dlqat_tf sets it where it is imported first")
    right = value in ("1", "true", "True")  # as TensorFlow reads it
    return Finding(_LEGACY, value, "" if right else 'unset it or set it to "1"')


def imports() -> Iterator[Finding]:
    """Import what the package stands on, in another process."""
    names: tuple[str, ...] = _IMPORTS
    while names:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, *names],
            capture_output=True,
            text=True,
            check=False,
            env={_LEGACY: "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        lines = [line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
        outcomes = dict(lines)
        for name in names:
            names = names[1:]
            if name not in outcomes:  # and start another process for the rest
                yield Finding(f"import {name}", "fails", f"ended Python, status {done.returncode}")
                break
            problem = outcomes[name]
            yield Finding(f"import {name}", "fails" if problem else "works", problem)
        keras = outcomes.get("tf.keras")
        if keras is not None:
            right = keras == "tf_keras"
            yield Finding("tf.keras", keras, "" if right else "must be tf_keras, which is Keras 2")
