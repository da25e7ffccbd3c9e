"""The command ``dlqat``: all commands by name."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from dlqat_command import (
    __version__,
    benchmark,
    census,
    demo,
    environment,
    export,
    figure1,
    parity,
    summary,
    training,
    website,
    zoo,
)
from dlqat_command.tree import Command, Group, function, run

RECIPES = (
    *("cifar10-cel", "cifar10-ams", "cifar10-gml", "cifar100-cel", "cifar100-ams", "cifar100-gml"),
    *("imagenet-cel", "imagenet-gml"),
)
TABLES = ("table1", "imagenet", "methods", "imagenet-methods")


def _recipe(name: str) -> Command:
    module = import_module(f"dlqat_command.recipes.{name.replace('-', '_')}")
    return training.command(module.PAPER, short=module.SHORT, description=module.__doc__)


def _table(name: str) -> Command:
    return import_module(f"dlqat_command.tables.{name.replace('-', '_')}").COMMAND


COMMANDS = Group(
    "Low-bit networks in Keras that run on a phone: train them, export them, prove the files.\n\n"
    "`dlqat --version` prints the version, `dlqat --tyro-write-completion bash FILE` writes what "
    "bash (or zsh, fish, tcsh) completes commands and flags with. `--import MODULE`, with every "
    "command, imports a module of yours first: methods and layers of your own.",
    {
        "demo": demo.COMMAND,
        "train": Group(
            "Train a network of the paper; each recipe shows what the paper and we measured.",
            {name: _recipe(name) for name in RECIPES},
        ),
        "table": Group(
            "Train the networks of one of the paper's tables, cell by cell, and report on them.",
            {name: _table(name) for name in TABLES},
        ),
        "figure1": function(figure1.figure1),
        "summary": function(summary.summary),
        "export": Group(
            "Export a trained model to a .tflite file, and such a file to a web page.",
            {
                "tflite": function(export.tflite),
                "lce": function(export.lce),
                "web": function(website.web),
            },
        ),
        "parity": function(parity.compare),
        "census": function(census.census),
        "benchmark": Group(
            "Measure the latency of .tflite files, on this host or an Android device.",
            {"android": function(benchmark.android)},
            default=function(benchmark.host),
        ),
        "zoo": Group(
            "Small trained networks that come with the package.",
            {"list": function(zoo.show), "add": function(zoo.add)},
        ),
        "env": function(environment.env),
    },
)


def _after_imports(arguments: list[str]) -> list[str]:
    """Import the modules that a command line names by ``--import``; return the rest of it.

    They are looked for in the working directory too, as ``python -m`` does. One that is not there
    ends the process with status 2.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    found, rest = first.parse_known_args(arguments)
    if found.modules:
        sys.path.insert(0, os.getcwd())
    for module in found.modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # something that it imports itself
            first.error(
                f"--import: expected the name of a module, without .py, in {os.getcwd()} or "
                f"installed. Received: {module!r}."
            )
    return rest


def main(*names: str) -> None:
    """Run ``dlqat``, or a script that stands for one of its commands.

    Args:
        names: Of that command, for example "train", "cifar10-gml"; none for ``dlqat`` itself.
    """
    arguments = sys.argv[1:]
    if not names and arguments == ["--version"]:
        print(f"dlqat {__version__}")
        return
    tree: Group | Command = COMMANDS
    for name in names:
        assert isinstance(tree, Group)
        tree = tree.commands[name]
    try:
        try:
            program = Path(sys.argv[0]).name if names else "dlqat"
            run(tree, _after_imports(arguments), program=program)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells have it
    except ImportError as error:  # of the environment: our own modules are tested together
        print(f"error: {error}\n`dlqat env` shows what is installed.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a command says what it leaves
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
