"""The integer programme of :func:`dlqat_tf.choose_bits`: widths of least harm within budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Costs = dict[str, float]
_SCALE = 1e6  # of the largest harm: the solver's tolerances are absolute, a millionth


@dataclass(frozen=True)
class Reader:
    """A layer with a kernel, and what it costs by the widths of its kernel and of what it reads.

    Attributes:
        name: Of the layer.
        group: The activations that it reads and that have a choice, None for others.
        costs: By (weight bits, bits of the group), each 0 without a choice, costs by name.
    """

    name: str
    group: str | None
    costs: dict[tuple[int, int], Costs]


@dataclass(frozen=True)
class Choice:
    """A width for each kernel and group.

    Attributes:
        bits: By name; 0 of kernels without a choice.
        increase: Sum of what the choices add to the loss.
        costs: By name, all layers together.
    """

    bits: dict[str, int]
    increase: float
    costs: Costs


class Programme:
    r"""Chooses one width for each kernel and group of activations.

    With :math:`z_{l,w,a} = 1` where layer l has w bits and reads a, and :math:`y_{g,a} = 1` where
    group g has a bits:

    .. math::
        \min \sum \Omega_{l,w} z_{l,w,a} + \sum \Omega_{g,a} y_{g,a}, \quad
        \sum_{w,a} z_{l,w,a} = 1, \quad \sum_a y_{g,a} = 1, \quad
        \sum_w z_{l,w,a} = y_{g(l),a}, \quad \sum c_{l,w,a} z_{l,w,a} \le B

    Costs of a layer depend on both widths, so they need no product of unknowns.

    Args:
        readers: All layers with kernels.
        groups: By name of the activations that have a choice, their widths.
        fixed: By name, what the rest of the network costs.
    """

    def __init__(self, readers: list[Reader], groups: dict[str, tuple[int, ...]], fixed: Costs):
        self._readers, self._groups, self._fixed = readers, groups, fixed
        self._columns: list[tuple[Reader | str, int, int]] = []
        for reader in readers:
            self._columns += [(reader, *pair) for pair in reader.costs]
        for group, widths in groups.items():
            self._columns += [(group, 0, bits) for bits in widths]
        self._rows, self._sums = self._equalities()

    def _equalities(self) -> tuple[np.ndarray, np.ndarray]:
        rows, sums = [], []
        for part in (*self._readers, *self._groups):
            rows.append([float(each is part) for each, *_ in self._columns])
            sums.append(1.0)
        for reader in self._readers:
            for bits in self._groups[reader.group] if reader.group is not None else ():
                row = [
                    float(each is reader) - float(each == reader.group)
                    if activation == bits
                    else 0.0
                    for each, _, activation in self._columns
                ]
                rows.append(row)
                sums.append(0.0)
        return np.array(rows), np.array(sums)

    def _costs(self, name: str) -> np.ndarray:
        return np.array(
            [
                each.costs[weight, activation][name] if isinstance(each, Reader) else 0.0
                for each, weight, activation in self._columns
            ]
        )

    def _minimise(self, objective: np.ndarray, budgets: Costs) -> np.ndarray:
        """Return which columns are chosen.

        Raises:
            ValueError: No choice is within the budgets.
        """
        from scipy.optimize import LinearConstraint, milp

        constraints = [LinearConstraint(self._rows, self._sums, self._sums)]
        constraints += [self._limit(name, budget) for name, budget in budgets.items()]
        objective = objective * (_SCALE / max(np.abs(objective).max(initial=0.0), 1e-30))
        while True:
            result = milp(
                objective,
                constraints=constraints,
                integrality=np.ones(len(objective)),
                bounds=(0, 1),
                options={"mip_rel_gap": 0.0},
            )
            if result.x is None:
                raise ValueError(
                    f"Expected budgets that some choice is within. Received: {budgets}."
                )
            chosen = result.x > 0.5
            if all(_within(self._total(name, chosen), budgets[name]) for name in budgets):
                return chosen
            # Solvers take what is above a bound by a millionth: not this choice then.
            constraints.append(LinearConstraint(chosen[None], -np.inf, chosen.sum() - 1))

    def _limit(self, name: str, budget: float):
        """Return a budget as a constraint of the solver."""
        from scipy.optimize import LinearConstraint

        costs, left = self._costs(name), budget - self._fixed[name]
        for reader in self._readers:
            least = min(each[name] for each in reader.costs.values())
            costs[[each is reader for each, *_ in self._columns]] -= least
            left -= least
        if np.array_equal(costs, np.rint(costs)) and costs.any():
            # Half way to the next sum that there may be, so that the tolerance decides nothing.
            step = np.gcd.reduce(costs.astype(np.int64))
            left = (np.floor(left / step) + 0.5) * step
        unit = costs.max(initial=0.0) or 1.0
        return LinearConstraint(costs[None] / unit, -np.inf, left / unit)

    def smallest(self, name: str, within: Costs) -> float:
        """Return the least that a choice may cost within other budgets, which must be possible."""
        return self._total(name, self._minimise(self._costs(name), within))

    def _total(self, name: str, chosen: np.ndarray) -> float:
        return float(self._costs(name)[chosen].sum() + self._fixed[name])

    def check(self, budgets: Costs) -> None:
        """Refuse budgets that no choice is within.

        Raises:
            ValueError: There is none; the message has the smallest that is possible.
        """
        within: Costs = {}
        for name, budget in budgets.items():
            smallest = self.smallest(name, within)
            if not _within(smallest, budget):
                others = " and ".join(f"{other} of {each:g}" for other, each in within.items())
                raise ValueError(
                    f"Expected a budget of at least {smallest:,.10g} for {name}, the smallest that "
                    f"these widths allow{f' within {others}' if others else ''}. Received: "
                    f"{budget:,.10g}. Give it more, or offer lower widths."
                )
            within[name] = budget

    def solve(self, rises: dict[str, dict[int, float]], budgets: Costs) -> Choice:
        """Return the choice of the smallest increase within budgets, which must be possible.

        Args:
            rises: By name of kernels and groups, the increase of the loss by bits; nothing for
                kernels without a choice.
            budgets: By name.
        """
        objective = np.array(
            [
                rises.get(each.name, {}).get(weight, 0.0)
                if isinstance(each, Reader)
                else rises[each][activation]
                for each, weight, activation in self._columns
            ]
        )
        chosen = self._minimise(objective, budgets)
        bits = {
            each.name if isinstance(each, Reader) else each: (
                weight if isinstance(each, Reader) else activation
            )
            for (each, weight, activation), is_chosen in zip(self._columns, chosen, strict=True)
            if is_chosen
        }
        costs = {name: self._total(name, chosen) for name in self._fixed}
        return Choice(bits, float(objective[chosen].sum()), costs)

    def curve(self, rises: dict[str, dict[int, float]], name: str, points: int) -> Iterator[Choice]:
        """Yield the best choices under budgets from the smallest possible to what is never reached.

        Args:
            rises: As in :meth:`solve`.
            name: Of what is limited.
            points: How many budgets.
        """
        lowest = self.smallest(name, {})
        best = self.solve(rises, {})
        seen = None
        for budget in np.linspace(lowest, max(best.costs[name], lowest), points):
            choice = self.solve(rises, {name: float(budget) * (1 + 1e-9)})
            if choice != seen:
                yield choice
            seen = choice


def _within(cost: float, budget: float) -> bool:
    return cost <= budget * (1 + 1e-15)  # sums of what is not whole may be rounded up
