"""Docstrings become Markdown; formulas become MathML."""

import pytest

from tests.docs import generators

pytest.importorskip("griffe", reason="the documentation's tools are not installed: .[docs]")
docstrings = generators.load("docstrings")
mathematics = generators.load("mathematics")


def converted(text):
    return docstrings.to_markdown(text, lambda name: f"[{name}]")


def test_roles_become_formulas_and_links():
    assert converted("Of :math:`x\n    + 1` and :func:`~a.b`, ``c``.") == (
        "Of $x + 1$ and [a.b], `c`.\n"
    )


def test_a_formula_of_one_line_stands_alone():
    assert converted("Is\n\n.. math:: x^2\n\nso.") == "Is\n\n\n$$\nx^2\n$$\n\n\nso.\n"


def test_a_formula_of_aligned_lines_is_one():
    text = "    .. math::\n        a &= 1 \\\\\n        b &= 2\n"
    expected = (
        "\n    $$\n    \\begin{align*}\n    a &= 1 \\\\\n    b &= 2\n    \\end{align*}\n    $$\n\n"
    )
    assert converted(text) == expected


def test_an_example_is_a_block_of_code():
    assert converted("Do\n\n>>> f(1)\n2\n\nthen") == "Do\n\n```pycon\n>>> f(1)\n2\n```\n\nthen\n"


def test_formulas_become_mathml():
    page = '<p>a <span class="arithmatex">\\(x &lt; 1\\)</span></p>'
    assert mathematics.with_formulas(page) == (
        '<p>a <span class="formula"><math xmlns="http://www.w3.org/1998/Math/MathML" '
        'display="inline"><mrow><mi>x</mi><mo>&#x0003C;</mo><mn>1</mn></mrow></math></span></p>'
    )
    page = '<div class="arithmatex">\\[x\\]</div>'
    assert 'display="block"' in mathematics.with_formulas(page)
