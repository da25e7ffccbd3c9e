"""Which commit a result names: that of the package's own files, and no other."""

import subprocess

import pytest

from dlqat_tf.training import results


@pytest.fixture
def project(tmp_path):
    """A repository with one commit, the package in its .venv."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "README").write_text("a project\n")
    commit(tmp_path, "README")
    for module in ("quantizers/sat.py", "training/results.py"):
        file = tmp_path / ".venv" / "dlqat_tf" / module
        file.parent.mkdir(parents=True)
        file.write_text("first\n")
    return tmp_path


def git(folder, *arguments):
    author = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    command = ["git", "-C", folder, *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder, *files):
    git(folder, "add", "--force", *files)
    git(folder, "commit", "--quiet", "--message", "a change")


@pytest.mark.parametrize("ignored", ["", ".venv\n"])
def test_an_installed_package_has_no_commit_of_the_project_around_it(project, monkeypatch, ignored):
    (project / ".gitignore").write_text(ignored)
    monkeypatch.setattr(results, "__file__", f"{project}/.venv/dlqat_tf/training/results.py")
    assert results._commit() is None
    commit(project, ".venv")
    assert results._commit() == git(project, "rev-parse", "--short=10", "HEAD")


def test_changes_anywhere_in_the_package_are_said(project, monkeypatch):
    monkeypatch.setattr(results, "__file__", f"{project}/.venv/dlqat_tf/training/results.py")
    commit(project, ".venv")
    (project / "README").write_text("a better project\n")
    head = git(project, "rev-parse", "--short=10", "HEAD")
    assert results._commit() == head
    (project / ".venv" / "dlqat_tf" / "quantizers" / "sat.py").write_text("second\n")
    assert results._commit() == f"{head}-modified"


def test_a_package_of_other_sources_is_another_one(tmp_path, monkeypatch):
    packages = []
    for name in ("dlqat_command", "dlqat_tf"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "__init__.py"
        file.write_text("one = 1\n")
        packages.append(file)
        monkeypatch.setattr(getattr(results, name), "__file__", str(file))
    before = results.sources()
    (tmp_path / "dlqat_tf" / "notes.txt").touch()
    assert results.sources() == before
    for file in packages:
        file.write_text("one = 2\n")
        assert results.sources() != before
        file.write_text("one = 1\n")
    packages[1].rename(packages[1].with_name("other.py"))
    assert results.sources() != before
