"""Ranges of what is added and multiplied, which int8 kernels hold ratios of.

A file's addition has terms of steps from 1/1024 to 256 of the result's, and a multiplication two
whose product is 1/65536 to 256 of it. Ranges start well within that, since training moves them.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.place import Place
from dlqat_tf.quantizers.pact import ALPHA_MINIMUM

_layers = tf.keras.layers
_LARGEST = 64.0  # a term, or the product of two, in steps of the result
_SMALLEST = {
    _layers.Add: 1 / 512,
    _layers.Subtract: 1 / 512,
    _layers.Multiply: 1 / 32768,
}


def fit_merges(network: Network, made: dict, ranges: dict[str, float]) -> None:
    """Move ranges to where int8 kernels hold the ratios of terms to results.

    What is far smaller has nothing to lose below 1/128 of the other's step: a branch beside what it
    is added to, as one with ConvNeXt's layer scale begins, a difference of two that are nearly
    equal, or a product where one is zero. And what is zero on all images has no range of its own.

    Args:
        network: Where the quantizers belong.
        made: The quantizers, by their places.
        ranges: Those that images set, by the quantizers' names; what has moved is moved here too.
    """
    merges = [
        _Merge(call, network, made, ranges)
        for call in network.calls
        if type(call.layer) in _SMALLEST
    ]
    for merge in merges:
        merge.fit_result()
    for merge in reversed(merges):
        merge.fit_terms()


class _Merge:
    def __init__(self, call: Call, network: Network, made: dict, ranges: dict[str, float]):
        self._made, self._ranges = made, ranges
        self._smallest = _SMALLEST[type(call.layer)]
        self._is_product = type(call.layer) is _layers.Multiply
        of_inputs = [place for value in call.inputs for place in network.grids_of(value)]
        self._terms = list(filter(self._range, of_inputs))
        if self._is_product and len(self._terms) != 2:
            self._terms = []  # not an integer kernel's
        self._results = list(filter(self._range, network.ends_of(call)))
        every = list(network.places.values())
        self._alone = [place for place in self._results if every.count(place) == 1]

    def fit_result(self) -> None:
        """Bring terms to one size, and the result to what they make."""
        if not self._terms:
            return
        if not self._is_product:
            self._widen(self._terms, self._unit() / _LARGEST)
        self._widen(self._results, self._unit() / _LARGEST)
        for place in self._alone:
            most = self._unit() / self._smallest
            if self._step(place) > most:
                self._move(place, most)

    def fit_terms(self) -> None:
        """Widen terms that are still too small for the result."""
        least = max(map(self._step, self._results), default=0.0) * self._smallest
        if not self._is_product:
            self._widen(self._terms, least)
        elif self._terms and self._unit() < least:
            small, large = sorted(self._terms, key=self._step)
            self._widen([small], least / self._step(large))

    def _range(self, place: Place) -> float | None:
        return place.range or self._ranges.get(place.name)

    def _step(self, place: Place) -> float:
        return self._range(place) / self._made[place].codes.highest

    def _unit(self) -> float:
        """Return what the result's step is compared with."""
        return (math.prod if self._is_product else max)(map(self._step, self._terms))

    def _widen(self, places: list[Place], least: float) -> None:
        for place in places:
            if self._step(place) < least:
                self._move(place, least)

    def _move(self, place: Place, step: float) -> None:
        if place.name in self._ranges:
            made = self._made[place]
            alpha = max(step * made.codes.highest, ALPHA_MINIMUM)
            self._ranges[place.name] = alpha
            made.range_of_images.assign(alpha)
