"""Formulas as MathML, made when the site is built: pages need no script to show them."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def with_formulas(page: str) -> str:
    """Return a page's HTML in which TeX has become MathML."""
    return _FORMULA.sub(_formula, page)


def _formula(match: re.Match) -> str:
    display = "block" if match[2] == "[" else "inline"
    tex = html.unescape(match[3]).strip()
    return f'<{match[1]} class="formula">{convert(tex, display=display)}</{match[1]}>'
