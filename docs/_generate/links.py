"""Checks a built site: every link in it leads to a page, a picture or an anchor that is there.

python docs/_generate/links.py site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Collects the links of a page, what it is made of (scripts, pictures), and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.parts: list[str] = []
        self.anchors: set[str] = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        is_page = tag == "a" or dict(attributes).get("rel") in ("canonical", "prev", "next")
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                (self.links if is_page else self.parts).append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """Return "page: link" for every link within a site that leads nowhere.

    Links to other sites are not followed, and what a page loads from them is broken: a site that
    needs another one to be shown is not whole.
    """
    pages = {path.resolve(): _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the address at which it is shown
            continue
        for link in page.links + page.parts:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.parts and parts.scheme != "data":
                    found.append(f"{path.relative_to(site.resolve())}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            is_there = target.is_file() and (
                target not in pages or unquote(parts.fragment) in pages[target].anchors
            )
            if not is_there:
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


def main() -> None:
    """Check the site in the folder that is named."""
    site = Path(sys.argv[1])
    pages = len(list(site.rglob("*.html")))
    found = broken(site)
    print("\n".join(found) or f"{pages} pages, no broken link")
    sys.exit(1 if found or not pages else 0)


if __name__ == "__main__":
    main()
