"""The zoo: its networks have the accuracies that it says, and a run becomes one of them."""

import json
from pathlib import Path

import numpy as np
import pytest

import dlqat_tf
from dlqat_command import zoo as command
from dlqat_tf import zoo
from dlqat_tf.export.command import test_images as images_of
from dlqat_tf.training.recipe import Recipe

import tensorflow as tf  # isort: skip

NETWORKS = Path(zoo.__file__).parent / "networks"


def accuracy_of_file(path, images, labels):
    interpreter = tf.lite.Interpreter(str(path))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    return 100 * np.mean(interpreter.get_tensor(given["index"]).argmax(1) == labels)


@pytest.mark.parametrize("name", zoo.names())
def test_networks_have_the_accuracy_that_the_zoo_says(request, name):
    entry = zoo.entry(name)
    dataset = entry.recipe["dataset"]
    place = None if dataset == "digits" else request.getfixturevalue("tfds_dir")
    model = zoo.load(name)
    images, labels = images_of(dataset, place, model.input_shape[1:], None)
    assert entry.images == len(images)
    found = 100 * np.mean(model.predict(images / 255, verbose=0).argmax(1) == labels)
    one_image = 100 / len(images)
    assert found == pytest.approx(entry.accuracy["keras"], abs=1.1 * one_image)
    found = accuracy_of_file(zoo.file(name, "int8"), images, labels)
    assert found == pytest.approx(entry.accuracy["int8"], abs=1.1 * one_image)


def test_digits_are_there_with_their_files():
    assert "digits_w1a2" in zoo.names()
    entry = zoo.entry("digits_w1a2")
    assert entry.accuracy["keras"] > 98.0
    assert (entry.recipe["weight_bits"], entry.recipe["activation_bits"]) == (1, 2)
    for kind in ("int8", "lce"):
        assert dlqat_tf.export.census(zoo.file("digits_w1a2", kind)).file_bytes > 0
    operators = dlqat_tf.export.census(zoo.file("digits_w1a2", "lce")).operators
    assert operators["LceBconv2d"] == 38  # 19 hidden convolutions of two planes
    assert (NETWORKS / "digits_w1a2" / "network.npz").stat().st_size < 150_000  # 703,596 weights


def test_nothing_in_the_zoo_names_places_of_a_machine():
    for path in NETWORKS.glob("*/entry.json"):
        assert not any(each in path.read_text() for each in ("/home", "/tmp", "/work", "/root"))


def test_unknown_names_are_mistakes():
    with pytest.raises(ValueError, match=r"one of .*digits_w1a2.*Did you mean digits_w1a2"):
        zoo.load("digits_w1a3")
    with pytest.raises(ValueError, match=r"kind to be one of int8, lce\. Received: 'float'"):
        zoo.file("digits_w1a2", "float")


def finished_run(folder, **changes):
    folder.mkdir()
    recipe = Recipe(dataset="digits", width=2, output=folder, data_dir=folder, **changes)
    (folder / "recipe.json").write_text(json.dumps(recipe.plain()))
    surroundings = {"python": "3", "versions": {}, "commit": "c", "device": "d", "command": "/x"}
    (folder / "result.json").write_text(json.dumps({"environment": surroundings}))
    tf.keras.utils.set_random_seed(0)
    dlqat_tf.resnet18(10, (8, 8, 1), 1, 2, "linear", width=2, residual_bits=8).save(
        folder / "model.keras"
    )
    return folder


@pytest.fixture
def empty(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "_NETWORKS", tmp_path / "networks")
    return tmp_path / "networks"


def test_a_run_becomes_a_network_by_one_command(empty, tmp_path, capsys):
    run = finished_run(tmp_path / "run")
    with pytest.raises(SystemExit) as ending:
        command.add(run, "tiny")
    assert ending.value.code == 0
    assert {path.name for path in (empty / "tiny").iterdir()} == {
        "network.npz",
        "int8.tflite",
        "lce.tflite",
        "entry.json",
    }
    assert [path.name for path in empty.iterdir()] == ["tiny"]
    assert zoo.names() == ("tiny",)
    entry = zoo.entry("tiny")
    assert entry.accuracy.keys() == {"keras", "int8", "lce"}
    assert entry.recipe["width"] == 2
    assert not {"output", "data_dir"} & entry.recipe.keys()
    assert "command" not in entry.environment
    command.show()
    assert "tiny" in capsys.readouterr().out
    images, _ = images_of("digits", None, (8, 8, 1), None)
    trained = tf.keras.models.load_model(run / "model.keras", compile=False)
    np.testing.assert_array_equal(
        zoo.load("tiny").predict(images / 255, verbose=0), trained.predict(images / 255, verbose=0)
    )
    with pytest.raises(ValueError, match="'tiny', which is in the zoo"):
        zoo.add(run, "tiny")


def test_what_cannot_be_added_leaves_nothing(empty, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Received: '\.\./x'"):
        zoo.add(tmp_path, "../x")
    with pytest.raises(ValueError, match=r"found no .*result.json"):
        zoo.add(tmp_path, "x")
    monkeypatch.setattr(zoo, "LARGEST", 1000)
    with pytest.raises(ValueError, match="at most 1,000 bytes"):
        zoo.add(finished_run(tmp_path / "run"), "x")
    assert list(empty.iterdir()) == []
