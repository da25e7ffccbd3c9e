"""The checker of links finds what is broken and nothing else."""

from tests.docs import generators

links = generators.load("links")


def site(folder, **pages):
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def test_links_to_pages_and_anchors_that_are_there_are_whole(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<a href="../one.html#here">')
    pages = dict(one='<p id="here"><a href="#here"><a href="folder/"><a href="https://x.org/y">')
    assert links.broken(site(tmp_path, **pages)) == []


def test_missing_pages_anchors_and_pictures_are_broken(tmp_path):
    text = '<a href="two.html"><a href="#there"><img src="picture.svg">'
    assert links.broken(site(tmp_path, one=text)) == [
        "one.html: two.html",
        "one.html: #there",
        "one.html: picture.svg",
    ]


def test_a_page_that_loads_a_part_from_elsewhere_is_broken(tmp_path):
    text = '<script src="https://x.org/a.js"></script><img src="data:image/png;base64,AA">'
    assert links.broken(site(tmp_path, one=text)) == ["one.html: https://x.org/a.js"]
