"""How often models, simulation and file decide alike, output by output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dlqat_tf.export.integer.errors import ExportError

_ROUNDING = 1e-6  # of the largest score, for sums of floats in another order

Labels = np.ndarray | Sequence | dict[str, np.ndarray] | None


@dataclass(frozen=True)
class AccuracyChange:
    """How much better one form decides than another.

    Attributes:
        points: Difference of their accuracies, in percentage points.
        error: Its standard error, of other images than these. Decisions on one image belong
            together.
    """

    points: float
    error: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class OutputParity:
    """One output of a model, in several forms of it.

    A decision is an arg-max over the last axis, at each position where there are several. Where
    that axis is one score, it is on which side of the border the score lies: 0.5 of what a sigmoid
    gives, else 0.

    Attributes:
        output: Its name.
        top1: Percentage of decisions that are the labels, by form; empty without labels.
        agreement: Percentage of equal decisions, by pair of forms.
        difference: Largest absolute difference of values between simulation and file, and between
            Keras models and file after several scores are centred and scaled to unit length per
            image (files drop the factor and offset that do not change the arg-max).
        ties: Percentage of decisions between scores of the file that are equal up to the rounding
            of float additions, 1e-6 of the largest: which of them wins is chance in all forms.
        change: How much better the second form of a pair decides; empty without labels.
    """

    output: str
    top1: dict[str, float]
    agreement: dict[str, float]
    difference: dict[str, float]
    ties: float = 0.0
    change: dict[str, AccuracyChange] = field(default_factory=dict)


def compared(
    name: str,
    values: dict[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    labels: np.ndarray | None,
    border: float,
) -> OutputParity:
    """Compare the forms of one output.

    Args:
        name: Of the output.
        values: (images, ..., scores) by form.
        pairs: Which forms to compare.
        labels: Integers (images,), or (images, ...) for a decision at each position; None: unknown.
        border: Between the decisions of one score.

    Raises:
        ExportError: There are not as many labels as decisions.
    """
    # Outputs of one value for each image, without an axis of scores.
    values = {form: each[:, None] if each.ndim == 1 else each for form, each in values.items()}
    best = {form: _decisions(each, border) for form, each in values.items()}
    count, decisions = next(iter(best.values())).shape
    top1, change = {}, {}
    if labels is not None:
        scores = next(iter(values.values())).shape[-1]
        expected = _classes(name, labels, (count, decisions), max(scores, 2))
        right = {form: np.mean(each == expected, axis=1) for form, each in best.items()}
        top1 = {form: 100.0 * float(np.mean(each)) for form, each in right.items()}
        change = {f"{a}_{b}": _change(right[a], right[b]) for a, b in pairs}
    unit = {form: _normalised(each) for form, each in values.items()}
    difference = {}
    for a, b in pairs:
        if b != "file":
            continue
        # Keras models differ from files by a factor and an offset.
        forms = values if a == "simulation" else unit
        difference[f"{a}_{b}"] = float(np.abs(forms[a] - forms[b]).max(initial=0))
    return OutputParity(
        output=name,
        top1=top1,
        agreement={f"{a}_{b}": 100.0 * float(np.mean(best[a] == best[b])) for a, b in pairs},
        difference=difference,
        ties=100.0 * float(np.mean(_are_ties(values["file"], border))),
        change=change,
    )


def labels_of(labels: Labels, names: Sequence[str]) -> list:
    """Return the labels of each output, None where there are none.

    Args:
        labels: As for :func:`dlqat_tf.export.parity`.
        names: Of the outputs.

    Raises:
        ExportError: They are for other outputs.
    """
    if labels is None:
        return [None] * len(names)
    if isinstance(labels, dict):
        if not set(labels) <= set(names):
            raise ExportError(
                f"Expected labels by output name, of {', '.join(names)}. Received: labels for "
                f"{', '.join(map(str, labels))}."
            )
        return [labels.get(name) for name in names]
    if len(names) == 1:
        return [labels]
    if not isinstance(labels, (list, tuple)) or len(labels) != len(names):
        raise ExportError(
            f"Expected labels of each output, {', '.join(names)}, in a list (None for those "
            f"without) or a dictionary by name. Received: {type(labels).__name__}."
        )
    return list(labels)


def mean_of(outputs: Sequence[OutputParity]) -> dict[str, float]:
    """Return the accuracies, of several outputs the mean of those that have labels."""
    labelled = [each.top1 for each in outputs if each.top1]
    forms = labelled[0] if labelled else {}
    return {form: float(np.mean([each[form] for each in labelled])) for form in forms}


def _change(before: np.ndarray, after: np.ndarray) -> AccuracyChange:
    """Return the change between shares of right decisions (images,)."""
    changes = 100.0 * (after - before)
    return AccuracyChange(float(changes.mean()), float(changes.std() / math.sqrt(len(changes))))


def _classes(name: str, labels, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Return the labels of an output in the shape (images, decisions).

    Positions of images may have another number, where there is nothing to tell apart.
    """
    found, (count, decisions) = np.asarray(labels), shape
    if found.size != count * decisions:
        raise ExportError(
            f"Expected {count * decisions} labels for {count} images of the output {name!r}. "
            f"Received: {found.size}."
        )
    if found.dtype.kind not in "biuf" or np.any(found != np.rint(found)):
        raise ExportError(
            f"Expected labels of the output {name!r} to be classes, integers. Received: "
            f"{found.dtype}{' with fractions or NaN' if found.dtype.kind == 'f' else ''}."
        )
    if decisions == 1 and (found.min() < 0 or found.max() >= classes):
        raise ExportError(
            f"Expected labels of the output {name!r} from 0 to {classes - 1}. Received: "
            f"{found.min():g} to {found.max():g}."
        )
    return found.reshape(shape)


def _decisions(values: np.ndarray, border: float) -> np.ndarray:
    """Return integers (images, decisions)."""
    best = values[..., 0] >= border if values.shape[-1] == 1 else values.argmax(-1)
    return np.reshape(best, (len(values), -1)).astype(np.int64)


def _are_ties(values: np.ndarray, border: float) -> np.ndarray:
    """Return bool (images, ...), whether the best score and the one after it are equal."""
    if values.shape[-1] == 1:
        values = np.concatenate([values, np.full_like(values, border)], axis=-1)
    second, first = np.moveaxis(np.partition(values, -2, axis=-1)[..., -2:], -1, 0)
    return first - second <= _ROUNDING * np.abs(values).max(axis=-1)


def _normalised(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] == 1:
        return values.astype(np.float64)
    centred = values.astype(np.float64) - values.mean(axis=-1, keepdims=True, dtype=np.float64)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
