import numpy as np
import pytest
import tensorflow as tf
from rich.status import Status

import dlqat_tf
from dlqat_tf._progress import progress, say, steps
from dlqat_tf.quantizers.calibration import calibrate

layers = tf.keras.layers


@pytest.fixture
def terminal(monkeypatch):
    """Have rich take standard error for a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def said(terminal, monkeypatch):
    """Collect what the line says, each text of which is on the terminal for a moment at most."""
    texts = []
    update = Status.update

    def kept(status, text):
        texts.append(text)
        update(status, text)

    monkeypatch.setattr(Status, "update", kept)
    return texts


def test_a_line_says_what_a_call_is_at(said, capsys):
    with progress("outer"):
        assert list(steps("file", iter("ab"))) == ["a", "b"]
        say("last [step]")
    assert said == ["outer: file 1 of 2", "outer: file 2 of 2", r"outer: last \[step]"]
    shown = capsys.readouterr()
    assert "outer: last [step]" in shown.err
    assert shown.err.endswith("\x1b[2K")  # the line is gone in the end
    assert shown.out == ""
    say("late")
    assert capsys.readouterr().err == ""


def test_a_call_within_a_call_is_on_its_line(said, capsys):
    @progress("outer")
    def outer():
        with progress("inner"):
            say("step")
        say("after")
        raise KeyError

    with pytest.raises(KeyError):
        outer()
    with progress("next"):  # an error ends the line
        say("step")
    assert said == ["outer: step", "outer: after", "next: step"]
    assert "inner" not in capsys.readouterr().err


def test_no_line_without_a_terminal_or_where_keras_is_told_to_be_quiet(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress("task"):
        say("step")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    tf.keras.utils.disable_interactive_logging()
    try:
        with progress("task"):
            say("step")
    finally:
        tf.keras.utils.enable_interactive_logging()
    assert capsys.readouterr().err == ""


def test_conversion_export_and_parity_say_what_they_are_at(said, tmp_path):
    stack = [tf.keras.Input((6, 6, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten()]
    images = np.random.default_rng(0).random((4, 6, 6, 3)).astype(np.float32)
    source = tf.keras.Sequential([*stack, layers.Dense(2)])
    model, _ = dlqat_tf.quantize(source, 2, 2, "linear", images=images)
    dlqat_tf.export.to_tflite(model, tmp_path / "model.tflite", calibration=images)
    dlqat_tf.export.to_lce(model, tmp_path / "lce.tflite")
    dlqat_tf.export.parity(model, tmp_path / "model.tflite", images, batch_size=2)
    twin = dlqat_tf.quantize(source, 32, 32, "linear", residual_bits=32)[0]
    calibrate(model, twin, images)
    shown = "\n".join(said)
    for text in (
        "calibrate: the reference on images",
        "calibrate: range 1 of 1",
        "quantize: builds the model and carries weights over",
        "quantize: statistics of the model, layer 4 of 4",
        "quantize: the model on images, layer 4 of 4",
        "quantize: range 1 of 1",
        "quantize: the result on images, layer 4 of 4",
        "to_tflite: reads the model",
        "to_tflite: biases, layer 1 of",
        "to_tflite: writes the operations",
        "to_tflite: runs the file once",
        "to_tflite: moves the biases",
        "to_lce: reads the model",
        "to_lce: writes the operations",
        "to_lce: runs the file once",
        "parity: reads the model",
        "parity: the file on images, batch 2 of 2",
        "parity: Keras (keras) on images, batch 2 of 2",
        "parity: the simulation on images, batch 2 of 2",
        "parity: the file and the simulation, layer 1 of",
    ):
        assert text in shown
