"""Which outputs of a model's layers are rounded, and what each quantizer is."""

from __future__ import annotations

import math
from collections import defaultdict

import tensorflow as tf

from dlqat_tf.canonical import function_of
from dlqat_tf.convert import inputs as taking
from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.kinds import (
    FIXED_RANGES,
    MEETINGS,
    NEVER_NEGATIVE,
    ceiling_of,
    is_weighted,
    role_of,
    takes_integers,
)
from dlqat_tf.convert.place import Place
from dlqat_tf.convert.source_graph import SourceGraph
from dlqat_tf.graph import unique
from dlqat_tf.models.resnet import edge_bits
from dlqat_tf.quantizers.input import range_of

_layers = tf.keras.layers
_ENDS = (6.0, math.inf)  # of ReLUs that files have in front of a quantizer


class Placing:
    """The quantizers of a source whose calls have their roles.

    Attributes:
        places: The quantizer after each call that has one.
    """

    def __init__(self, graph: SourceGraph):
        self._graph = graph
        self.places: dict[Call, Place] = {}
        self._find_places()

    def _find_places(self) -> None:
        groups = self._grouped()
        self._join(groups)
        self._share(groups)
        names = set(self._graph.names.values())
        for (width, *_), calls in groups.items():
            bits = self._bits(width, calls)
            if bits is not None:
                place = self._place(width, calls, bits, names)
                names.add(place.name)
                self.places.update(dict.fromkeys(calls, place))

    def _grouped(self) -> dict[tuple, list[Call]]:
        """Return the calls that a quantizer belongs behind, by its width and what shares it."""
        groups: dict[tuple, list[Call]] = defaultdict(list)
        for call in self._graph.calls:
            if call in self._graph.heads or call in self._graph.dropped:
                continue
            if call.role == "relu" or self._graph.fused(call) is not None:
                groups[("activation_bits", *self._sharing(call))].append(call)
            elif call.role == "function" and self._wanted(call):
                groups[self._graph.width_of(call), self._meeting(call.layer)].append(call)
            elif call.role in ("weighted", "norm", "merge", "pool", "kept") and self._wanted(call):
                groups["residual_bits", self._meeting(call.layer)].append(call)
            elif self._graph.is_rounded(call) and self._wanted(call):
                is_known = self._graph.taken[self._graph.image_of(call)].is_known
                meeting = call if is_known else self._meeting(call.layer)
                groups["residual_bits", meeting].append(call)
        return groups

    def _bits(self, width: str, calls: list[Call]) -> int | None:
        """Return the width of the quantizer that calls share, None where they stay float."""
        default = self._graph.widths[width]
        if any(map(self._graph.at_end, calls)):
            default = edge_bits(default)
        if any(map(self._graph.image_of, calls)):
            default = edge_bits(default) or edge_bits(8)
        return self._graph.width_given(calls[0], width, default)

    def _place(self, width: str, calls: list[Call], bits: int, names: set[str]) -> Place:
        """Return the quantizer that calls share.

        Args:
            width: The name of its width.
            calls: What it follows.
            bits: Its width.
            names: Those that layers and other quantizers have.
        """
        call = calls[0]
        image = next(filter(None, map(self._graph.image_of, calls)), None)
        is_function = call.role == "function"
        is_relu = width == "activation_bits" and not is_function
        signed = not is_relu and not all(map(self._never_negative, calls))
        is_input = image is not None or any(map(self._measurement, calls))
        place = Place(
            self._place_name(width, call, image, names),
            max(bits, 2) if is_function and signed else bits,  # no signed codes have one bit
            signed=signed,
            ceiling=max(map(self._ceiling, calls)) if is_relu else math.inf,
            trainable=any(each.trainable for each in calls),
            is_relu=is_relu and not is_input,
            is_function=is_function and not is_input,
            is_input=is_input,
        )
        if image is not None and self._graph.taken[image].is_known:
            taken = self._graph.taken[image]
            place.preprocessing = taken.preprocessing
            place.range, _ = range_of(taking.prepared(call, taken.examples))
        if place.bits == 8 and all(each.role == "function" for each in calls):
            functions = {function_of(each.layer) for each in calls}
            place.range = FIXED_RANGES.get(*functions) if len(functions) == 1 else None
        return place

    def _place_name(self, width: str, call: Call, image: Call | None, names: set[str]) -> str:
        """Return the name of a quantizer: that of the ReLU in whose place it is, or a new one."""
        if call.role == "relu":
            is_new = all(call.name != place.name for place in self.places.values())
            return call.name if is_new else unique(call.name, names)
        if image is not None:
            return unique(f"{image.name}_codes", names)
        is_residual = width == "residual_bits" and call.role != "function"
        return unique(f"{call.name}_residual" if is_residual else f"{call.name}_act", names)

    def _join(self, groups: dict[tuple, list[Call]]) -> None:
        """Let activations of 8 bits share the quantizer of other values that they meet.

        As behind the stem of DenseNet and in the stages of YOLOv8: a file has one grid there, and
        with signed values on it there is no room for 255 levels above zero. ReLUs stay layers of
        their own, in front of it.
        """
        for key in [key for key in groups if key[0] == "activation_bits"]:
            calls, others = groups[key], groups.get(("residual_bits", *key[1:]), [])
            every = [*others, *calls]
            if (
                others
                and all(map(self._joins, calls))
                and not any(
                    self._graph.image_of(call) or self._graph.overrides.of(call.name)
                    for call in every
                )
                and self._default(others[0], "residual_bits") == 8
            ):
                others += groups.pop(key)
                for call in calls:
                    if call.role == "relu":
                        call.role = "rectified"

    def _share(self, groups: dict[tuple, list[Call]]) -> None:
        """Let calls of a layer that keeps its scale read one grid, where quantizers follow them.

        As a detector's last convolution does that all scales share: no batch norm may follow it,
        and a file holds its biases in steps of what it reads.
        """
        for calls in self._graph.of.values():
            of = {call: key for key, group in groups.items() for call in group}
            is_end = calls[0].role == "weighted" and self._graph.keeps_scale(calls[0])
            if not is_end or of.keys().isdisjoint(calls):
                continue
            read = {of.get(self._origin(call)): None for call in calls}
            if None in read or not self._are_alike([groups[key] for key in read]):
                continue
            first, *others = read
            for key in others:
                groups[first] += groups.pop(key)

    def _origin(self, call: Call) -> Call:
        """Return what a call reads, before it was moved."""
        (source, _) = call.inputs[0]
        while source.role == "moving" and len(source.inputs) == 1:
            (source, _) = source.inputs[0]
        return source

    def _are_alike(self, groups: list[list[Call]]) -> bool:
        """Return whether one quantizer may stand for those of several groups of calls."""
        every = [call for group in groups for call in group]
        kinds = {(self._graph.width_of(call), call.role == "function") for call in every}
        given = (
            self._graph.image_of(call) or self._graph.overrides.of(call.name) for call in every
        )
        return len(kinds) == 1 and not any(given)

    def _joins(self, call: Call) -> bool:
        """Return whether another quantizer may round what an activation computes."""
        if call.role == "relu":
            return ceiling_of(call.layer) in _ENDS
        return call.role == "function" and self._default(call, "activation_bits") == 8

    def _default(self, call: Call, width: str) -> int | None:
        """Return the width of a quantizer behind a call, where no override says another."""
        bits = self._graph.widths[width]
        return edge_bits(bits) if self._graph.at_end(call) else bits

    def _sharing(self, call: Call) -> tuple[tf.keras.layers.Layer, ...]:
        """Return what the calls have in common that share the quantizer of this ReLU."""
        meeting = self._meeting(call.layer)
        bits = self._graph.width_given(
            call, "activation_bits", self._default(call, "activation_bits")
        )
        # Of fewer bits each has a range, which export brings together; float needs no one grid.
        if (
            meeting is not call.layer
            and bits == 8
            and self._rounds_after(self._graph.of[meeting][0])
        ):
            return (meeting,)
        if call.role == "relu":
            # One per place, and the same where the same shared layer comes before.
            return call.layer, call.inputs[0][0].layer
        return (call.layer,)

    def _ceiling(self, call: Call) -> float:
        """Return where the ReLU of a call ends."""
        return ceiling_of(call.layer) if call.role == "relu" else self._graph.fused(call)

    def _meeting(self, layer) -> tf.keras.layers.Layer:
        """Return the last Concatenate or such that a layer's outputs come to, or the layer itself.

        What comes together goes on one grid: files would round it once more to bring it there.
        """
        readers = self._graph.reached(self._graph.of[layer][0], ("moving",))
        meetings = [reader for reader in readers if type(reader.layer) in MEETINGS]
        return max(meetings, key=self._graph.calls.index).layer if meetings else layer

    def _wanted(self, call: Call, origin: Call | None = None) -> bool:
        """Return whether anything reads the output of ``origin``, through ``call``, as codes."""
        origin = origin or call
        return any(self._wants_codes(reader, call, origin) for reader in call.readers)

    def _wants_codes(self, reader: Call, call: Call, origin: Call) -> bool:
        if reader.role == "moving":
            return self._wanted(reader, origin)
        if reader.role == "weighted":
            # What follows the last quantizer runs in float.
            return not (origin.role == "pool" and reader.layer in self._graph.ends)
        if reader.role == "relu":
            # An operation of the file ends on one grid, and each of several ReLUs has its own.
            several = len({each.layer for each in call.readers if each.role == "relu"}) > 1
            return several or (origin.role in ("weighted", "norm") and self._is_shared(origin))
        image = self._graph.image_of(origin)
        if reader.role == "norm" and image and not self._graph.taken[image].is_known:
            return False  # measurements are brought to one scale before they are rounded
        if reader.role == "function" and self._wanted(reader):
            return True  # a table of codes, between two grids
        if reader.role in ("function", "kept"):
            # It takes float values; kernels on integers end on a grid wherever one follows, and
            # pixels that are prepared are looked up. Numbers of words are none of 256 codes.
            is_kernel = origin.role in ("weighted", "norm") and self._rounded_after(reader)
            is_image = self._graph.image_of(origin) is not None
            return is_kernel or (is_image and not takes_integers(reader))
        if reader.role == "norm":
            folds = is_weighted(call.layer) or call.role == "norm"
            return not (folds and len(call.readers) == 1)
        return reader.role in ("merge", "pool")

    def _is_shared(self, call: Call) -> bool:
        """Return whether several layers read an output, moved or not, or the model returns it."""
        moved = {each for each in self._graph.reached(call, ("moving",)) if each.role == "moving"}
        moved.add(call)
        readers = {reader.layer for each in moved for reader in each.readers if reader not in moved}
        return len(readers) > 1 or any(source in moved for source, _ in self._graph.outputs)

    def _rounded_after(self, call: Call) -> bool:
        """Return whether a quantizer may come after a call."""
        rounding = ("weighted", "relu", "function", "merge", "pool", "norm")
        return any(after.role in rounding for after in self._graph.reached(call))

    def _rounds_after(self, call: Call) -> bool:
        """Return whether a quantizer does come after a call; else what follows it is float."""
        return any(
            after.role in ("relu", "function")
            or (after.role == "weighted" and after.layer not in self._graph.ends)
            or (after.role in ("weighted", "norm", "merge", "pool", "kept") and self._wanted(after))
            for after in self._graph.reached(call)
        )

    def _measurement(self, call: Call) -> bool:
        """Return whether a call is a batch norm that brings the channels of values to one scale."""
        if call.role != "norm":
            return False
        image = self._graph.image_of(self._origin(call))
        return image is not None and not self._graph.taken[image].is_known

    def _never_negative(self, call: Call) -> bool:
        if call.role in ("moving", "pool", "merge") and type(call.layer) is not _layers.Subtract:
            return all(self._never_negative(source) for source, _ in call.inputs)
        image = self._graph.image_of(call)
        if image is not None:
            examples = self._graph.taken[image].examples
            return examples is not None and not taking.prepared(call, examples).min() < 0
        # As the source computes it, also where it stays float and at the end of the model.
        role, layer = role_of(call.layer), call.layer
        if role == "function":
            return function_of(layer) in NEVER_NEGATIVE
        of = getattr(layer, "activation", None) if role == "weighted" else layer
        return role in ("weighted", "relu") and ceiling_of(of) is not None
