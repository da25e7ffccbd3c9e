"""Every code block of README.md and of the documentation, run as it is printed."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import tyro

from dlqat_command import main
from dlqat_command.tree import Group
from dlqat_tf.export.files.micro import is_installed
from tests.docs import stand_ins

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Return language, code and line of each block of a page."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        words = match[2].strip("{ }").replace(".", " ").split()
        language = "not-run" if "not-run" in words else words[0] if words else "sh"
        line = text[: match.start(3)].count("\n")
        found.append((language, textwrap.dedent(match[3]), line))
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    stand_ins.write_files(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


with_python = [page for page in PAGES if any(each[0] == "python" for each in blocks(page))]
with_commands = [page for page in PAGES if any(each[0] == "sh" for each in blocks(page))]


@pytest.mark.parametrize("page", with_python, ids=named)
def test_python_runs_as_printed(page, folder):
    sources = [(code, line) for language, code, line in blocks(page) if language == "python"]
    words = set(re.findall(r"\w+", " ".join(code for code, _ in sources)))
    namespace = {each.__name__: each() for each in stand_ins.PYTHON if each.__name__ in words}
    for code, line in sources:
        exec(compile("\n" * line + code, page, "exec"), namespace)


@pytest.mark.parametrize("page", with_commands, ids=named)
def test_commands_run_or_are_understood(page, folder, files, monkeypatch):
    shutil.copytree(files, folder, dirs_exist_ok=True)
    for line in commands(page):
        words = words_of(line)
        if words is None:
            program = next(word for word in shlex.split(line) if "=" not in word)
            assert program in stand_ins.ELSEWHERE, line
        elif is_run(words):
            monkeypatch.setattr(sys, "argv", ["dlqat", *words])
            assert status_of(main.main) == 0, line
        else:
            understood(words)


def test_every_block_has_a_language_that_is_known():
    for page in PAGES:
        for language, _, line in blocks(page):
            assert language in ("python", "sh", *stand_ins.NOT_RUN), f"{page}:{line}: {language}"


def test_a_wrong_flag_is_not_understood():
    with pytest.raises(SystemExit):
        understood(["train", "cifar100-gml", "--no-such-flag"])
    with pytest.raises(ValueError, match="weight_bits"):
        understood(["train", "cifar100-gml", "--weight-bits", "9"])


def commands(page: Path) -> list[str]:
    """Return the command lines of a page, without comments, continued lines joined."""
    text = "\n".join(code for language, code, _ in blocks(page) if language == "sh")
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def words_of(line: str) -> list[str] | None:
    """Return what a line gives to ``dlqat``, None where it starts another program."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["dlqat"]:
        return words[1:]
    if words[:1] == ["python"] and (match := re.match(r"(recipes|export)/(\w+)\.py", words[1])):
        source = (ROOT / match[0]).read_text()
        return [*re.findall(r'"([\w-]+)"', source[source.index("main(") :]), *words[2:]]
    return None


def is_run(words: list[str] | None) -> bool:
    if words is None or {"android", "web"} & set(words):
        return False
    if "micro" in words and not is_installed():
        return False
    return words[0] in stand_ins.RUNS or " ".join(words[:2]) in stand_ins.RUNS


def status_of(run) -> int:
    try:
        run()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def understood(words: list[str]) -> None:
    """Parse a command line as ``dlqat`` does, and validate the recipe in it."""
    if words[0].startswith("--"):
        return
    node, rest = main.COMMANDS, list(words)
    while isinstance(node, Group):
        found = node.commands.get(rest[0].replace("_", "-") if rest else "", None)
        node, rest = (found, rest[1:]) if found else (node.default, rest)
    work = node(rest)

    @functools.wraps(work)
    def parsed(*args, **kwargs):
        return [*args, *kwargs.values()]

    config = (tyro.conf.PositionalMetavarFromFieldName,)
    for value in tyro.cli(parsed, args=rest, config=config):
        if hasattr(value, "validate"):
            value.validate()
