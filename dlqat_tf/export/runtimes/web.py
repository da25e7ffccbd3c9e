"""Runs files in a browser, on LiteRT.js: headless Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.website import check_batch, find_litert_js, for_one_image, write_runtime
from dlqat_tf.export.integer.errors import ExportError

_BROWSER = "DLQAT_BROWSER"  # environment variable: the browser to run
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MINUTES = 10  # that a batch may take
_TYPES = {  # that LiteRT.js hands to JavaScript
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
}
# Files and arrays go in and out as text: Playwright knows JSON.
_OPEN = """async (model) => {
  const {open} = await import('./engine.js');
  const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const text = (array) => {
    const raw = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    return btoa(Array.from(raw, (each) => String.fromCharCode(each)).join(''));
  };
  const network = await open(bytes(model));
  const types = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};
  self.runImages = async (images) => {
    const outputs = [];
    for (const image of images) {
      const inputs = image.map(([type, data]) => new types[type](bytes(data).buffer));
      outputs.push((await network.run(inputs)).map(text));
    }
    return outputs;
  };
}"""


def browser() -> str:
    """Return the path of the browser: what ``DLQAT_BROWSER`` says, else a Chromium on the path.

    Raises:
        ExportError: There is none.
    """
    wanted = os.environ.get(_BROWSER)
    found = next(filter(None, map(shutil.which, [wanted] if wanted else _BROWSERS)), None)
    if found is None:
        raise ExportError(
            f"Expected a browser, {wanted or ' or '.join(_BROWSERS)}, to run the file in: install "
            f"Chromium (on Debian: apt install chromium), or say in {_BROWSER} where it is."
        )
    return found


@contextlib.contextmanager
def page(folder: str | Path, flags: Sequence[str] = (), **options) -> Iterator:
    """Serve a folder on this host and give Playwright's page of it, in a headless browser.

    Args:
        folder: A static site.
        flags: Of Chromium's command line.
        options: Of Playwright's ``new_page``, such as ``viewport``.

    Raises:
        ExportError: Playwright or a browser is missing.
    """
    sync_playwright = _playwright()
    executable = browser()
    with _served(folder) as address, sync_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        arguments = [*flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        opened = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            shown = opened.new_page(**options)
            shown.set_default_timeout(_MINUTES * 60_000)
            shown.goto(address)
            yield shown
        finally:
            opened.close()


class _Quiet(SimpleHTTPRequestHandler):
    # Without these types browsers refuse modules and compile WebAssembly twice.
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format, *arguments):
        pass


@contextlib.contextmanager
def _served(folder: str | Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def check(content: schema.ModelT, path) -> None:
    """Say before the long work what :func:`runner` would of a file.

    Raises:
        ExportError: A tool is missing, the file is for Larq Compute Engine or for several images at
            once, or an input is of int8, which JavaScript cannot give it.
    """
    if flatbuffer.is_binarized(content):
        raise ExportError(
            f"{path} has operations of Larq Compute Engine, which no browser runs: export with "
            "to_tflite."
        )
    check_batch(content, path)
    graph = content.subgraphs[0]
    refused = [graph.tensors[int(i)] for i in graph.inputs]
    refused = [each for each in refused if each.type not in _TYPES]
    if refused:
        raise ExportError(
            f"The input {(refused[0].name or b'').decode()!r} of {path} is of a type that LiteRT.js"
            ' does not take: export with input_type="uint8" or "float32".'
        )
    _playwright()
    browser()
    find_litert_js()


def _playwright() -> Callable:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ExportError(
            "Files run in a browser by Playwright, which is not installed: run `pip install "
            "'dlqat_tf[web]'`."
        ) from None
    return sync_playwright


@contextlib.contextmanager
def runner(content: schema.ModelT, feed: Callable | None = None, path="the file") -> Iterator:
    """Give a function from lists of inputs to lists of outputs, which a browser computes.

    As :func:`dlqat_tf.export.runtimes.host.runner`, image by image.

    Raises:
        ExportError: As :func:`check`, or LiteRT.js refuses the file.
    """
    check(content, path)
    litert_js = find_litert_js()
    graph = content.subgraphs[0]
    data, casts = _readable(content)
    shapes = [graph.tensors[int(i)].shape for i in graph.outputs]
    with tempfile.TemporaryDirectory() as folder:
        write_runtime(litert_js, Path(folder))
        (Path(folder) / "page.js").write_text("")  # the page shall run nothing by itself
        with page(folder) as shown:
            with _refusals(path):
                shown.evaluate(_OPEN, base64.b64encode(data).decode())

            def run(images: list[np.ndarray]) -> list[np.ndarray]:
                fed = images if feed is None else feed(images)
                texts = [
                    [[str(each.dtype), base64.b64encode(each.tobytes()).decode()] for each in some]
                    for some in zip(*fed, strict=True)
                ]
                with _refusals(path):
                    found = shown.evaluate("(images) => self.runImages(images)", texts)
                arrays = []
                for of_output, shape, (dtype, wanted) in zip(
                    zip(*found, strict=True), shapes, casts, strict=True
                ):
                    raw = b"".join(map(base64.b64decode, of_output))
                    values = np.frombuffer(raw, dtype).reshape(len(of_output), *shape[1:])
                    arrays.append(values.astype(wanted))
                return arrays

            yield run


def _readable(content: schema.ModelT) -> tuple[bytes, list[tuple[type, type]]]:
    """Return a file of one image whose outputs JavaScript can read.

    int8 outputs, which it cannot, are cast to int32. Beside the bytes: for each output the type in
    which it comes and the one in the file.
    """
    model = flatbuffer.parsed(flatbuffer.packed(content), "a copy")
    graph = model.subgraphs[0]
    model.signatureDefs = []  # which name the outputs that there were
    types = []
    outputs = [int(i) for i in graph.outputs]
    for position, index in enumerate(outputs):
        tensor = graph.tensors[index]
        if tensor.type in _TYPES:
            types.append((_TYPES[tensor.type], _TYPES[tensor.type]))
            continue
        types.append((np.int32, np.int8))
        outputs[position] = _cast(model, index)
    graph.outputs = np.array(outputs, np.int32)
    return for_one_image(model), types


def _cast(model: schema.ModelT, index: int) -> int:
    """Add the int32 form of an int8 tensor and return it."""
    graph = model.subgraphs[0]
    output = schema.TensorT()
    output.name, output.type = f"cast{index}", schema.TensorType.INT32
    output.shape, output.hasRank = graph.tensors[index].shape, True
    graph.tensors.append(output)
    cast = schema.OperatorT()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
    code.version = 1
    cast.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    cast.inputs = np.array([index], np.int32)
    cast.outputs = np.array([len(graph.tensors) - 1], np.int32)
    cast.builtinOptionsType = schema.BuiltinOptions.CastOptions
    cast.builtinOptions = schema.CastOptionsT()
    cast.builtinOptions.inDataType = schema.TensorType.INT8
    cast.builtinOptions.outDataType = schema.TensorType.INT32
    graph.operators.append(cast)
    return len(graph.tensors) - 1


@contextlib.contextmanager
def _refusals(path) -> Iterator[None]:
    from playwright.sync_api import Error

    try:
        yield
    except Error as error:
        raise ExportError(f"LiteRT.js refuses {path}: {error.message.splitlines()[0]}") from None


def version() -> str:
    """Return what runs files, for reports."""
    package = json.loads((find_litert_js() / "core" / "package.json").read_text())
    return f"LiteRT.js {package['version']} in {Path(browser()).name}"
