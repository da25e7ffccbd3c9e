import json

import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_command.main import main
from dlqat_tf.export import ExportError, to_lce, to_tflite, to_web
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.website import LITERT_JS, find_litert_js
from tests.export.networks import convolution, randomize, siamese_network, small_network

layers = tf.keras.layers


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A classifier of five classes for images of 6 x 6 x 3."""
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    to_tflite(small_network(weight_bits=1), path, snap=False)
    return path


@pytest.fixture(scope="module")
def litert_js():
    try:
        return find_litert_js(install=False)
    except ExportError as error:
        pytest.skip(str(error))


def test_a_site_has_all_that_it_loads(file, litert_js, tmp_path):
    labels = ["ant", "bee", "cat", "dog", "elk"]
    report = to_web(file, tmp_path / "site", title="Animals", labels=labels)
    about = json.loads((tmp_path / "site" / "about.json").read_text())
    assert (about["height"], about["width"], about["channels"]) == (6, 6, 3)
    assert (about["title"], about["labels"], about["type"]) == ("Animals", labels, "uint8")
    assert about["bytes"] == report.model_bytes == (tmp_path / "site/model.tflite").stat().st_size
    assert about["facts"] == ["1-bit weights"]
    assert about["litert"] == report.litert_js
    for name in ("index.html", "page.js", "litert/core/index.js", "litert/wasm-utils/index.js"):
        assert (tmp_path / "site" / name).is_file(), name
    assert list((tmp_path / "site" / "litert" / "wasm").glob("*.wasm"))
    assert report.bytes == sum(
        each.stat().st_size for each in (tmp_path / "site").rglob("*") if each.is_file()
    )
    again = to_web(file, tmp_path / "site", force=True, litert_js=litert_js.parent)
    assert again.labels == ["0", "1", "2", "3", "4"]
    assert json.loads((tmp_path / "site" / "about.json").read_text())["title"] == "model"


def test_a_file_of_any_number_of_images_takes_one(litert_js, tmp_path):
    to_tflite(small_network(), tmp_path / "any.tflite", snap=False)
    content = flatbuffer.read(tmp_path / "any.tflite")
    for tensor in content.subgraphs[0].tensors:
        if tensor.shape is not None and len(tensor.shape) in (2, 4):
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
    (tmp_path / "any.tflite").write_bytes(flatbuffer.packed(content))
    to_web(tmp_path / "any.tflite", tmp_path / "site")
    copy = flatbuffer.read(tmp_path / "site" / "model.tflite")
    assert all(each.shapeSignature is None for each in copy.subgraphs[0].tensors)


def test_a_folder_that_holds_something_is_left_alone(file, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="new or an empty folder"):
        to_web(file, tmp_path)
    with pytest.raises(ExportError, match="new or an empty folder"):
        to_web(file, tmp_path / "mine.txt", force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["model.tflite", "about.json", "index.html", "litert/wasm"])
def test_a_name_that_is_taken_by_another_kind_leaves_all_as_it_was(file, litert_js, tmp_path, name):
    taken = tmp_path / "site" / name
    taken.parent.mkdir(parents=True)
    if name == "litert/wasm":
        taken.write_text("mine")
    else:
        taken.mkdir()
    before = sorted((tmp_path / "site").rglob("*"))
    with pytest.raises(ExportError, match=rf"{taken}.*choose another name"):
        to_web(file, tmp_path / "site", force=True)
    assert sorted((tmp_path / "site").rglob("*")) == before


def test_a_disk_that_is_full_is_one_sentence(file, litert_js, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full_disk)
    with pytest.raises(ExportError, match=rf"folder {tmp_path / 'site'}: No space left"):
        to_web(file, tmp_path / "site")


def test_labels_are_one_for_each_score(file, tmp_path):
    with pytest.raises(ExportError, match=r"Expected 5 labels.*Received: 2"):
        to_web(file, tmp_path / "site", labels=["cat", "dog"])
    assert list(tmp_path.iterdir()) == []


def images_to_a_map():
    inputs = tf.keras.Input((6, 6, 3))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    return randomize(tf.keras.Model(inputs, convolution(x, 2, 3, weight_bits=2)))


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (small_network, {"input_type": "int8"}, r'takes pixels.*input_type="uint8"'),
        (siamese_network, {}, r"one input and one output. Received: 2 and 1"),
        (images_to_a_map, {}, r"a score for each.*\(1, 6, 6, 2\)"),
    ],
)
def test_files_that_a_page_cannot_feed_or_show_are_refused(model, options, reason, tmp_path):
    to_tflite(model(), tmp_path / "model.tflite", snap=False, **options)
    with pytest.raises(ExportError, match=reason):
        to_web(tmp_path / "model.tflite", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_binary_files_are_refused(tmp_path):
    to_lce(small_network(weight_bits=1), tmp_path / "model.tflite", snap=False)
    with pytest.raises(ExportError, match=r"LceBconv2d.*no browser runs.*to_tflite"):
        to_web(tmp_path / "model.tflite", tmp_path / "site")


def test_a_folder_without_litert_js_is_named(file, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=rf"{tmp_path}.*npm install @litertjs/core"):
        to_web(file, tmp_path / "site", litert_js=tmp_path)
    monkeypatch.setenv("DLQAT_LITERT_JS", str(tmp_path / "other"))
    with pytest.raises(ExportError, match="other"):
        find_litert_js()
    monkeypatch.delenv("DLQAT_LITERT_JS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match=rf"Node.js.*npm install @litertjs/core@{LITERT_JS}"):
        find_litert_js()
    assert not (tmp_path / "site").exists()


def test_the_command_writes_a_site(file, litert_js, tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    options = ["--title", "Animals", "--labels", tmp_path / "labels.txt"]
    options += ["--litert-js", litert_js, "--json", tmp_path / "report.json"]
    arguments = [file, tmp_path / "site", *options]
    for expected, more in ((0, []), (2, []), (0, ["--force"])):  # the second time it is there
        monkeypatch.setattr("sys.argv", ["to_web.py", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as end:
            main("export", "web")
        assert (end.value.code or 0) == expected
    about = json.loads((tmp_path / "site" / "about.json").read_text())
    assert (about["title"], about["labels"][4]) == ("Animals", "elk")
    assert json.loads((tmp_path / "report.json").read_text())["folder"] == str(tmp_path / "site")
