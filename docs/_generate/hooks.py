"""What MkDocs calls while it builds the site: pages and pictures that are made from the package."""

from __future__ import annotations

import contextlib
import html
import importlib
import inspect
import io
import os
import re
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mkdocs.structure.files import File

import dlqat_tf.methods
import mathematics
import messages
import methods
import pictures
from areas import AREAS
from dlqat_command.main import COMMANDS
from dlqat_command.tree import Group, run
from docstrings import to_markdown

_PLACEHOLDER = re.compile(r"^\{\{ (\w+)((?: [\w.-]+)*) \}\}$", re.M)
_PACKAGES = ("dlqat_tf", "dlqat_command")


def on_config(config):
    """Fill in the parts of the navigation that are lists of what the package has."""
    sections = {name: entry for each in config.nav for name, entry in each.items()}
    sections["Methods"] += [f"methods/{name}.md" for name in dlqat_tf.methods.names()]
    sections["Reference"] += [{"dlqat (command)": "reference/command.md"}]
    sections["Reference"] += [{name: _page_of(name)} for name in modules()]
    return config


def on_files(files, config):
    """Add the generated pages, and the pictures."""

    def add(path, content):
        files.append(File.generated(config, path, content=content))

    for name in modules():
        add(_page_of(name), _reference(name))
    add("reference/command.md", _commands())
    add("networks.md", (ROOT / "results" / "models.md").read_text())
    add("larq_zoo.md", (ROOT / "results" / "larq_zoo.md").read_text())
    for picture in ("figure1/figure1.png", "gml_margin/cifar16.png", "gml_margin/imagenet64.png"):
        add(picture, (ROOT / "results" / picture).read_bytes())
    for name in dlqat_tf.methods.names():
        add(f"methods/pictures/{name}.svg", methods.picture(name))
        if files.get_file_from_path(f"methods/{name}.md") is None:
            add(f"methods/{name}.md", f"# {name}\n\n{{{{ method {name} }}}}\n")
    for name, draw in (pictures.INTEGERS | pictures.NETWORK).items():
        add(f"pictures/{name}.svg", pictures.svg(draw()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replace lines of the form "{{ name arguments }}" by what they stand for."""
    return _PLACEHOLDER.sub(lambda match: PLACEHOLDERS[match[1]](*match[2].split()), markdown)


def on_page_content(html, page, config, files):
    """Turn formulas into MathML."""
    return mathematics.with_formulas(html)


def modules() -> list[str]:
    """Return the public modules that have something to say, the package itself first."""
    found = []
    for path in sorted((ROOT / "dlqat_tf").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    # What training shares with its command line, without TensorFlow.
    return [*sorted(found), "dlqat_command.recipe"]


def _page_of(module: str) -> str:
    return (
        f"reference/{module.replace('.', '/')}.md" if module != "dlqat_tf" else "reference/index.md"
    )


def _reference(name: str) -> str:
    """Return the page of a module; a package has a table of what it offers from its modules."""
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", ()) if hasattr(module, "__path__") else ()
    own = [each for each in offered if getattr(getattr(module, each), "__module__", "") == name]
    members = f"[{', '.join(own)}]" if own else "false"
    table = _names(module, [each for each in offered if each not in own])
    options = ["heading_level: 1", "show_root_heading: true"]
    options += [f"members: {members}"] if hasattr(module, "__path__") else []
    indented = "".join(f"      {each}\n" for each in options)
    return f"::: {name}\n    options:\n{indented}\n{table}\n"


def _names(module, names: list[str]) -> str:
    """Return a table of names of a module, with links and first sentences."""
    lines = ["| name | what it is |", "|---|---|"]
    for name in names:
        value = getattr(module, name)
        if inspect.ismodule(value):
            path = value.__name__
        elif callable(value):
            path = f"{value.__module__}.{value.__qualname__}"
        else:
            continue
        first = (inspect.getdoc(value) or "").partition("\n")[0]
        text = to_markdown(first, lambda each: f"`{each.rpartition('.')[2]}`").strip()
        lines.append(f"| [`{name}`][{path}] | {text} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _commands() -> str:
    """Return the page of the command, what each ``--help`` prints."""
    parts = ["# The command `dlqat`", COMMANDS.description]

    def add(names: tuple[str, ...], node) -> None:
        if isinstance(node, Group):
            for name, each in node.commands.items():
                add((*names, name), each)
            if node.default is not None:
                add(names, node.default)
            return
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            run(node, ["--help"], program=" ".join(("dlqat", *names)))
        text = re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())
        parts.append(f"## dlqat {' '.join(names)}\n\n```text\n{text.strip()}\n```")

    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        add((), COMMANDS)
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return "\n\n".join(parts) + "\n"


def _results() -> str:
    """Return what results/README.md has, but for its title and first words."""
    text = (ROOT / "results" / "README.md").read_text()
    return text[text.index("\n## ") :].strip().replace("](models.md)", "](networks.md)")


def _messages() -> str:
    """Return all messages, by area and module."""
    trees = messages.parsed(ROOT, _PACKAGES)
    exceptions = messages.exceptions_of(trees)
    found = [each for name in trees for each in messages.messages_of(name, trees[name], exceptions)]
    parts = []
    for prefixes, title, text in AREAS:
        of_area = [each for each in found if area_of(each.module) == prefixes]
        if not of_area:
            continue
        parts.append(f"## {title}\n\n{text}")
        for module, group in groupby(of_area, key=lambda each: each.module):
            parts.append(f"### In `{module}`")
            parts += [_message(each) for each in group]
    return "\n\n".join(parts)


def _message(each: messages.Message) -> str:
    text = _code(each.text.strip().replace("\n", "<br>")) or "(no text of its own)"
    meaning = f'<p class="meaning">{_code(html.escape(each.meaning))}</p>' if each.meaning else ""
    where = f"<code>{each.exception}</code> in <code>{each.where or each.module}</code>"
    return (
        f'<div class="message"><p class="where">{where}</p><blockquote>{text}</blockquote>'
        f"{meaning}</div>"
    )


def _code(text: str) -> str:
    return re.sub(r"(`{1,2})(.+?)\1", r"<code>\2</code>", text)


def area_of(module: str) -> tuple[str, ...]:
    """Return the prefixes of the area that a module belongs to: those of the longest match."""
    matches = [
        (len(prefix), prefixes)
        for prefixes, _, _ in AREAS
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.") or not prefix
    ]
    return max(matches)[1]


PLACEHOLDERS = {
    "measured": methods.measured,
    "messages": _messages,
    "method": methods.section,
    "methods": methods.overview,
    "results": _results,
}
"""What pages may ask for, by name."""
