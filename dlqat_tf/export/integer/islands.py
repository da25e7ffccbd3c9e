"""Parts of a model without an integer form: which calls stay float, and what runs together."""

from __future__ import annotations

from dataclasses import replace

import larq as lq
import tensorflow as tf

from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import FromIsland, Island, Node
from dlqat_tf.float_part import FloatPart, NoFloatForm
from dlqat_tf.graph import reads_mask


def check_float_call(call, name: str, training: bool | None) -> None:
    """Raise ExportError for a layer's call that computes something else in a part of its own.

    Args:
        call: The Keras node.
        name: Of the layer, for errors.
        training: The mode that it is called in.
    """
    layer = call.layer
    if any(isinstance(each, lq.quantizers.Quantizer) for each in layer.submodules):
        reason = "it holds quantizers, and what was trained low-bit would run in float. " + _advice(
            layer
        )
    elif training and layer._expects_training_arg:
        reason = "it is called with training=True"
    elif reads_mask(call):
        reason = "it reads a mask of the layers before it: build those without (mask_zero=False)"
    else:
        return
    raise ExportError(f"Layer {name!r} ({type(layer).__name__}) cannot be exported: {reason}.")


def _advice(layer) -> str:
    """Return what to build in the place of a layer with quantizers that has no integer form."""
    kind = type(layer).__name__
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return 'Integer kernels compute it with data_format="channels_last"'
    if isinstance(layer, tf.keras.layers.Conv2DTranspose):
        return (
            "Integer kernels compute it without output_padding and dilation, and with "
            'padding="same" where the kernel is larger than the strides in both directions or in '
            "neither"
        )
    if kind.startswith("Quant"):
        return f"Without quantizers, as Keras's {kind.removeprefix('Quant')}, it runs in float"
    return "Without quantizers it runs in float"


def gathered(nodes: list[Node]) -> list[Node]:
    """Return the nodes with connected Islands made one, in an order of computation.

    A node's stage is how many Islands come before it at most, those that read each other counted
    once. No node that is not an Island stands between two of one stage, so what of one stage is
    connected can run as one.

    Raises:
        ExportError: TFLite has no form of a layer; names it.
    """
    owner = {node.name: node.inputs[0] for node in nodes if isinstance(node, FromIsland)}
    stage: dict[str, int] = {}
    group: dict[str, str] = {}  # of an Island, by the name of one in it
    for node in nodes:
        stages = [stage[name] for name in node.inputs]
        if isinstance(node, Island):
            stages = [stage[name] + (name not in owner) for name in node.inputs]
            group[node.name] = node.name
        stage[node.name] = max(stages, default=0)
        for other in {owner.get(name) for name in node.inputs} - {None}:
            if isinstance(node, Island) and stage[other] == stage[node.name]:
                old, new = group[node.name], group[other]
                group = {name: new if of == old else of for name, of in group.items()}
    members: dict[str, list[Island]] = {}
    for node in nodes:
        if isinstance(node, Island):
            members.setdefault(group[node.name], []).append(node)
    shapes = IntegerNetwork(tuple(nodes)).shapes
    for islands in members.values():
        nodes = _with_one(nodes, islands, shapes)
    return _ordered(nodes)


def _with_one(nodes: list[Node], islands: list[Island], shapes: dict) -> list[Node]:
    """Return the nodes with one Island in place of several, in any order."""
    names = {island.name for island in islands}
    outputs = [each for each in nodes if isinstance(each, FromIsland) and each.inputs[0] in names]
    inside = {each.name for each in outputs}
    read = {name for node in nodes if node.name not in names for name in node.inputs}
    kept = [each for each in outputs if each.name in read]
    inputs = dict.fromkeys(name for each in islands for name in each.inputs if name not in inside)

    def function(tensors):
        values = dict(zip(inputs, tensors, strict=True))
        for island in islands:
            made = island.part.function([values[name] for name in island.inputs])
            values |= {
                each.name: made[each.index] for each in outputs if each.inputs[0] == island.name
            }
        return [values[each.name] for each in kept]

    one = replace(
        islands[0],
        inputs=tuple(inputs),
        part=FloatPart(
            function,
            [shapes[name] for name in inputs],
            [module for each in islands for module in each.part.submodules],
        ),
        layers=tuple(dict.fromkeys(layer for island in islands for layer in island.layers)),
        operator=islands[0].operator if len(islands) == 1 else "",
        slopes=islands[0].slopes if len(islands) == 1 else None,
        factors=islands[0].factors if len(islands) == 1 else None,
    )
    _check_stored(one, islands)
    taken = [replace(each, inputs=(one.name,), index=i) for i, each in enumerate(kept)]
    return [node for node in nodes if node.name not in names | inside] + [one, *taken]


def _check_stored(one: Island, islands: list[Island]) -> None:
    """Raise ExportError where TFLite cannot store an Island, for those within that are to blame."""
    try:
        _ = one.part.data
        return
    except NoFloatForm as error:
        blamed = {one.layers: error}
    single = {}
    for island in islands if len(islands) > 1 else ():
        try:
            _ = island.part.data
        except NoFloatForm as error:
            single[island.layers] = error
    reasons = "; ".join(
        f"{', '.join(map(repr, layers))}: {error}" for layers, error in (single or blamed).items()
    )
    raise ExportError(
        "Layers without an integer form run in float as TFLite stores them, and it cannot store "
        f"all. {reasons}. Replace them, or export the model up to them."
    )


def _ordered(nodes: list[Node]) -> list[Node]:
    """Return the nodes so that each comes after what it reads, else as they are."""
    by_name, placed = {node.name: node for node in nodes}, {}
    for node in nodes:
        waiting = [node]
        while waiting:
            missing = [by_name[name] for name in waiting[-1].inputs if name not in placed]
            if missing:
                waiting += missing[:1]
            else:
                last = waiting.pop()
                placed[last.name] = last
    return list(placed.values())
