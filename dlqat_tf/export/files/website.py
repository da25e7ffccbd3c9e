"""A .tflite file -> a folder that any web server shows: classifies pictures, measures its speed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._host import check_folder, check_regular
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.census import count
from dlqat_tf.export.files.census_report import Census
from dlqat_tf.export.files.record import read_record
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.preprocessing import UNIT
from dlqat_tf.report import Report

LITERT_JS = "2.5.3"  # what npm installs where no folder is given
_PAGE = Path(__file__).with_name("page")
_FOLDER = "DLQAT_LITERT_JS"  # environment variable: where LiteRT.js lies
_MODEL, _ABOUT = "model.tflite", "about.json"
_RUNTIME = {  # of LiteRT.js in node_modules/@litertjs -> in the site
    "core/dist/index.js": "core/index.js",
    "wasm-utils/dist/index.js": "wasm-utils/index.js",
    "core/wasm": "wasm",
}


@dataclass(frozen=True)
class WebsiteReport(Report):
    """A site that was written.

    Attributes:
        folder: Where.
        litert_js: Version of LiteRT.js in it.
        bytes: Of all files.
        model_bytes: Of the .tflite file in it.
        labels: Names of the classes.
    """

    folder: str
    litert_js: str
    bytes: int
    model_bytes: int
    labels: list[str]

    def tables(self):
        table = Table(title=self.folder, title_justify="left", show_header=False)
        table.add_row("LiteRT.js", self.litert_js)
        table.add_row(
            "site", f"{self.bytes:,} bytes, of which a browser loads one of three runtimes"
        )
        table.add_row("network", f"{self.model_bytes:,} bytes, {len(self.labels)} classes")
        return [table, f"look at it: python -m http.server --directory {self.folder}"]


def to_web(
    file: str | Path,
    folder: str | Path,
    *,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    litert_js: str | Path | None = None,
    force: bool = False,
) -> WebsiteReport:
    """Write a static site that runs a .tflite classifier in the browser, on LiteRT.js.

    It classifies what is drawn (networks of gray images) or a photo, shows the five best classes
    and measures the latency on the device that shows it. It loads nothing from elsewhere.

    Args:
        file: The .tflite file, of one image and one vector of scores, on stock operations. Of one
            that takes any number of images the site has a copy that takes one.
        folder: Where to write, a folder that does not exist or is empty.
        title: What the page is called; by default the name of the file.
        labels: Names of the classes in the order of the scores; by default their numbers.
        litert_js: Where LiteRT.js lies, as for :func:`find_litert_js`.
        force: Write into a folder that holds something; files of equal names are overwritten.

    Raises:
        ExportError: An argument or the file is not as above, there is no LiteRT.js, or a file and a
            folder have one name: nothing is written. Or writing fails, which leaves a part.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise ExportError(
            f"Expected a new or an empty folder. Received: {folder}, which holds something: choose "
            "another one, or overwrite with force."
        )
    content = flatbuffer.read(file)
    check_batch(content, file)
    data = for_one_image(content)
    facts = count(data, file)
    about = _about(content, facts, file)
    about |= dict(title=title or file.stem, labels=_labels(labels, about.pop("classes")))
    source = find_litert_js(litert_js)
    version = json.loads((source / "core" / "package.json").read_text())["version"]
    about |= dict(file=_MODEL, litert=version)
    described = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    _check_names(folder, [*_runtime(source), _MODEL, _ABOUT])
    write_runtime(source, folder)
    with _writing(folder):
        (folder / _MODEL).write_bytes(data)
        (folder / _ABOUT).write_bytes(described.encode())
    return WebsiteReport(
        folder=str(folder),
        litert_js=version,
        bytes=sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()),
        model_bytes=len(data),
        labels=about["labels"],
    )


def check_batch(content: schema.ModelT, file: str | Path) -> None:
    """Raise ExportError for a file that takes several images at once: pages show one."""
    size = flatbuffer.batch_size_of(content)
    if size not in (None, 1):
        raise ExportError(
            f"Expected a file for one image at once. Received: {file}, for {size}: export with "
            "batch_size=1."
        )


def for_one_image(content: schema.ModelT) -> bytes:
    """Return the bytes of a file that takes one image: LiteRT.js refuses any other number."""
    for tensor in content.subgraphs[0].tensors:
        tensor.shapeSignature = None
    return flatbuffer.packed(content)


def write_runtime(litert_js: Path, folder: Path) -> None:
    """Copy the page and LiteRT.js to a folder, without a network.

    Raises:
        ExportError: The folder cannot be written to.
    """
    with _writing(folder):
        for name, origin in _runtime(litert_js).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, folder / name)


def _runtime(litert_js: Path) -> dict[Path, Path]:
    """Return the files of the page and of LiteRT.js by their names in the site."""
    files = {origin.relative_to(_PAGE): origin for origin in _PAGE.rglob("*") if origin.is_file()}
    for source, target in _RUNTIME.items():
        root = litert_js / source
        for origin in root.rglob("*") if root.is_dir() else (root,):
            if origin.is_file() and "jspi" not in origin.name:  # the page has no use for that one
                files[Path("litert") / target / origin.relative_to(root)] = origin
    return files


def _check_names(folder: Path, names: Iterable[str | Path]) -> None:
    """Raise ExportError where a folder has the name of a file, or the reverse."""
    try:
        for name in names:
            check_folder((folder / name).parent)
            check_regular(folder / name)
    except OSError as error:
        raise ExportError(str(error)) from None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"Cannot write to the folder {folder}: {error.strerror}.") from None


def find_litert_js(folder: str | Path | None = None, *, install: bool = True) -> Path:
    """Return the folder ``@litertjs`` of npm's packages of LiteRT.js.

    Args:
        folder: That one, or the ``node_modules`` or the project around it. None: what the
            environment variable ``DLQAT_LITERT_JS`` says, else a copy in the user's cache.
        install: Whether the user's npm puts the copy there where it is missing.

    Raises:
        ExportError: It is not there, or npm is missing or fails.
    """
    folder = folder or os.environ.get(_FOLDER)
    if folder:
        for each in ("", "@litertjs", "node_modules/@litertjs"):
            if _complete(Path(folder) / each):
                return Path(folder) / each
        raise ExportError(
            f"Expected npm's packages @litertjs/core and @litertjs/wasm-utils. Received: {folder}, "
            "which does not hold them: run `npm install @litertjs/core` there."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache / "dlqat_tf" / f"litert_js-{LITERT_JS}"
    found = cache / "node_modules" / "@litertjs"
    if _complete(found):
        return found
    command = ["npm", "install", "--prefix", str(cache), f"@litertjs/core@{LITERT_JS}"]
    if not install or shutil.which("npm") is None:
        raise ExportError(
            f"Expected LiteRT.js: install Node.js, whose npm is called for it, or run `npm install "
            f"@litertjs/core@{LITERT_JS}` elsewhere and give its folder (litert_js, or {_FOLDER})."
        )
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not _complete(found):
        raise ExportError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
    return found


def _complete(folder: Path) -> bool:
    needed = (*_RUNTIME, "core/package.json")
    return all((folder / each).exists() for each in needed)


def _labels(labels: Sequence[str] | None, classes: int) -> list[str]:
    if labels is None:
        return [str(i) for i in range(classes)]
    if len(labels) != classes:
        raise ExportError(
            f"Expected {classes} labels, one for each score. Received: {len(labels)}."
        )
    return [str(each) for each in labels]


def _about(content: schema.ModelT, facts: Census, file: Path) -> dict:
    """Return what the page has to know of a file.

    Raises:
        ExportError: It is not one of one image and one vector of scores that LiteRT.js runs.
    """
    graph, record = content.subgraphs[0], read_record(content, file) or {}
    lce = sorted(name for name in facts.operators if name.startswith("Lce"))
    if lce:
        raise ExportError(
            f"{file} has {', '.join(lce)} of Larq Compute Engine, which no browser runs: export "
            "with to_tflite."
        )
    shapes = [graph.tensors[int(i)].shape for i in graph.outputs]
    if len(facts.inputs) != 1 or len(shapes) != 1:
        raise ExportError(
            f"Expected a file of one input and one output. Received: {len(facts.inputs)} and "
            f"{len(shapes)} in {file}."
        )
    (taken,), (shape,) = facts.inputs, shapes
    if len(taken.shape) != 3 or taken.shape[2] not in (1, 3):
        raise ExportError(
            f"Expected a file that takes images of 1 or 3 channels. Received: {file}, {taken}."
        )
    if len(shape) != 2 or shape[1] < 2:
        raise ExportError(
            f"Expected a file that returns a score for each of several classes. Received: {file}, "
            f"whose output has the shape {tuple(map(int, shape))}."
        )
    described = (record.get("inputs") or [{}])[0].get("preprocessing")
    plain = taken.type == "float32" and described == asdict(UNIT)
    if taken.type != "uint8" and not plain:
        raise ExportError(
            f"Expected a file that takes pixels, as uint8 or as float32 from 0 to 1. Received: "
            f'{file}, {taken}: export with input_type="uint8".'
        )
    height, width, channels = taken.shape
    endings = record.get("endings") or [""]
    widths = sorted({each.declared_bits for each in facts.layers if each.declared_bits})
    return dict(
        height=height,
        width=width,
        channels=channels,
        type=taken.type,
        classes=int(shape[1]),
        ending=endings[0],
        drawing="a digit" if (height, width, channels, shape[1]) == (8, 8, 1, 10) else None,
        facts=[f"{widths[0]}-bit weights"] if widths and widths[0] < 8 else [],
        bytes=facts.file_bytes,
        deflated=facts.deflated_bytes,
    )
