"""Every error that the package raises, read from its sources."""

from __future__ import annotations

import ast
import builtins
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIVEN = "error of the caller's kind"
"""Name of an exception whose class is an argument."""

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Message:
    """A place where an exception is made.

    Attributes:
        module: Dotted name of the module.
        where: Function or class around it, "" for the module itself.
        line: Line in the file.
        exception: Name of its class.
        text: HTML of the message; ``<var>`` where a value comes in.
        meaning: What the docstring around it says about the exception, "" where it says nothing.
    """

    module: str
    where: str
    line: int
    exception: str
    text: str
    meaning: str


def exceptions_of(trees: dict[str, ast.Module]) -> set[str]:
    """Return the names of exception classes: Python's, and those that the modules define."""
    known = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    } | {"InvalidArgumentError"}
    classes = [
        node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    found = True
    while found:
        found = {
            each.name
            for each in classes
            if each.name not in known and any(_name(base) in known for base in each.bases)
        }
        known |= found
    return known


def parsed(root: Path, packages: tuple[str, ...]) -> dict[str, ast.Module]:
    """Return the syntax trees of packages by the dotted names of their modules."""
    trees = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[name] = ast.parse(path.read_text())
    return trees


def messages_of(module: str, tree: ast.Module, exceptions: set[str]) -> list[Message]:
    """Return the exceptions that a module makes, in the order of its lines."""
    constants = dict(_assigned(tree.body))
    raised = {node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    found = []

    def visit(node: ast.AST, around: tuple[ast.AST, ...]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            around = (*around, node)
        functions = [each for each in around if isinstance(each, ast.FunctionDef)]
        name = _name(node.func) if isinstance(node, ast.Call) else ""
        is_given = bool(functions) and name in _parameters(functions[-1])
        if name in exceptions or (is_given and node in raised):
            text = node.args[0] if node.args else ast.Constant("")
            local = dict(_assigned(ast.walk(functions[-1]))) if functions else {}
            found.append(
                Message(
                    module,
                    ".".join(each.name for each in around),
                    node.lineno,
                    GIVEN if is_given else name,
                    _rendered(text, constants | local),
                    _meaning(around, name),
                )
            )
        for child in ast.iter_child_nodes(node):
            visit(child, around)

    visit(tree, ())
    return found


def _parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    return {each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs}


def _assigned(nodes) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                yield target.id, node.value


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _rendered(node: ast.expr, names: dict[str, ast.expr], depth: int = 0) -> str:
    """Return a message as HTML: its words, and what comes in at run time in italics."""
    match node:
        case ast.Constant(value=value):
            return html.escape(str(value), quote=False)
        case ast.JoinedStr(values=values):
            return "".join(_rendered(value, names, depth) for value in values)
        case ast.FormattedValue(value=value):
            return _rendered(value, names, depth)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _rendered(left, names, depth) + _rendered(right, names, depth)
        case ast.IfExp(body=body, orelse=other):
            either = [_rendered(each, names, depth) for each in (body, other)]
            shown = [each for each in either if each]
            return shown[0] if len(shown) == 1 else f"[{shown[0]} | {shown[1]}]" if shown else ""
        case ast.Name(id=name) if name in names and depth < 3 and _has_words(names[name]):
            return _rendered(names[name], names, depth + 1)
        case ast.BoolOp(values=values) if depth < 3 and any(_has_words(each) for each in values):
            return _rendered(values[-1], names, depth)
        case ast.Call(func=ast.Attribute(attr="join"), args=[inner]):
            return f"<var>{html.escape(_words(inner))}, …</var>"
    return f"<var>{html.escape(_words(node))}</var>"


def _has_words(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _has_words(node.left) or _has_words(node.right)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text or isinstance(node, (ast.JoinedStr, ast.IfExp))


def _words(node: ast.expr) -> str:
    """Return a short name of a value."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").replace("_", " ")
        case ast.Call(func=ast.Name(id="len"), args=[inner]):
            return f"number of {_words(inner)}"
        case ast.Call(func=ast.Name(id=name), args=[inner, *_]) if hasattr(builtins, name):
            return _words(inner)
        case ast.Call(func=ast.Name(id="type")):
            return "type"
        case ast.Call(func=ast.Attribute(value=value, attr="numpy" | "resolve" | "absolute")):
            return _words(value)
        case ast.Call(func=ast.Attribute(value=value, attr="__name__")):
            return _words(value)
        case ast.Subscript(value=value):
            return _words(value)
        case ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner):
            return _words(inner)
        case ast.Starred(value=value):
            return _words(value)
    return "…"


def _meaning(around: tuple[ast.AST, ...], exception: str) -> str:
    """Return what the innermost docstring that speaks of an exception says of it."""
    for node in reversed(around):
        text = ast.get_docstring(node) or ""
        _, _, raises = text.partition("\nRaises:\n")
        pattern = rf"^    (?:[\w.]*\.)?{exception}: (.*(?:\n        .*)*)"
        if found := re.search(pattern, raises, re.M):
            return _SPACE.sub(" ", found[1])
    return ""
