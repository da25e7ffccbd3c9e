"""Export of a .tflite file to a web page that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from dlqat_command.metavars import FILE, FOLDER


def web(
    file: Annotated[Path, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    title: str | None = None,
    labels: Annotated[Path | None, FILE] = None,
    litert_js: Annotated[Path | None, FOLDER] = None,
    force: bool = False,
    json: Annotated[Path | None, FILE] = None,
) -> None:
    """Write a web page that runs a .tflite classifier in the browser and measures its speed.

    The folder is a static site: any web server shows it, and it loads nothing from elsewhere. It
    classifies drawings (networks of gray images) and photos on LiteRT.js, which your npm installs
    the first time. Exit status: 0, 2 for what you can mend, 130 after Ctrl-C.

    Args:
        file: The .tflite file, of stock operations, for images.
        folder: Where to write the site, new or empty.
        title: What the page is called; by default the name of the file.
        labels: Text file with the name of a class on each line; by default classes have numbers.
        litert_js: Where npm's package @litertjs/core lies, a node_modules folder or the one that
            holds it; by default what DLQAT_LITERT_JS says, else your npm puts it into the cache.
        force: Write into a folder that holds something.
        json: Write the report here too.
    """
    from dlqat_tf._host import write_whole
    from dlqat_tf.export import command, to_web
    from dlqat_tf.report import check_target

    def work() -> None:
        if json:
            check_target(json, force=force, beside=[file, labels])
        names = _lines(labels) if labels else None
        report = to_web(file, folder, title=title, labels=names, litert_js=litert_js, force=force)
        report.print()
        if json:
            write_whole(json, report.to_json() + "\n")

    command.run(work)


def _lines(labels: Path) -> list[str]:
    """Return the lines of a text file."""
    from dlqat_tf._host import check_readable

    check_readable(labels)
    try:
        return labels.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise OSError(f"Expected a text file in UTF-8, received {labels}: correct it.") from None
