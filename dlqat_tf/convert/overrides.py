"""The user's exceptions."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from dlqat_tf.convert.report import ConversionError
from dlqat_tf.quantizers.base import check_bits

WIDTHS = {"weight_bits": 1, "activation_bits": 1, "residual_bits": 2}  # and the lowest of each


class Overrides:
    """The user's exceptions, by layer name."""

    def __init__(self, rules: dict[str, dict[str, int] | str]):
        if not isinstance(rules, dict) or not all(isinstance(name, str) for name in rules):
            raise ConversionError(
                "Expected overrides to be a dict by layer name or pattern. Received: "
                f"overrides={rules!r}."
            )
        for pattern, rule in rules.items():
            if rule == "float":
                continue
            if not isinstance(rule, dict) or not rule or not set(rule) <= set(WIDTHS):
                raise ConversionError(
                    f'Expected the override of {pattern!r} to be "float" or a dict of '
                    f"{', '.join(WIDTHS)}. Received: {rule!r}."
                )
            for name, bits in rule.items():
                check_bits(bits, lowest=WIDTHS[name], name=f"the override of {pattern!r}, {name}")
        self.rules = rules

    def of(self, name: str) -> dict[str, int] | str:
        """Return what holds for a layer: later matches win, width by width."""
        found: dict[str, int] | str = {}
        for pattern, rule in self.rules.items():
            if fnmatch.fnmatchcase(name, pattern):
                found = rule if rule == "float" or found == "float" else {**found, **rule}
        return found

    def check(self, names: Iterable[str], having: dict[str, set[str]]) -> None:
        """Raise for rules without effect.

        Args:
            names: All layers.
            having: By width, the layers that have it.
        """
        names = list(names)
        for pattern, rule in self.rules.items():
            matched = fnmatch.filter(names, pattern)
            if not matched:
                close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                advice = f" Close names: {', '.join(map(repr, close))}." if close else ""
                raise ConversionError(f"The override {pattern!r} matches no layer.{advice}")
            for width in [] if rule == "float" else rule:
                if not having[width].intersection(matched):
                    raise ConversionError(
                        f"The override {pattern!r} sets {width}, which none of the layers that it "
                        f"matches has: {', '.join(matched)}."
                    )
