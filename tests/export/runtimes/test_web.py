"""Files and sites in a real browser."""

import io
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import dlqat_tf
from dlqat_command.main import main
from dlqat_tf.export import ExportError, parity, to_lce, to_tflite, to_web
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.website import find_litert_js
from dlqat_tf.export.parity import check_runtime
from dlqat_tf.export.runtimes import host, web
from tests.export.networks import convolution, images_for, randomize, small_network

layers = tf.keras.layers
PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def litert_js():
    pytest.importorskip("playwright", reason="Playwright is not installed (extra: web)")
    try:
        web.browser()
        return find_litert_js(install=False)
    except ExportError as error:
        pytest.skip(str(error))


def site(litert_js, folder, shape):
    """Write a site of a network of 10 classes, and return the network."""
    inputs = tf.keras.Input(shape)
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = dlqat_tf.CGPACT(2, 2.0)(convolution(x, 16, 3, 2, weight_bits=1))
    outputs = dlqat_tf.LinearHead(10)(layers.Flatten()(x))
    model = randomize(tf.keras.Model(inputs, outputs))
    to_tflite(model, folder / "digits.tflite", snap=False)
    labels = [f"class {i}" for i in range(10)]
    to_web(folder / "digits.tflite", folder / "site", labels=labels, litert_js=litert_js)
    return model


def on_this_host(folder):
    return host.runner(flatbuffer.read(folder / "digits.tflite"), 1)


def wait_until_ready(page):
    page.wait_for_selector("body[data-ready=yes]")


def answered(page):
    """The classes and shares that the page shows."""
    page.wait_for_selector("#bars li")
    rows = page.locator("#bars li").all_inner_texts()
    return [row.splitlines()[0] for row in rows], [row.split()[-2] for row in rows]


def best(run, image):
    """What it should show."""
    scores = run([image[None]])[0][0].astype(np.float64)
    shares = np.exp(scores - scores.max())
    order = np.argsort(-shares, kind="stable")[:5]
    return [f"class {i}" for i in order], (100 * shares / shares.sum())[order]


def assert_shows(page, run, image):
    names, shares = answered(page)
    expected, percent = best(run, image)
    assert names == expected
    assert page.locator("#answer").inner_text() == expected[0]
    np.testing.assert_allclose([float(each) for each in shares], percent, atol=0.51)


def test_every_integer_in_the_browser_is_that_of_the_simulation(litert_js, tmp_path, monkeypatch):
    monkeypatch.setenv("DLQAT_LITERT_JS", str(litert_js))
    model = small_network()
    report = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images_for(model, 5), runtime="web", batch_size=2)
    assert result.failures() == []
    assert {each.layer for each in result.layers} >= {"first_act", "second_residual", "sum_act"}
    assert all(each.differing == 0 for each in result.layers)
    assert result.kernels.startswith("LiteRT.js ")
    # Other biases than the file's show.
    snapped.get_layer("second_bn").beta.assign_add(np.ones(8))
    wrong = parity(snapped, report.path, images_for(model, 5), runtime="web")
    assert wrong.first_diverging == "second_residual"


def test_int4_convolutions_round_once_in_the_browser(litert_js, tmp_path, monkeypatch):
    monkeypatch.setenv("DLQAT_LITERT_JS", str(litert_js))
    model, path = small_network(channels=32), tmp_path / "model.tflite"
    to_tflite(model, path, weights="int4", snap=False)
    result = parity(model, path, images_for(model, 10), runtime="web")
    assert [each.layer for each in result.layers if each.differing] == []


def test_files_and_tools_are_looked_at_before_the_long_work(litert_js, tmp_path, monkeypatch):
    monkeypatch.setenv("DLQAT_LITERT_JS", str(litert_js))
    path = tmp_path / "model.tflite"
    to_tflite(small_network(), path, batch_size=3, snap=False)
    with pytest.raises(ExportError, match=r"one image at once.*, for 3: .*batch_size=1"):
        check_runtime(path, "web")
    with pytest.raises(ExportError, match=r"one image at once.*, for 3: .*batch_size=1"):
        to_web(path, tmp_path / "site", litert_js=litert_js)
    to_tflite(small_network(), path, snap=False, force=True)
    check_runtime(path, "web")
    monkeypatch.setenv("DLQAT_BROWSER", "netscape")
    with pytest.raises(ExportError, match="netscape"):
        check_runtime(path, "web")
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(ExportError, match=r"run `pip install 'dlqat_tf\[web\]'`"):
        check_runtime(path, "web")


def test_runtimes_are_known_by_name_and_run_their_own_files(litert_js, tmp_path, monkeypatch):
    monkeypatch.setenv("DLQAT_LITERT_JS", str(litert_js))
    model = small_network(weight_bits=1)
    to_lce(model, tmp_path / "model.tflite", snap=False)
    with pytest.raises(ExportError, match=r"Larq Compute Engine.*expected runtime=\"tflite\""):
        parity(model, tmp_path / "model.tflite", images_for(model), runtime="web")
    with pytest.raises(ExportError, match=r"one of tflite, builtin, .*, web"):
        parity(model, tmp_path / "model.tflite", images_for(model), runtime="chromium")
    to_tflite(model, tmp_path / "model.tflite", snap=False, force=True, input_type="int8")
    with pytest.raises(ExportError, match=r'LiteRT.js does not take.*input_type="uint8"'):
        parity(model, tmp_path / "model.tflite", images_for(model), runtime="web")


def test_a_browser_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("DLQAT_BROWSER", "netscape")
    with pytest.raises(ExportError, match=r"netscape.*apt install chromium.*DLQAT_BROWSER"):
        web.browser()


def test_a_drawing_is_classified_on_a_phone(litert_js, tmp_path):
    site(litert_js, tmp_path, (8, 8, 1))
    run = on_this_host(tmp_path)
    with web.page(tmp_path / "site", **PHONE) as page:
        addresses, errors = [], []
        page.on("request", lambda request: addresses.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.reload()
        wait_until_ready(page)
        assert page.locator("#photo").is_hidden()
        box = page.locator("#pad").bounding_box()
        x, y, side = box["x"], box["y"], box["width"]
        page.mouse.move(x + side / 2, y + side / 10)
        page.mouse.down()
        page.mouse.move(x + side / 2, y + side * 9 / 10, steps=5)
        page.mouse.up()
        answered(page)
        page.wait_for_timeout(300)  # the last stroke is answered after a pause
        seen = page.evaluate(
            "() => Array.from(document.getElementById('seen').getContext('2d')"
            ".getImageData(0, 0, 8, 8).data).filter((each, i) => i % 4 === 0)"
        )
        image = np.array(seen, np.uint8).reshape(8, 8, 1)
        # A vertical line, from the top to the bottom, and nothing left and right of it.
        assert image[:, 3:5].min() > 0
        assert image[:, [0, 1, 6, 7]].max() == 0
        assert_shows(page, run, image)
        page.click("#clear")
        assert page.locator("#bars li").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        own = page.url
        assert errors == []
        assert all(each.startswith((own, "data:", "blob:")) for each in addresses)


def test_a_photo_is_classified_and_speed_measured(litert_js, tmp_path):
    site(litert_js, tmp_path, (12, 12, 3))
    run = on_this_host(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": content.getvalue()}
    with web.page(tmp_path / "site") as page:
        wait_until_ready(page)
        assert page.locator("#draw").is_hidden()
        page.set_input_files("#file", file)
        assert_shows(page, run, image)
        page.click("#measure")
        page.wait_for_selector("#bench:not([hidden])")
        details = dict(
            zip(
                page.locator("#details dt").all_inner_texts(),
                page.locator("#details dd").all_inner_texts(),
                strict=True,
            )
        )
        assert page.locator("#median").inner_text().endswith(("ms", "µs"))
        assert {"Quartiles", "Threads", "Accelerator", "Browser", "Runs"} <= details.keys()
        assert details["Accelerator"] == "CPU, WebAssembly"
        assert details["Threads"] == "1"
        assert "Chrom" in details["Browser"]
        page.set_input_files("#file", {**file, "name": "text.png", "buffer": b"text"})
        page.wait_for_selector("#error:not([hidden])")
        assert "text.png" in page.locator("#error").inner_text()


def test_what_the_camera_sees_is_classified_until_it_is_stopped(litert_js, tmp_path):
    site(litert_js, tmp_path, (12, 12, 3))
    run = on_this_host(tmp_path)
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with web.page(tmp_path / "site", flags, permissions=["camera"]) as page:
        wait_until_ready(page)
        page.click("#live")
        page.wait_for_selector("#video:not([hidden])")
        answered(page)
        page.click("#live")
        page.wait_for_selector("#video", state="hidden")
        page.wait_for_timeout(300)  # the last picture is still on its way
        seen = page.evaluate(
            "() => Array.from(document.getElementById('seen').getContext('2d')"
            ".getImageData(0, 0, 12, 12).data).filter((each, i) => i % 4 < 3)"
        )
        image = np.array(seen, np.uint8).reshape(12, 12, 3)
        assert image.max() > 100  # Chromium's stand-in for a camera is green
        assert_shows(page, run, image)


def test_the_command_proves_a_file_in_the_browser(litert_js, tmp_path, monkeypatch, capsys):
    site(litert_js, tmp_path, (8, 8, 1)).save(tmp_path / "model.keras")
    monkeypatch.setenv("DLQAT_LITERT_JS", str(litert_js))
    files = [str(tmp_path / name) for name in ("model.keras", "digits.tflite")]
    options = ["--data", "digits", "--images", "3", "--runtime", "web"]
    monkeypatch.setattr("sys.argv", ["parity.py", *files, *options])
    with pytest.raises(SystemExit) as end:
        main("parity")
    assert end.value.code in (0, None)
    assert "kernels: LiteRT.js" in capsys.readouterr().out
