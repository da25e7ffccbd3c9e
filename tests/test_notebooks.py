"""The notebooks run, with parameters that make them short."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "notebooks"
CELL = re.compile(r"^# %%(.*)\n", re.M)


def run(name, **parameters):
    """Run a notebook, as papermill would: the parameters follow the cell that is tagged so.

    Returns its variables, and what its last lines show.
    """
    _, *parts = CELL.split((FOLDER / f"{name}.py").read_text())
    variables, shown = {"__name__": "__main__"}, []
    for title, source in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in title:
            assert all(line.startswith("#") or not line for line in source.splitlines())
            continue
        exec(compile(source, f"{name}.py", "exec"), variables)
        if json.loads(title.partition("tags=")[2] or "[]") == ["parameters"]:
            assert parameters.keys() <= variables.keys()
            variables.update(parameters)
        last = source.strip().splitlines()[-1]
        if last.startswith("plots."):  # a notebook shows the value of a cell's last expression
            shown.append(eval(last, variables))
    assert all(isinstance(each, Figure) for each in shown)
    return variables, len(shown)


def test_digits(tmp_path):
    found, pictures = run("digits", width=4, float_epochs=2, epochs=1, folder=tmp_path)
    assert (
        found["parity"].failures(trained_agreement=90.0, keras_agreement=97.0, accuracy=5.0) == []
    )
    assert found["float_accuracy"] > 0.3  # chance is 0.1
    assert pictures == 7
    assert (tmp_path / "digits.tflite").is_file()
    assert list((tmp_path / "tensorboard").iterdir())


def test_mobilenet_v2(tmp_path):
    found, pictures = run(
        "mobilenet_v2", images_used=128, float_epochs=1, epochs=1, folder=tmp_path
    )
    assert found["parity"].agreement["simulation_file"] == 100.0
    assert found["parity"].first_diverging is None
    assert found["low_bit"].get_layer("expanded_conv_depthwise").depthwise_quantizer.bits == 8
    assert found["low_bit"].get_layer("block_1_expand").kernel_quantizer.bits == 4
    assert pictures == 3


def test_losses():
    found, pictures = run("losses", width=4, epochs=3, tsne_iterations=250)
    assert found["statistics"].keys() == {"CEL", "AMS", "GML"}
    assert [np.shape(points) for _, points in found["panels"]] == [(360, 2)] * 3
    assert 0 < found["mixture"].probability < 1
    assert pictures == 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_are_in_jupytexts_percent_format(path):
    text = path.read_text()
    header, _, rest = text.removeprefix("# ---\n").partition("# ---\n")
    assert all(line.startswith("#") for line in header.splitlines())
    assert "#       format_name: percent\n" in header
    assert rest.strip().startswith("# %% [markdown]\n# # ")  # a title comes first
    assert text.count('tags=["parameters"]') == 1
    assert {test.removeprefix("test_") for test in globals()} >= {path.stem}  # and it is run
