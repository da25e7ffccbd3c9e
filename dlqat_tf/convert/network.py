"""Where the quantizers of a model belong, whose layers are read as a list of calls."""

from __future__ import annotations

from dlqat_tf.convert.calls import Call, Value
from dlqat_tf.convert.kinds import takes_integers
from dlqat_tf.convert.overrides import WIDTHS
from dlqat_tf.convert.place import Place
from dlqat_tf.convert.placing import Placing
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.convert.source_graph import SourceGraph
from dlqat_tf.graph import tensors_of


class Network(SourceGraph):
    """The source as a list of calls, and where its quantizers belong.

    Attributes:
        places: The quantizer after each call that has one.

    It takes what :class:`~dlqat_tf.convert.source_graph.SourceGraph` does.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.places = Placing(self).places
        self._leads = self._find_leads()
        self._check_integers()
        self._check_overrides()

    def grids_of(self, value: Value) -> list[Place]:
        """Return the quantizers on whose grids a value lies, which may have been moved since."""
        call, _ = value
        if call in self.places:
            return [self.places[call]]
        if call.role != "moving" and call not in self.dropped:
            return []
        return [place for each in call.inputs for place in self.grids_of(each)]

    def ends_of(self, call: Call) -> list[Place]:
        """Return the quantizers that round what a call gives, moved or not."""
        if call in self.places:
            return [self.places[call]]
        rounding = [each for each in call.readers if each.role in ("relu", "rectified", "moving")]
        return [place for reader in rounding for place in self.ends_of(reader)]

    def lead(self, call: Call) -> Call:
        """Return the first call of a call's layer that reads and ends on the same grids.

        These have one batch norm. Files hold a bias in steps of what a call reads, and it may cross
        no threshold of what it ends on, so calls on other grids need one of their own. So do calls
        on tensors of another rank, which Keras's batch norms are built for.
        """
        return self._leads[call]

    def on_grids(self, calls: list[Call]) -> bool:
        """Return whether a layer's biases would have to fit the grids of several calls."""
        if len(set(map(self.lead, calls))) == 1 or calls[0].role != "weighted":
            return False
        is_biased = self.keeps_scale(calls[0]) and calls[0].layer.use_bias
        return is_biased and any(self._ends_on(call) - {None} for call in calls)

    def _find_leads(self) -> dict[Call, Call]:
        leads = {}
        for calls in self.of.values():
            around = [self._around(call) for call in calls] if len(calls) > 1 else [None]
            leads |= {
                call: calls[around.index(each)] for call, each in zip(calls, around, strict=True)
            }
        return leads

    def _around(self, call: Call) -> tuple[list, set, list[int]]:
        (before, _) = call.inputs[0]
        reads = before if call.role == "norm" and before.role == "weighted" else call
        grids = [list(map(_grid_of, self.grids_of(value))) for value in reads.inputs]
        return grids, self._ends_on(call), [len(x.shape) for x in tensors_of(call.node)]

    def _ends_on(self, call: Call) -> set:
        """Return the grids of what a call gives, with None where something else reads it."""
        if call in self.places:
            return {_grid_of(self.places[call])}
        ends: set = {None} if any(call is each for each, _ in self.outputs) else set()
        for reader in call.readers:
            is_rounding = reader in self.places or reader.role == "moving"
            ends |= self._ends_on(reader) if is_rounding else {None}
        return ends

    def _check_integers(self) -> None:
        """Raise where what looks integers up reads them from what is rounded for others."""
        for call in self.calls:
            places = [each for value in call.inputs for each in self.grids_of(value)]
            if call.role == "kept" and takes_integers(call) and any(p.is_input for p in places):
                raise ConversionError(
                    f"Expected an input of its own for {call.name!r} "
                    f"({type(call.layer).__name__}), which takes integers. Received: a model "
                    "whose other layers read that input too, rounded to 8 bits. Give the float "
                    "model one tf.keras.Input for the integers and one for the other values."
                )

    def _check_overrides(self) -> None:
        having: dict[str, set[str]] = {width: set() for width in WIDTHS}
        for call in self.calls:
            if call.role == "weighted":
                having["weight_bits"].add(call.name)
            if call in self.places:
                having[self.width_of(call)].add(call.name)
        self.overrides.check(self.names.values(), having)


def _grid_of(place: Place) -> Place | tuple:
    """Return what stands for a quantizer's grid: where that is known already, its numbers."""
    return place if place.range is None else (place.bits, place.signed, place.range)
