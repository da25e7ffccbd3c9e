import pytest

from dlqat_command.tree import Group, function, run


def add(first: int, second: int = 2) -> int:
    """Add two numbers.

    Args:
        first: One of them.
        second: The other.
    """
    if second == 0:
        raise ValueError("nothing to add")
    return first + second


def flow(of: int = 1) -> None:
    """Flow.

    With a width of
    16 and the flag
    --of, as in:

        x flow

    - Items
    - stay.
    """


def half(number: int) -> float:
    """Halve a number."""
    return number / 2


def third(number: int) -> float:
    """Divide a number by three."""
    return number / 3


def prepared(arguments):
    def count(length: int = len(arguments)) -> int:
        """Count the arguments."""
        return length

    return count


PARTS = Group("Take a part.", {"third": function(third)}, default=function(half))
TREE = Group(
    "Compute.",
    {"add-up": function(add), "part": PARTS, "count-up": prepared, "flow": function(flow)},
)


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ("add-up --first 3", 5),
        ("add_up --first 3 --second 4", 7),
        ("part --number 6", 3),
        ("part third --number 6", 2),
        ("count-up", 0),
        ("count-up --length 7", 7),
    ],
)
def test_the_named_command_runs(arguments, result):
    assert run(TREE, arguments.split(), program="x") == result


@pytest.mark.parametrize("name", ["count-up", "count_up"])
def test_defaults_may_depend_on_the_rest_of_the_line(name, capsys):
    with pytest.raises(SystemExit):
        run(TREE, [name, "--help", "--help"], program="x")
    assert "(default: 2)" in capsys.readouterr().out


def test_errors_of_a_command_are_its_own():
    with pytest.raises(ValueError, match=r"^nothing to add$"):
        run(TREE, ["add-up", "--first", "3", "--second", "0"], program="x")


@pytest.mark.parametrize("arguments", [[], ["multiply"], ["--first", "3"]])
def test_a_group_alone_is_a_mistake(arguments, capsys):
    with pytest.raises(SystemExit) as ending:
        run(TREE, arguments, program="x")
    assert ending.value.code == 2
    assert "add-up" in capsys.readouterr().err


def test_help_of_a_group_lists_first_lines(capsys):
    with pytest.raises(SystemExit) as ending:
        run(TREE, ["--help"], program="x")
    assert ending.value.code == 0
    shown = capsys.readouterr().out
    assert "Compute." in shown
    assert "Add two numbers." in shown
    assert "Take a part." in shown
    assert "One of them." not in shown


def test_help_fills_its_lines(capsys):
    with pytest.raises(SystemExit):
        run(TREE, ["flow", "--help"], program="x")
    shown = capsys.readouterr().out
    assert "With a width of 16 and the flag --of, as in:" in shown
    assert "\n- Items\n- stay.\n" in shown
    assert "\n    x flow\n" in shown
