"""Commands in a tree: which of them a command line means, and running it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

Command = Callable[[Sequence[str]], Callable[..., object]]
"""Gives, for the rest of a command line, the function whose signature and docstring are flags and
help; they depend on the rest where one flag decides the defaults of others."""


@dataclass(frozen=True)
class Group:
    """Commands under one name.

    Attributes:
        description: What they have in common.
        commands: By name, in the order in which help lists them.
        default: The command that is meant where none is named.
    """

    description: str
    commands: Mapping[str, Group | Command]
    default: Command | None = None


def function(work: Callable[..., object]) -> Command:
    """Return the command that is one function, whatever the command line says."""
    return lambda arguments: work


def run(tree: Group | Command, arguments: Sequence[str], *, program: str) -> object:
    """Run the command that a command line means, or show help, or what is wrong with it.

    Args:
        tree: The commands.
        arguments: The command line without the program's name.
        program: The program's name, for help.

    Returns:
        What the command returns. Help and mistakes end the process, with status 0 and 2.
    """
    rest = list(arguments)
    while isinstance(tree, Group):
        name = rest[0].replace("_", "-") if rest else ""
        if name in tree.commands:
            tree, rest, program = tree.commands[name], rest[1:], f"{program} {name}"
        elif tree.default is not None:
            tree = tree.default
        else:
            # Only a whole tree knows which names there are: help, mistakes, completion.
            return _application(tree).cli(prog=program, description=tree.description, args=rest)
    config = (tyro.conf.PositionalMetavarFromFieldName,)
    return tyro.cli(_flowing(tree(rest)), prog=program, args=rest, config=config)


def _flowing(work: Callable[..., object]) -> Callable[..., object]:
    """Return a function whose docstring has a line for each paragraph and each item of a list.

    Tyro fills lines itself, but takes one that starts with a digit or a flag for a new one.
    """

    @functools.wraps(work)
    def flowing(*args: Any, **kwargs: Any) -> object:
        return work(*args, **kwargs)

    text = inspect.getdoc(work) or ""
    flowing.__doc__ = re.sub(r"(?<=\S)\n(?=[^\s-]|--)", " ", text)
    return flowing


def _application(group: Group) -> tyro.extras.SubcommandApp:
    application = tyro.extras.SubcommandApp()
    for name, node in group.commands.items():
        if isinstance(node, Group):
            application.command(_application(node), name=name, help=node.description)
        else:
            work: Any = node(())  # a function, whatever its type
            summary = (work.__doc__ or "").strip().partition("\n")[0]
            application.command(work, name=name, help=summary)
    return application
