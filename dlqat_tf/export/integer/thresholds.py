"""Rounding thresholds between a channel's sums, and what moves of its bias and gain cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.export.integer.nodes import Activation, Sign
from dlqat_tf.quantizers import ActivationGrid

_ROUNDOFF = 2.0**-24  # largest relative error of one float32 operation
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the wanted distance, down to what float32 biases need
_NEEDED = 0.25  # of the clearance: the largest error that was seen
_TIE = 128  # codes that a tie costs: it makes the snapped model, the proof of a file, another one
_PARTS = (1, 2, 4, 8, 16)  # of a step of sums, which an output step may be whole numbers of
_FARTHEST = 0.5  # output steps that a change of the gain may move the end of the grid by
_NEAR = 64  # moves of the bias that are tried with changes of the gain


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a channel, in steps of its sums.

    Attributes:
        points: Distances of the thresholds from the bias.
        least: The lowest sum.
        most: The highest.
        spacing: Greatest common divisor of the channel's weight codes, of which sums are multiples.
        clearance: Distance that thresholds keep from sums where float32 is to give the same codes.
        bias: The bias.
        step: Distance between two thresholds.
        largest_change: Of the gain, relative.
        costs: Of a code at each threshold, (thresholds,) or one for all.
        trained: ``points`` of the network as trained, whose codes are to be kept, where steps
            moved; None for the same.
    """

    points: np.ndarray
    least: int
    most: int
    spacing: int
    clearance: float
    bias: float = 0.0
    step: float = 1.0
    largest_change: float = 0.0
    costs: np.ndarray | float = 1.0
    trained: np.ndarray | None = None

    @property
    def near(self) -> np.ndarray:
        """Which thresholds sums come near to: bool (thresholds,)."""
        low, high = self.least - self.spacing, self.most + self.spacing
        return (self.points > low) & (self.points < high)

    @property
    def _below(self) -> np.ndarray:
        """The sum below each threshold, as trained."""
        points = self.points if self.trained is None else self.trained
        return np.floor(points / self.spacing) * self.spacing

    @property
    def wanted(self) -> float:
        """Distance to move to, so that what is rounded afterwards is still clear."""
        return self.clearance * 9 / 8

    def choice(
        self, moves: np.ndarray, with_gain: bool = False, leads: np.ndarray | float = 0.0
    ) -> tuple[int, float]:
        """Return which move of the bias to make, and the change of the gain that goes with it.

        Those that cost least, of these a clear one, of these the smallest change, then move.

        Args:
            moves: What to choose from; of equal ones it is the first.
            with_gain: Whether the gain may change too, which it does only where a move alone costs
                any code, and where float32 can tell two sums apart.
            leads: What of the bias after each move is the kernel's
                (:func:`~dlqat_tf.export.integer.integers.lead_of`) and scales with the gain.
        """
        none, leads = np.zeros(len(moves)), np.broadcast_to(leads, moves.shape)
        best = self._best(moves, none, leads)
        with_gain &= _NEEDED * self.clearance < self.spacing / 2
        if not with_gain or not self._cost(moves[[best]], none[[best]], leads[[best]])[0].item():
            return best, 0.0
        near = np.argsort(np.abs(moves), kind="stable")[:_NEAR]
        changes = self._changes(moves[near], leads[near])
        which = np.concatenate([[best], *[near] * len(changes)])
        changes = np.append(0.0, changes)
        chosen = self._best(moves[which], changes, leads[which])
        return int(which[chosen]), float(changes[chosen])

    def _best(self, moves: np.ndarray, changes: np.ndarray, leads: np.ndarray) -> int:
        costs, distances = self._cost(moves, changes, leads)
        unclear = sum(distances < share * self.wanted for share in _SHARES)
        return int(np.lexsort((np.abs(moves), np.abs(changes), unclear, costs))[0])

    def _cost(
        self, moves: np.ndarray, changes: np.ndarray, leads: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what pairs of a move and a change cost, and how near the nearest sum is then.

        A threshold that passes n sums costs n codes, and so do ties: thresholds that are so near to
        a sum that the order of float32 additions decides. Each counts as much as codes there cost.
        """
        moves, changes, leads = (each[:, np.newaxis] for each in (moves, changes, leads))
        moved = self.points + changes * (self.points + self.bias - leads) - moves
        ends = self.least / self.spacing, self.most / self.spacing
        below = [
            np.clip(each, ends[0] - 1, ends[1])
            for each in (np.floor(moved / self.spacing), self._below / self.spacing)
        ]
        nearest = np.clip(np.rint(moved / self.spacing), *ends) * self.spacing
        distances = np.abs(moved - nearest)
        ties = distances < _NEEDED * self.clearance
        changed = np.abs(below[0] - below[1]) + _TIE * ties
        return (self.costs * changed).sum(axis=1), distances.min(axis=1)

    def _changes(self, moves: np.ndarray, leads: np.ndarray) -> np.ndarray:
        r"""Return changes of the gain that may suit each move: (kinds, moves).

        With the gain divided by :math:`1 + a` and the bias moved by :math:`\delta`, a threshold at
        :math:`R` from zero (less the kernel's lead) moves by :math:`a R - \delta`. So it stays
        between the same two sums for an interval of :math:`a`, and keeps a distance from them for a
        part of it. A change lies in most of these parts, which are those of the wanted distance, or
        of what is needed of it. Others make an output step an odd number of parts of a step of
        sums, so that no threshold is nearer to a sum than half a part.
        """
        points = self.points[self.near]
        costs = np.broadcast_to(self.costs, self.points.shape)[self.near]
        distances = (points + self.bias - leads[:, np.newaxis])[:, np.newaxis]
        phase, kinds = points - self._below[self.near], []
        for share in (1.0, _NEEDED):
            margin = min(share * self.wanted, self.spacing / 2)
            ends = np.stack([margin - phase, self.spacing - margin - phase])
            ends = (ends + moves[:, np.newaxis, np.newaxis]) / distances
            kinds.append(_most_covered(np.sort(ends, axis=1), costs, self.largest_change))
        parts = self.spacing / np.array(_PARTS)
        whole = (2 * np.floor(self.step / parts / 2) + 1) * parts / self.step - 1
        whole = whole[np.abs(whole) <= self.largest_change]
        return np.stack([*kinds, *np.broadcast_to(whole[:, np.newaxis], (len(whole), len(moves)))])

    def move_between(self) -> float:
        """Return the shortest move that crosses none and is clear, or the one to the middle."""
        phase = (self.points - self._below)[self.near]
        low, high = phase.max() - self.spacing, phase.min()
        if min(-low, high) >= self.clearance:
            return 0.0
        margin = min(self.wanted, (high - low) / 2)
        return float(np.clip(0.0, low + margin, high - margin))


def thresholds_of(
    codes: np.ndarray,
    source: ActivationGrid | None,
    target: Activation | Sign,
    unit: np.ndarray,
    bias: np.ndarray,
    moments: Moments | None = None,
    trained: tuple[float, float] = (1.0, 1.0),
) -> Iterator[Thresholds | None]:
    """Yield the thresholds of each channel; None where its sums reach none.

    Args:
        codes: (weights, channels).
        source: Grid of the input, None for signs.
        target: What rounds the output.
        unit: (channels,), output of a sum of 1.
        bias: (channels,), in these.
        moments: Of the outputs, where they are known: a code costs as much as it is likely.
        trained: The steps of input and output as trained, in parts of these.
    """
    lowest, highest = (source.lowest, source.highest) if source else (-1, 1)
    least = np.minimum(codes * lowest, codes * highest).sum(axis=0)
    most = np.maximum(codes * lowest, codes * highest).sum(axis=0)
    spacing = np.maximum(np.gcd.reduce(codes, axis=0), 1)
    walk = np.abs(bias) + max(highest, -lowest) * np.sqrt(np.square(codes).sum(axis=0))
    thresholds, step, largest_change = np.zeros(1), 1.0, 0.0
    if isinstance(target, Activation):
        grid, step = target.grid, float(target.grid.step)
        thresholds = (np.arange(grid.lowest, grid.highest) + 0.5) * step
        largest_change = _FARTHEST / max(grid.highest, -grid.lowest)
    costs = moments.density(thresholds) if moments else np.ones(len(bias))
    for i in range(len(bias)):
        points = thresholds / unit[i] - bias[i]
        before = (thresholds * trained[1] / unit[i] - bias[i]) / trained[0]
        found = Thresholds(
            points,
            int(least[i]),
            int(most[i]),
            int(spacing[i]),
            clearance=0.0,
            bias=float(bias[i]),
            step=step / float(unit[i]),
            largest_change=largest_change,
            costs=costs[i],
            trained=before,
        )
        if not found.near.any():
            yield None
            continue
        sums = np.abs(found.points[found.near]).max() + walk[i]
        yield replace(found, clearance=_ROUNDOFF * (math.sqrt(len(codes)) + 16) * sums)


def _most_covered(intervals: np.ndarray, weights: np.ndarray, farthest: float) -> np.ndarray:
    """Return what lies in most of the intervals of each row; of such numbers the nearest to 0.

    Args:
        intervals: (rows, 2, intervals), lower and upper ends.
        weights: (intervals,), what each of them counts.
        farthest: Largest distance from 0.
    """
    rows, _, count = intervals.shape
    ends = intervals.reshape(rows, 2 * count)
    order = np.argsort(ends, axis=1, kind="stable")
    ends = np.take_along_axis(ends, order, axis=1)
    changes = np.concatenate([weights, -weights])[order]
    covered = np.cumsum(changes, axis=1)[:, :-1]
    nearest = np.clip(0.0, ends[:, :-1], ends[:, 1:])
    covered = np.where(np.abs(nearest) <= farthest, covered, -1)
    is_most = covered > covered.max(axis=1, keepdims=True) - 1e-9  # up to roundings of sums
    which = np.argmin(np.where(is_most, np.abs(nearest), np.inf), axis=1)
    return nearest[np.arange(rows), which]
