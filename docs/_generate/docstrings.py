"""Docstrings as Markdown: their math, cross-references and examples, which are Sphinx's."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import griffe

_MATH_BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*)\n((?:\1[ ]+.*\n|[ ]*\n(?=\1[ ]+\S))*)", re.M)
_MATH = re.compile(r":math:`([^`]+)`")
_REFERENCE = re.compile(r":(?:func|class|mod|meth|attr|data):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^([ ]*)(?:>>> .*\n(?:\1.*\S.*\n)*)+", re.M)


def to_markdown(text: str, link: Callable[[str], str]) -> str:
    """Return a docstring's text as Markdown.

    Args:
        text: The docstring, without common indentation.
        link: Gives the Markdown for the name in a cross-reference.
    """
    text = _MATH_BLOCK.sub(_block, text.rstrip() + "\n")
    text = _MATH.sub(lambda match: f"${' '.join(match[1].split())}$", text)
    text = _REFERENCE.sub(lambda match: link(match[1]), text)
    return _EXAMPLE.sub(_fenced, text.replace("``", "`"))


def _block(match: re.Match) -> str:
    indent = match[1]
    body = textwrap.dedent(match[2] + "\n" + textwrap.dedent(match[3])).strip()
    body = "\n".join(line for line in body.splitlines() if line.strip())
    if "&" in re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", "", body, flags=re.S) or "\\\\" in body:
        body = f"\\begin{{align*}}\n{body}\n\\end{{align*}}"
    return textwrap.indent(f"\n$$\n{body}\n$$\n\n", indent, lambda line: bool(line.strip()))


def _fenced(match: re.Match) -> str:
    return f"{match[1]}```pycon\n{match[0]}{match[1]}```\n"


class Sphinx(griffe.Extension):
    """Converts every docstring of a package when it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """See :class:`griffe.Extension`."""
        self._convert(pkg)

    def _convert(self, owner: griffe.Object) -> None:
        if owner.docstring:
            owner.docstring.value = to_markdown(
                owner.docstring.value, lambda name: _linked(owner, name)
            )
        for member in owner.members.values():
            if not member.is_alias:
                self._convert(member)


def _linked(owner: griffe.Object, name: str) -> str:
    """Return a link where the reference has that name, else the name as code."""
    shown = f"`{name.rpartition('.')[2]}`"
    try:
        path = name if name.startswith(owner.package.path) else owner.resolve(name)
        found = owner.modules_collection[path]
        found = found.final_target if found.is_alias else found
    except (KeyError, griffe.GriffeError):
        return shown
    path = found.canonical_path
    is_shown = found.has_docstring and not any(part.startswith("_") for part in path.split("."))
    return f"[{shown}][{path}]" if is_shown else shown
