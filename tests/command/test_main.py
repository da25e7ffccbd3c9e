"""The command line as a user meets it; what help imports shows in a Python of its own only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlqat_command import __version__
from dlqat_command.main import COMMANDS, main
from dlqat_command.tree import Group

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("recipes/*.py"), *ROOT.glob("export/*.py")])
HEAVY = (
    "tensorflow",
    "keras",
    "tf_keras",
    "larq",
    "tensorflow_datasets",
    "sklearn",
    "numpy",
    "scipy",
)
SHOW_HELP = f"""
import sys
from dlqat_command.main import main

try:
    main()
finally:
    print("imported:", *sorted(set({HEAVY}) & set(sys.modules)))
"""


def names(tree, before=()):
    """Yield the names of all commands and groups."""
    yield before
    if isinstance(tree, Group):
        for name, command in tree.commands.items():
            yield from names(command, (*before, name))


def python(*arguments, **environment):
    environment = {**os.environ, "COLUMNS": "100", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("command", list(names(COMMANDS)), ids=lambda command: "-".join(command))
def test_help_imports_nothing_heavy(command):
    done = python("-c", SHOW_HELP, *command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: {' '.join(['dlqat', *command])} [-h]" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"


def test_help_that_imports_would_be_seen():
    done = python("-c", SHOW_HELP.replace("main()", "import numpy"))
    assert done.stdout.splitlines()[-1] == "imported: numpy"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_stand_for_commands(script):
    done = python(script, "--help", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name} [-h]")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            ["train", "cifar100-gml"],
            ["Paper (Table 1): 73.6 % float, 71.3 % W1A2", "cifar100_gml)"],
        ),
        (["train", "cifar10_ams"], ["--weight-bits BITS", "runs/cifar10_ams)"]),
        (["train", "imagenet-cel", "--budget", "short"], ["runs/imagenet_cel_short", "6400"]),
        (["table", "imagenet", "--budget", "smoke"], ["--cells", "runs/imagenet_table_smoke"]),
        (["demo"], ["scikit-learn's handwritten digits", "runs/demo"]),
        (["parity"], ["MODEL FILE", "--data DATASET"]),
        (["benchmark"], ["dlqat benchmark android", "--no-xnnpack"]),
        (["benchmark", "android"], ["--delegate {xnnpack,cpu,gpu,nnapi}"]),
    ],
)
def test_help_says_what_a_command_takes(monkeypatch, capsys, command, shown):
    monkeypatch.setattr(sys, "argv", ["dlqat", *command, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 0
    printed = capsys.readouterr().out
    for text in shown:
        assert text in printed


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dlqat", "--version"])
    main()
    assert capsys.readouterr().out == f"dlqat {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["train", "cifar1000-gml"], "cifar1000-gml"),
        (["train", "cifar10-gml", "--weigth-bits", "1"], "--weight-bits"),
        (["export"], "tflite"),
    ],
)
def test_mistakes_are_explained(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["dlqat", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_completion_knows_commands_and_flags(monkeypatch, tmp_path):
    script = tmp_path / "completion"
    monkeypatch.setattr(sys, "argv", ["dlqat", "--tyro-write-completion", "bash", str(script)])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not ending.value.code
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text()
    for word in ("cifar100-gml", "--weight-bits", "tflite", "android", "--delegate"):
        assert word in text


def test_a_reader_may_stop_reading():
    command = [sys.executable, "-m", "dlqat_command", "train", "cifar100-gml", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_every_recipe_and_table_is_a_command():
    for group, folder in (("train", "recipes"), ("table", "tables")):
        files = (ROOT / "dlqat_command" / folder).glob("[!_]*.py")
        modules = {file.stem.replace("_", "-") for file in files}
        assert set(COMMANDS.commands[group].commands) == modules


def test_a_missing_dependency_is_named(tmp_path):
    (tmp_path / "larq.py").write_text("raise ImportError('no larq here')")
    done = python("-m", "dlqat_command", "census", "x", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2
    assert done.stderr.endswith("error: no larq here\n`dlqat env` shows what is installed.\n")


@pytest.fixture
def own_method(tmp_path):
    """A folder with a module that registers a method with a quantizer of its own."""
    (tmp_path / "own.py").write_text(
        "import tensorflow as tf\n"
        "from dlqat_tf import methods\n"
        "from dlqat_tf.quantizers import DoReFaWeights\n"
        "Weights = type('Weights', (DoReFaWeights,), {})\n"
        "tf.keras.utils.register_keras_serializable('own')(Weights)\n"
        "methods.register(methods.Method('own', 'here', Weights, recipe={'epochs': 1}))\n"
    )
    return tmp_path


def dlqat(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-P", "-m", "dlqat_command", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_module_of_ones_own_is_imported_first(own_method):
    train = ["train", "cifar10-cel", "--import", "own", "--method", "own", "--dataset", "digits"]
    small = ["--width", "2", "--stages", "1", "--images-per-epoch", "64", "--batch-size", "64"]
    trained = dlqat(own_method, *train, *small, "--residual-bits", "8", "--output", "run")
    assert trained.returncode == 0, trained.stderr
    assert "quantized stage: 1 epoch of" in trained.stdout  # of the method's recipe
    exported = dlqat(own_method, "export", "tflite", "run/model.keras", "f.tflite", "--import=own")
    assert exported.returncode == 0, exported.stderr
    alone = dlqat(own_method, "export", "tflite", "run/model.keras", "g.tflite")
    assert alone.returncode == 2
    assert "give --import MODULE" in alone.stderr
    unknown = dlqat(own_method, "census", "--import", "onw", "f.tflite")
    assert unknown.returncode == 2
    assert unknown.stderr.endswith(f"in {own_method} or installed. Received: 'onw'.\n")
    (own_method / "broken.py").write_text("import onw")
    broken = dlqat(own_method, "census", "--import", "broken", "f.tflite")
    assert broken.returncode == 2
    assert "No module named 'onw'" in broken.stderr
