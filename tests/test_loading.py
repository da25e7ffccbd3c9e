"""Files of models that somebody sent: none runs code, and a damaged one is named."""

import json
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf import load_weights
from dlqat_tf.loading import ModelFileError, load_model
from tests.export.networks import small_network

layers = tf.keras.layers


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A Lambda layer in each format, whose code leaves a file behind."""
    folder = tmp_path_factory.mktemp("sent")
    mark = folder / "executed"
    inputs = tf.keras.Input((4,))
    code = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    x = layers.Dense(2, name="dense")(layers.Lambda(eval(code))(inputs))
    model = tf.keras.Model(inputs, x)
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save(folder / "saved", save_format="tf")
    (folder / "h5.keras").write_bytes((folder / "model.h5").read_bytes())
    (folder / "saved").rename(folder / "saved.keras")
    mark.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.keras", "a model with a Lambda layer"),
        ("model.h5", "an HDF5 file"),
        ("h5.keras", "an HDF5 file"),
        ("saved.keras", "a SavedModel"),
    ],
)
def test_code_runs_only_where_it_is_trusted(sent, name, kind):
    with pytest.raises(ModelFileError, match=rf"{name} is {kind}.*--trust \(trust=True in Python"):
        load_model(sent / name)
    assert not (sent / "executed").exists()
    assert load_model(sent / name, trust=True).output_shape == (None, 2)
    (sent / "executed").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "h5.keras", "saved.keras"])
def test_weights_are_read_without_code(sent, name):
    model = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(2, name="dense")])
    if name == "model.keras":  # whose settings say which weights are whose
        with pytest.raises(ModelFileError, match="Lambda"):
            load_weights(model, sent / name)
    report = load_weights(model, sent / name, trust=name == "model.keras", quiet=True)
    assert report.loaded == ["dense/kernel", "dense/bias"]
    if name != "model.keras":
        assert not (sent / "executed").exists()
    (sent / "executed").unlink(missing_ok=True)


def changed(path, change, target):
    """Write an archive of a model again, with other settings."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(name, data)


def test_modules_are_not_imported_for_a_file(tmp_path):
    model = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(2, activation="relu")])
    model.save(tmp_path / "model.keras")

    def change(config):
        dense = config["config"]["layers"][1]["config"]
        dense["activation"] = {
            "module": "os",
            "class_name": "function",
            "config": "system",
            "registered_name": "function",
        }

    changed(tmp_path / "model.keras", change, tmp_path / "sent.keras")
    with pytest.raises(ModelFileError, match=r"function of the module os, which nothing imported"):
        load_model(tmp_path / "sent.keras")


def test_own_models_need_no_trust(tmp_path):
    model = small_network()
    model.save(tmp_path / "model.keras")
    for a, b in zip(
        load_model(tmp_path / "model.keras").get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("nested", [False, True])
def test_normalization_computes_with_what_was_loaded(nested):
    def adapted(values):
        norm = layers.Normalization(axis=None, name="norm")
        norm.adapt(np.float32(values))
        model = tf.keras.Sequential([tf.keras.Input((1,)), norm])
        return tf.keras.Sequential([tf.keras.Input((1,)), model]) if nested else model

    model = adapted([0.0])
    model.predict(np.float32([[3.0]]), verbose=0)  # which keeps what it has compiled
    report = load_weights(model, adapted([1.0, 3.0]), quiet=True)
    assert {"norm/mean", "norm/variance"} <= set(report.loaded)
    for compute in (model, lambda x: model.predict(x, verbose=0)):
        assert np.asarray(compute(np.float32([[3.0]]))).item() == pytest.approx(1.0)


def test_wrappers_that_list_more_weights_than_they_give_out():
    """TF-MOT's while it prunes: masks and thresholds beside the layer's own."""
    source = tf.keras.Sequential([tf.keras.Input((2,)), layers.Dense(1, name="scores")])
    pruned = tfmot.sparsity.keras.prune_low_magnitude(source)
    copy = tfmot.sparsity.keras.prune_low_magnitude(tf.keras.models.clone_model(source))
    pruned.layers[0].set_weights([np.float32([[3], [4]]), np.float32([5])])
    report = load_weights(copy, pruned, quiet=True)
    assert not report.kept
    np.testing.assert_array_equal(copy.layers[0].layer.kernel, [[3], [4]])
    np.testing.assert_array_equal(copy.layers[0].layer.bias, [5])


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "saved", "w.h5", "x.weights.h5", "checkpoint"])
@pytest.mark.parametrize("nested", ["first", "last", "between"])
def test_layers_of_equal_names_in_nested_models(tmp_path, name, nested):
    def network():
        x = inputs = tf.keras.Input((1,))
        models = {"first": ["a", "b", ""], "last": ["", "a", "b"], "between": ["a", "", "b"]}
        for model in [*models[nested], *(f"model{i}" for i in range(10))]:
            inner = tf.keras.Input((1,))
            layer = layers.Dense(1, use_bias=False, name="d")
            x = tf.keras.Model(inner, layer(inner), name=model)(x) if model else layer(x)
        return tf.keras.Model(inputs, x)

    source, model = network(), network()
    source.set_weights([np.full((1, 1), i) for i in range(13)])
    is_model = name in ("x.keras", "x.h5", "saved")
    (source.save if is_model else source.save_weights)(tmp_path / name)
    load_weights(model, tmp_path / name, quiet=True)
    assert [each.item() for each in model.get_weights()] == list(range(13))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"text",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-30],
        lambda data: data[:200] + bytes(400) + data[600:],
        lambda data: data[: len(data) // 2] + bytes(400) + data[len(data) // 2 + 400 :],
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_a_damaged_file_is_named(tmp_path, damage, trust):
    path = tmp_path / "model.keras"
    small_network().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFileError, match=r"model\.keras is damaged"):
        load_model(path, trust=trust)


def with_version(data, version):
    """An archive whose list of files says that this version of the format is needed."""
    place = data.index(b"PK\1\2") + 6
    return data[:place] + bytes([version]) + data[place + 1 :]


def test_of_settings_that_are_wrong_only_the_reason_is_said(tmp_path):
    small_network().save(tmp_path / "right.keras")
    archive, target = zipfile.ZipFile(tmp_path / "right.keras"), tmp_path / "wrong.keras"
    with archive, zipfile.ZipFile(target, "w") as wrong:
        for name in archive.namelist():
            wrong.writestr(name, re.sub(rb'"bits": \d', b'"bits": 77', archive.read(name)))
    message = r"no Keras 2 model: Expected bits to be an integer .* Received: bits=77\. Layers of"
    with pytest.raises(ModelFileError, match=message):
        load_model(target)


def test_archives_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "model.keras"
    small_network().save(path)
    path.write_bytes(with_version(path.read_bytes(), 148))
    with pytest.raises(ModelFileError, match=r"model\.keras is damaged \(zip file version 14"):
        load_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "5")
    with pytest.raises(ModelFileError, match=r"model\.keras is damaged"):
        load_model(path)


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_damaged_weights_are_named(tmp_path, name):
    path, model = tmp_path / name, small_network()
    model.save_weights(path)
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    with pytest.raises(ModelFileError, match=rf"{name} is damaged or no HDF5 file"):
        load_weights(model, path)


@pytest.mark.parametrize("name", ["model.h5", "checkpoint"])
def test_weights_that_are_damaged_inside_are_named(tmp_path, name):
    model = small_network()
    model.save_weights(tmp_path / name)
    for path in tmp_path.glob(f"{name}.data*") if name == "checkpoint" else [tmp_path / name]:
        data = path.read_bytes()
        path.write_bytes(data[:900] + b"\xff" * (len(data) - 900))
    with pytest.raises(ModelFileError, match=f"{name} is damaged"):
        load_weights(model, tmp_path / name)


def test_names_that_are_not_utf8(tmp_path):
    for load in (load_model, lambda path: load_weights(small_network(), path)):
        with pytest.raises(OSError, match=r"name in UTF-8. Received: b'.*\\xff\.keras'"):
            load(tmp_path / "\udcff.keras")
