"""The wheel: built from a copy of the sources, unpacked, and used without the sources."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dlqat_command
import dlqat_tf

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dlqat_tf", "dlqat_command"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    build = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def run(installed, folder, code, *arguments):
    """Run code as a console script of the installed wheel would be run, elsewhere."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(installed), "COLUMNS": "200"},
    )


ENTRY_POINT = """
import sys
from importlib.metadata import distribution

(command,) = distribution("dlqat_tf").entry_points.select(group="console_scripts")
sys.argv[0] = command.name
sys.exit(command.load()())
"""


def test_the_wheel_holds_what_it_should(installed):
    for name in (
        "dlqat_tf/py.typed",
        "dlqat_command/py.typed",
        "dlqat_command/recipes/__init__.py",
        "dlqat_tf/export/files/page/index.html",
        "dlqat_tf/zoo/networks/digits_w1a2/network.npz",
        "dlqat_tf/zoo/networks/digits_w1a2/int8.tflite",
    ):
        assert (installed / name).is_file(), name
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "dlqat_tf",
        "dlqat_command",
    }


def test_the_installed_command_trains_exports_and_proves(installed, tmp_path):
    """A minute's demo in one epoch: what an installed package needs of its sources shows here."""
    small = ("--width", "2", "--images-per-epoch", "64", "--batch-size", "32", "--stages", "1")
    small += ("--activation-bits", "3")  # the table names what was trained
    done = run(installed, tmp_path, ENTRY_POINT, "demo", "--budget", "smoke", *small)
    assert done.stderr == ""
    assert "W1A3, binary kernels" in done.stdout
    for name in ("model.keras", "model.tflite", "model_lce.tflite"):
        assert (tmp_path / "runs" / "demo_smoke" / name).is_file()


def test_the_installed_command_knows_its_environment(installed, tmp_path):
    done = run(installed, tmp_path, ENTRY_POINT, "env")
    assert f"dlqat_tf {dlqat_tf.__version__}" in re.sub(r"\W*│\W*", " ", done.stdout)
    assert "nothing is wrong" in done.stdout
    assert done.returncode == 0


def test_the_package_is_the_installed_one(installed, tmp_path):
    code = "import dlqat_tf, dlqat_command; print(dlqat_tf.__file__, dlqat_command.__file__)"
    files = run(installed, tmp_path, code).stdout.split()
    assert files == [
        str(installed / name / "__init__.py") for name in ("dlqat_tf", "dlqat_command")
    ]


def test_there_is_one_version():
    version = dlqat_command.__version__
    assert dlqat_tf.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version
