"""What `dlqat env` finds among distributions and modules that are there but not as they must be."""

import sys

import pytest

from dlqat_command import environment

METADATA = """Metadata-Version: 2.1
Name: dlqat_tf
Version: 9.9
Requires-Python: {python}
Requires-Dist: numpy{numpy}
Requires-Dist: no-such-distribution>=3
Requires-Dist: not-of-this-extra; extra == "test"
"""


def found(findings):
    return {each.name: (each.found, each.problem) for each in findings}


@pytest.mark.parametrize(
    ("python", "numpy", "problems"),
    [(">=3.10", "<99", ("", "")), ("<3", "<1", ("needs Python <3", 'run `pip install "numpy<1"`'))],
)
def test_versions_are_compared_with_what_is_declared(
    monkeypatch, tmp_path, python, numpy, problems
):
    folder = tmp_path / "dlqat_tf-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA.format(python=python, numpy=numpy))
    monkeypatch.syspath_prepend(tmp_path)
    versions = found(environment.versions())
    assert versions["dlqat_tf"] == ("9.9", "")
    assert (versions["python"][1], versions["numpy"][1]) == problems
    remedy = 'run `pip install "no-such-distribution>=3"`'
    assert versions["no-such-distribution"] == ("not installed", remedy)
    assert "not-of-this-extra" not in versions


def test_a_package_that_is_not_installed_is_no_failure_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    versions = found(environment.versions())
    assert versions["dlqat_tf"][0] == "not installed"
    assert "pip install ." in versions["dlqat_tf"][1]


@pytest.mark.parametrize(
    ("value", "problem"), [(None, ""), ("1", ""), ("0", 'unset it or set it to "1"')]
)
def test_the_variable_that_chooses_keras(monkeypatch, value, problem):
    if value is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    assert environment.legacy_keras().problem == problem


def test_imports_that_fail_and_that_end_python(monkeypatch, tmp_path):
    (tmp_path / "dlqat_tf.py").write_text("raise ValueError('of two\\nlines')")
    (tmp_path / "larq.py").write_text("import os; os._exit(3)")
    keras_2 = "import os; assert os.environ['TF_USE_LEGACY_KERAS'] == '1'; print('a note')"
    (tmp_path / "larq_compute_engine.py").write_text(keras_2)
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    (tmp_path / "tensorflow_model_optimization.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    assert found(environment.imports()) == {
        "import dlqat_tf": ("fails", "ValueError: of two lines"),
        "import larq": ("fails", "ended Python, status 3"),
        "import larq_compute_engine": ("works", ""),
        "import tensorflow_model_optimization": (
            "fails",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
    }


@pytest.mark.parametrize(("origin", "right"), [("tf_keras.src", True), ("keras.src", False)])
def test_keras_3_is_a_problem(monkeypatch, tmp_path, origin, right):
    for name in environment._IMPORTS:
        (tmp_path / f"{name}.py").write_text("")
    content = f"class keras:\n    Model = type('Model', (), {{'__module__': {origin!r}}})\n"
    (tmp_path / "tensorflow.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert (found(environment.imports())["tf.keras"][1] == "") is right


def test_status_says_whether_anything_is_wrong(monkeypatch, capsys):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(environment, "_IMPORTS", ())
    with pytest.raises(SystemExit) as ending:
        environment.env()
    assert ending.value.code == 1
    assert 'unset it or set it to "1"' in capsys.readouterr().out
