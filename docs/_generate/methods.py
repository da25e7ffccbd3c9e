"""What the site says of each method, from the registry and the docstrings of its quantizers."""

from __future__ import annotations

import csv
import inspect
import re
import sys
from pathlib import Path

import pictures
from dlqat_tf import CGPACT, methods
from docstrings import to_markdown

_WIDTHS = range(1, 9)
_MEASURED = Path(__file__).parents[2] / "results" / "methods" / "table.csv"


def widths(method: methods.Method) -> list[int]:
    """Return the widths that a method defines for weights, 32 left out."""
    found = []
    for bits in _WIDTHS:
        try:
            method.weights(bits)
        except ValueError:
            continue
        found.append(bits)
    return found


def quantizers(method: methods.Method) -> list:
    """Return a weight and an activation quantizer; the latter only where the method has its own."""
    bits = widths(method)[0]
    found = [method.weights(bits)]
    activation = method.activations(2, alpha_init=2.0, regularizer=None, name=None)
    if type(activation) is not CGPACT or method.name == "sat":
        found.append(activation)
    return found


def overview() -> str:
    """Return a table of all methods."""
    lines = [
        "| method | weights | its own activations | source | page |",
        "|---|---|---|---|---|",
    ]
    for name in methods.names():
        method = methods.get(name)
        own = len(quantizers(method)) > 1
        lines.append(
            f"| `{name}` | {_bits(method)} | {'yes' if own else 'no: CG-PACT'} | {method.source} "
            f"| [{name}]({name}.md) |"
        )
    return "\n".join(lines)


def section(name: str) -> str:
    """Return the generated part of a method's page: formulas, pictures, claims, measurements."""
    method = methods.get(name)
    parts = [f"Source: {method.source}. Weights of {_bits(method)} bits."]
    parts += ["## Formulas"]
    documented: dict = {}
    for quantizer in quantizers(method):
        documented |= _documented(type(quantizer))
    parts += [_formulas(what, text) for what, text in documented.items()]
    parts += [
        "## Function and gradient",
        f"![What {name} makes of a value, and the gradient that comes back](pictures/{name}.svg)",
        "Drawn from the quantizers themselves, on 401 values; the gradient is the derivative of "
        "each output by its own input, as training sees it.",
        "## Recipe",
        _recipe(method),
        "## What its paper claims",
        _claims(method),
    ]
    return "\n\n".join(parts)


def measured(name: str) -> str:
    """Return a table of the cells of the comparison of methods that a method has finished."""
    rows: list[dict] = []
    if _MEASURED.is_file():
        with open(_MEASURED, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == name]
    rows = [row for row in rows if row["weight_bits"] != "32"]
    if not rows:
        return "Not measured."
    lines = [
        "One network, one budget, all methods; how, and what is beside it, is in "
        "[Results](../results.md#methods-against-each-other).",
        "",
        "| data set | weights | activations | loss | top-1, % | below float, points | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        activations = "float" if row["activation_bits"] == "32" else row["activation_bits"]
        lines.append(
            f"| {row['dataset']} | {row['weight_bits']} | {activations} | {row['loss']} "
            f"| {row['top1']} | {row['drop']} | {row['commit']} |"
        )
    return "\n".join(lines)


def picture(name: str) -> bytes:
    """Return an SVG of a method's functions and gradients."""
    method = methods.get(name)
    drawn = [method.weights(bits) for bits in _shown(widths(method))]
    columns = [("weights", drawn)]
    if len(quantizers(method)) > 1:
        make = method.activations
        columns.append(
            (
                "activations",
                [make(bits, alpha_init=2.0, regularizer=None, name=None) for bits in (1, 2, 4)],
            )
        )
    return pictures.svg(pictures.functions(columns))


def _shown(bits: list[int]) -> list[int]:
    return [each for each in bits if each in (1, 2, 4)] or bits[:3]


def _bits(method: methods.Method) -> str:
    found = widths(method)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    return " and ".join(map(str, found))


def _documented(quantizer: type) -> dict:
    """Return the docstrings of a quantizer and of the functions of its module that it names."""
    module = sys.modules[quantizer.__module__]
    text = inspect.getdoc(quantizer) or ""
    functions = [getattr(module, each) for each in re.findall(r":func:`~?(\w+)`", text)]
    return {quantizer: text} | {each: inspect.getdoc(each) for each in functions}


def _formulas(what, text: str) -> str:
    """Return a docstring up to its arguments, under its name."""
    path = f"{what.__module__}.{what.__qualname__}"
    body = re.split(r"^(?:Args|Raises|Returns|Attributes):", text or "", flags=re.M)[0]
    body = re.sub(r"^>>> .*\n?", "", body, flags=re.M)
    return f"### [`{what.__name__}`][{path}]\n\n{to_markdown(body, _as_code)}"


def _as_code(name: str) -> str:
    return f"`{name.rpartition('.')[2]}`"


def _recipe(method: methods.Method) -> str:
    lines = ["```sh", f"dlqat train cifar100-gml --method {method.name}", "```"]
    if method.recipe:
        settings = ", ".join(f"`{key}={value}`" for key, value in method.recipe.items())
        lines += ["", f"Settings that its paper or its authors' code gives: {settings}."]
    if method.callbacks(1.0, 1):
        names = ", ".join(f"`{type(each).__name__}`" for each in method.callbacks(1.0, 1))
        lines += ["", f"Its quantizers follow the training's progress: give `fit` a {names}."]
    return "\n".join(lines)


def _claims(method: methods.Method) -> str:
    if not method.rows:
        return "The DL-QAT paper's tables have no row of it."
    lines = [
        "ResNet-18 on ImageNet, top-1 in percent, as the tables of the DL-QAT paper quote it"
        + (f" ({method.network})." if method.network else "."),
        "",
        "| weights | activations | top-1 | table |",
        "|---|---|---|---|",
    ]
    for row in method.rows:
        activations = "float" if row.activation_bits == 32 else row.activation_bits
        lines.append(f"| {row.weight_bits} | {activations} | {row.accuracy} | {row.table} |")
    return "\n".join(lines)
