"""The page of all messages misses none."""

import ast
from pathlib import Path

import pytest

from tests.docs import generators

messages = generators.load("messages")
ROOT = Path(__file__).parents[2]

SOURCE = '''
"""A module."""
_HINT = "try again"


class Odd(ValueError):
    """Of this module."""


def half(number):
    """Return half.

    Raises:
        Odd: The number is
            odd.
    """
    if number % 2:
        raise Odd(f"Expected an even number. Received: {number}; {_HINT}" + (" now" if 1 else ""))
    raise ValueError("x < y")
'''


@pytest.fixture(scope="module")
def found():
    tree = ast.parse(SOURCE)
    return messages.messages_of("module", tree, messages.exceptions_of({"module": tree}))


def test_a_message_has_its_words_and_names_what_comes_in(found):
    assert found[0].text == ("Expected an even number. Received: <var>number</var>; try again now")
    assert found[1].text == "x &lt; y"


def test_a_message_says_where_it_is_and_what_it_means(found):
    assert [each.exception for each in found] == ["Odd", "ValueError"]
    assert found[0].where == "half"
    assert found[0].line == 18
    assert found[0].meaning == "The number is odd."
    assert found[1].meaning == ""


def test_a_class_that_is_given_is_a_message_too():
    tree = ast.parse("def check(error, x):\n    raise error(f'Wrong: {x}.')\n")
    (found,) = messages.messages_of("module", tree, {"ValueError"})
    assert (found.exception, found.text) == (messages.GIVEN, "Wrong: <var>x</var>.")


def test_every_raise_of_the_package_is_on_the_page():
    trees = messages.parsed(ROOT, ("dlqat_tf", "dlqat_command"))
    exceptions = messages.exceptions_of(trees)
    found = {name: messages.messages_of(name, tree, exceptions) for name, tree in trees.items()}
    makers = {each.where.split(".")[-1] for group in found.values() for each in group}
    count = 0
    for name, tree in trees.items():
        lines = {each.line for each in found[name]}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = node.exc.func
                made_by = called.attr if isinstance(called, ast.Attribute) else called.id
                assert node.exc.lineno in lines or made_by in makers, f"{name}:{node.lineno}"
                count += 1
    assert count > 200


def test_every_module_with_a_message_has_an_area():
    areas = generators.load("areas").AREAS
    assert areas[-1][0] == ("",)  # the one for everything else
    prefixes = [prefix for each, _, _ in areas for prefix in each]
    assert len(set(prefixes)) == len(prefixes)
