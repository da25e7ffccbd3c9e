import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_command.main import main
from dlqat_tf import CGPACT
from tests.export.networks import convolution, randomize, siamese_network

SCRIPTS = Path(__file__).parents[2] / "export"
layers = tf.keras.layers
_EXPORTED = ("missing.keras", "out.tflite", "out.snapped.keras", "out.cc", "./out.h")
_COMPARED = ("missing.keras", "o.tflite")


def run(monkeypatch, script, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return exit_.value.code or 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    inputs = tf.keras.Input((8, 8, 1))
    x = CGPACT(2, 2.0)(convolution(inputs, 32, 3, weight_bits=8))
    x = CGPACT(8, 2.0)(convolution(x, 8, 3, weight_bits=1))
    model = tf.keras.Model(inputs, dlqat_tf.LinearHead(10)(layers.Flatten()(x)))
    folder = tmp_path_factory.mktemp("saved")
    randomize(model).save(folder / "model.keras")
    model.save(folder / "saved_model", save_format="tf")
    return folder


@pytest.mark.parametrize("script", ["to_tflite.py", "to_lce.py"])
@pytest.mark.parametrize("source", ["model.keras", "saved_model"])
def test_export_and_proof(monkeypatch, saved, tmp_path, script, source, capsys):
    output = tmp_path / "model.tflite"
    arguments = (saved / source, output, *(["--trust"] if source == "saved_model" else []))
    assert run(monkeypatch, script, *arguments) == 0
    assert "biases moved" in capsys.readouterr().out
    assert run(monkeypatch, script, *arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert run(monkeypatch, script, *arguments, "--force") == 0
    snapped = output.with_suffix(".snapped.keras")
    proof = tmp_path / "proof.json"
    arguments = (snapped, output, "--data", "digits", "--images", 50, "--json", proof)
    assert run(monkeypatch, "parity.py", *arguments) == 0
    assert json.loads(proof.read_text())["images"] == 50


def test_reports_are_kept_unless_forced(monkeypatch, saved, tmp_path, capsys):
    output, report = tmp_path / "model.tflite", tmp_path / "report.json"
    report.write_text("mine")
    assert run(monkeypatch, "to_tflite.py", saved / "model.keras", output, "--json", report) == 2
    assert "--force" in capsys.readouterr().err
    assert not output.exists()
    arguments = (saved / "model.keras", output, "--json", report, "--force")
    assert run(monkeypatch, "to_tflite.py", *arguments) == 0
    assert json.loads(report.read_text())["path"] == str(output)
    report.write_text("mine")
    arguments = (saved / "model.keras", output, "--data", "digits", "--images", 5, "--json", report)
    assert run(monkeypatch, "parity.py", *arguments) == 2
    assert report.read_text() == "mine"
    run(monkeypatch, "parity.py", *arguments, "--force")
    assert json.loads(report.read_text())["images"] == 5


def test_parity_fails_where_the_file_is_of_other_weights(monkeypatch, saved, tmp_path, capsys):
    output = tmp_path / "model.tflite"
    run(monkeypatch, "to_tflite.py", saved / "model.keras", output)
    model = tf.keras.models.load_model(saved / "model.keras")
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.permutation(weight.ravel()).reshape(weight.shape) for weight in model.get_weights()]
    )
    model.save(tmp_path / "other.keras")
    arguments = (tmp_path / "other.keras", output, "--data", "digits", "--images", 20)
    assert run(monkeypatch, "parity.py", *arguments) == 1
    assert "failed: " in capsys.readouterr().err


def test_export_compares_trained_snapped_and_file(monkeypatch, saved, tmp_path, capsys):
    output, report = tmp_path / "model.tflite", tmp_path / "report.json"
    arguments = (saved / "model.keras", output, "--data", "digits", "--images", 30)
    assert run(monkeypatch, "to_tflite.py", *arguments, "--json", report) == 0
    assert "trained - file" in capsys.readouterr().out
    proof = json.loads(report.read_text())["proof"]
    assert proof["images"] == 30
    assert proof["top1"].keys() == {"trained", "keras", "simulation", "file"}
    assert run(monkeypatch, "to_tflite.py", *arguments, "--force", "--no-snap") == 0
    assert "trained - file" not in capsys.readouterr().out


def test_parity_finds_the_snapped_model_of_the_trained_one(monkeypatch, saved, tmp_path):
    model, output, proof = saved / "model.keras", tmp_path / "m.tflite", tmp_path / "proof.json"
    run(monkeypatch, "to_tflite.py", model, output)
    snapped = output.with_suffix(".snapped.keras")

    def pairs(*arguments):
        options = (output, "--data", "digits", "--images", 5, "--json", proof, "--force")
        assert run(monkeypatch, "parity.py", *arguments, *options) == 0
        return set(json.loads(proof.read_text())["agreement"])

    three = {"keras_file", "keras_simulation", "simulation_file"}
    assert pairs(model) == three | {"trained_file", "trained_keras"}
    assert pairs(snapped) == three
    assert pairs(snapped, "--trained", model) == three | {"trained_file", "trained_keras"}
    snapped.unlink()
    assert pairs(model) == three


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("to_tflite.py", ["missing.keras", "out.tflite"], "found nothing"),
        ("to_tflite.py", ["text.keras", "out.tflite"], "no Keras 2 model"),
        ("to_tflite.py", ["saved_model", "out.tflite"], "is a SavedModel"),
        ("parity.py", ["saved_model", "out.tflite", "--data", "digits"], "is a SavedModel"),
        ("to_lce.py", ["model.keras", "\udcff.tflite"], r"name in UTF-8. Received: b'\xff.tflite'"),
        ("to_lce.py", ["\udcff.keras", "out.tflite"], r"name in UTF-8. Received: b'\xff.keras'"),
        (
            "parity.py",
            ["model.keras", "o.tflite", "--data", "digits", "--keras-agreement", "nan"],
            "keras_agreement from 0 to 100. Received: nan",
        ),
        ("to_tflite.py", ["model.keras", "out.bin"], "ends in .tflite"),
        ("to_tflite.py", ["missing.keras", "folder.tflite", "--force"], "which is a folder"),
        ("to_tflite.py", ["missing.keras", "other.tflite", "--force"], "which is a folder"),
        ("to_lce.py", ["missing.keras", "text.keras/x.tflite"], "Expected a folder that can be"),
        ("to_web.py", ["model.tflite", "page", "--labels", "binary"], "text file in UTF-8"),
        ("to_web.py", ["model.tflite", "page", "--labels", "pipe"], "pipe is a device or"),
        ("to_lce.py", ["pipe", "out.tflite"], "pipe is a device or a pipe"),
        ("parity.py", ["model.keras", "pipe", "--data", "digits"], "pipe is a device or"),
        *(
            (script, [*arguments, "--force", "--json", json], "a file of its own for the report")
            for script, arguments, names in (
                ("to_tflite.py", ["missing.keras", "out.tflite", "--c-array"], _EXPORTED),
                ("parity.py", ["missing.keras", "o.tflite", "--data", "digits"], _COMPARED),
                ("to_web.py", ["o.tflite", "page", "--labels", "binary"], ("o.tflite", "binary")),
                ("benchmark.py", ["o.tflite", "p.tflite"], ("o.tflite", "p.tflite")),
            )
            for json in names
        ),
        ("parity.py", ["model.keras", "text.keras", "--data", "digits"], "something else"),
        ("parity.py", ["model.keras", "out.tflite", "--data", "nothing"], "Expected a .tflite"),
        (
            "to_tflite.py",
            ["model.keras", "out.tflite", "--calibration", "nothing"],
            "Unknown data set",
        ),
        (
            "to_tflite.py",
            ["model.keras", "out.tflite", "--preprocessing", "tf"],
            "takes pixels by Preprocessing(mean=0.0, std=1.0, scale=255.0",
        ),
        ("to_lce.py", ["model.keras", "out.tflite", "--size", "8", "8"], "it is fixed"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, saved, tmp_path, capsys, script, arguments, message):
    (tmp_path / "text.keras").write_text("text")
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "folder.tflite").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "other.snapped.keras").mkdir()
    (tmp_path / "model.keras").write_bytes((saved / "model.keras").read_bytes())
    (tmp_path / "saved_model").symlink_to(saved / "saved_model")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, script, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_links_to_files_stay_links(monkeypatch, saved, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("m.tflite", "m.snapped.keras"):
        (tmp_path / "disk" / name).touch()
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    arguments = (saved / "model.keras", tmp_path / "m.tflite", "--force")
    assert run(monkeypatch, "to_tflite.py", *arguments) == 0
    for name in ("m.tflite", "m.snapped.keras"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name).stat().st_size > 1000
    assert len(list((tmp_path / "disk").iterdir())) == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_no_ending_is_a_traceback(monkeypatch, saved, tmp_path, capsys, error, status, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(dlqat_tf.export, "to_tflite", fail)
    assert run(monkeypatch, "to_tflite.py", saved / "model.keras", tmp_path / "x.tflite") == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_several_inputs_export_but_no_data_set_has_them(monkeypatch, tmp_path, capsys):
    model, output = tmp_path / "model.keras", tmp_path / "model.tflite"
    siamese_network().save(model)
    calibrated = (model, output, "--calibration", "digits")
    assert run(monkeypatch, "to_tflite.py", *calibrated) == 2
    assert "2 inputs, left, right" in capsys.readouterr().err
    assert run(monkeypatch, "to_tflite.py", model, output) == 0
    assert run(monkeypatch, "parity.py", model, output, "--data", "digits") == 2
    assert "dlqat_tf.export.parity from Python" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["to_tflite.py", "to_lce.py"])
def test_preprocessing_and_size_are_said_once(monkeypatch, tmp_path, script, capsys):
    inputs = tf.keras.Input((None, None, 1), name="digit")
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)) / 127.5 - 1
    source = tf.keras.Model(inputs, layers.Dense(10)(x))
    dlqat_tf.quantize(source, 1, 2, images=images)[0].save(tmp_path / "model.keras")
    model, output = tmp_path / "model.keras", tmp_path / "model.tflite"
    proof = ("--data", "digits", "--images", 20)
    assert run(monkeypatch, script, model, output, "--size", 8, 8, *proof) == 2
    assert "say it (--preprocessing)" in capsys.readouterr().err
    said = ("--preprocessing", "tf", "--size", 8, 8)
    assert run(monkeypatch, script, model, output, *said, *proof) == 0
    assert "input 'digit': uint8, of shape 8x8x1" in capsys.readouterr().out
    assert run(monkeypatch, "parity.py", model, output, *proof) == 0
    output.with_suffix(".snapped.keras").unlink()  # then the file says it to the trained model
    assert run(monkeypatch, "parity.py", model, output, *proof, "--trained-agreement", 0) in (0, 1)
    assert "equal arg-max" in capsys.readouterr().out


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["dlqat", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code or 0


def test_a_runtime_that_a_file_is_not_for_is_refused_before_data_is_loaded(
    monkeypatch, saved, tmp_path, capsys
):
    output = tmp_path / "m.tflite"
    assert command(monkeypatch, "export", "tflite", saved / "model.keras", output, "--no-snap") == 0
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    capsys.readouterr()
    arguments = ("parity", saved / "model.keras", output, "--data", "folder")
    assert command(monkeypatch, *arguments, "--runtime", "micro") == 2
    assert "pip install 'dlqat_tf[micro]'" in capsys.readouterr().err
    assert command(monkeypatch, *arguments) == 2
    assert "folder" in capsys.readouterr().err


def test_a_file_and_its_c_array(monkeypatch, saved, tmp_path, capsys):
    output, report = tmp_path / "m.tflite", tmp_path / "report.json"
    arguments = ("export", "tflite", saved / "model.keras", output, "--c-array", "--no-snap")
    assert command(monkeypatch, *arguments, "--batch-size", "None") == 2
    assert "fixed number of images" in capsys.readouterr().err
    (tmp_path / "m.h").write_text("mine")
    assert command(monkeypatch, *arguments) == 2
    assert "m.h exists" in capsys.readouterr().err
    assert not output.exists()
    assert command(monkeypatch, *arguments, "--force", "--json", report) == 0
    assert "for XNNPACK" in " ".join(capsys.readouterr().out.split())
    assert json.loads(report.read_text())["c_array"]["name"] == "m_tflite"
    assert "m_tflite_len" in (tmp_path / "m.h").read_text()


def test_what_a_model_costs_and_what_its_file_holds(monkeypatch, saved, tmp_path, capsys):
    model, output, report = saved / "model.keras", tmp_path / "m.tflite", tmp_path / "report.json"
    assert command(monkeypatch, "summary", model, "--json", report) == 0
    assert "parameters" in capsys.readouterr().out
    assert json.loads(report.read_text())["bit_operations"] > 0
    assert command(monkeypatch, "summary", saved / "saved_model") == 2
    assert "is a SavedModel" in capsys.readouterr().err
    assert command(monkeypatch, "summary", saved / "saved_model", "--trust") == 0
    assert command(monkeypatch, "export", "tflite", model, output) == 0
    assert command(monkeypatch, "census", output, "--json", report) == 2
    assert "--force" in capsys.readouterr().err
    assert command(monkeypatch, "census", output, "--json", report, "--force") == 0
    assert "2 CONV_2D" in capsys.readouterr().out
    assert json.loads(report.read_text())["operators"]["CONV_2D"] == 2
    assert command(monkeypatch, "census", model) == 2
    assert capsys.readouterr().err.startswith("error: ")
