"""Says what became of each layer of a source."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import tensorflow as tf

from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.images import Data
from dlqat_tf.convert.inputs import prepared, too_narrow
from dlqat_tf.convert.kinds import is_softmax
from dlqat_tf.convert.measured import Measured
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.place import Place
from dlqat_tf.convert.problems import in_float, some, unexportable
from dlqat_tf.convert.report import Conversion, ConversionReport
from dlqat_tf.methods import Method
from dlqat_tf.quantizers import QuantizerProgress, unwrapped
from dlqat_tf.quantizers.progress import depends_on_progress

_STEPS = ("train_step", "test_step", "predict_step", "compute_loss")  # that a class may have


def report_of(
    kind: type[tf.keras.Model],
    network: Network,
    method: Method,
    made: dict,
    data: Data | None,
    measured: Measured | None,
) -> ConversionReport:
    """Return what became of each layer.

    Args:
        kind: Class of the source.
        network: The source.
        method: What rounds it.
        made: As in :class:`~dlqat_tf.convert.builder.Builder`.
        data: The images, or None.
        measured: What was seen on them.
    """
    notes = [] if data is None else [*data.notes, *measured.notes]
    notes += _of_inputs(network)
    if measured is None:
        notes.append(
            "Without images: activation ranges are initial guesses, inserted batch norms have "
            "mean 0 and variance 1. Pass images, or expect the first steps to find both."
        )
    if _needs_callbacks(method, made):
        notes.append(
            f"{method.name} depends on how far training is: pass callbacks=dlqat_tf.methods.get("
            f"{method.name!r}).callbacks(epochs) to fit, with the epochs of the whole training."
        )
    if method.prepare is not None:
        notes.append(
            f"{method.name} starts from images: call dlqat_tf.methods.get({method.name!r}).prepare("
            "model, images) with a few hundred of them before fit."
        )
    steps = [name for name in _STEPS if getattr(kind, name) is not getattr(tf.keras.Model, name)]
    if steps:
        notes.append(
            f"The result is a functional model without {' and '.join(steps)} of {kind.__name__}. "
            f"To keep them: {kind.__name__}(result.input, result.output)."
        )
    frozen = [
        made[layer].name
        for layer in network.of
        if layer in made and layer.weights and not network.trainable(layer)
    ]
    if frozen:
        notes.append(
            f"Frozen, as in the source: {some(frozen)}. Their weights, ranges and batch norms "
            "stay as converted; set trainable = True on the model to train them too."
        )
    kept = in_float(network)
    if kept:
        notes.append(kept)
    lost = unexportable(network)
    if lost:
        names = defaultdict(list)
        for name, reason in lost.items():
            names[reason].append(name)
        reasons = "; ".join(f"{some(each)}: {reason}" for reason, each in names.items())
        notes.append(f"The model trains, but export will refuse it. {reasons}.")
    conversions = [
        _conversion(network, made, layer, calls, lost)
        for layer, calls in network.of.items()
        if calls[0].role != "input" or calls[0] in network.places
    ]
    return ConversionReport(conversions, {} if measured is None else measured.ranges, notes)


def _needs_callbacks(method: Method, made: dict) -> bool:
    """Return whether training needs the method's, as by 32 bits it may not."""
    callbacks = method.callbacks(1.0)
    if all(isinstance(each, QuantizerProgress) for each in callbacks):
        return any(depends_on_progress(unwrapped(each).kernel_quantizer) for each in made.values())
    return True


def _of_inputs(network: Network) -> list[str]:
    """Return what the user should know of the inputs."""
    found = [each.note for each in network.taken.values()]
    free = [call.name for call in network.inputs if None in call.layer.output.shape[1:]]
    if free:
        found.append(f"{some(free)} may have any size: export asks for one size.")
    shared: dict[Place, dict[str, np.ndarray]] = defaultdict(dict)
    for call, place in network.places.items():
        image = network.image_of(call)
        taken = image and network.taken[image]
        if taken and not taken.is_known and taken.examples is not None:
            shared[place][image.name] = prepared(call, taken.examples)
    found += [too_narrow(each) for each in shared.values()]
    return [note for note in found if note]


def _conversion(
    network: Network, made_of: dict, layer, calls: list[Call], lost: dict[str, str]
) -> Conversion:
    call = calls[0]
    places = list(dict.fromkeys(network.places[c] for c in calls if c in network.places))
    made = made_of.get(layer)
    notes = []
    if call.role == "weighted":
        notes += _of_weights(network, made_of, call)
    elif call.role == "kept":
        problem = network.in_float.get(call)
        is_override = network.overrides.of(call.name) == "float"
        why = "override" if is_override else problem.text if problem else "it is the output"
        notes.append(f"stays float: {why}")
    if call in network.dropped:
        notes.append("losses take logits")
    if call.role == "relu":
        made = made_of[places[0]]
        notes += [f"also {place.name}" for place in places[1:]]
    else:
        notes += [f"outputs rounded by {place.name}" for place in places]
    if call.training is not None and call.role == "norm":
        notes.append("called with training=False: its averages stay")
    if not network.trainable(layer):
        notes.append("frozen")
    without = _without(made or layer, layer)
    if without:
        notes.append(f"without its {', '.join(without)}")
    if call.name in lost:
        notes.append(f"cannot be exported: {lost[call.name]}")
    return Conversion(
        layer=call.name,
        was=type(layer).__name__,
        became="dropped" if call in network.dropped else type(made or layer).__name__,
        weight_bits=network.weight_bits(call) if call.role == "weighted" else None,
        activation_bits=places[0].bits if places else None,
        note="; ".join(notes),
    )


def _without(made, layer) -> list[str]:
    """Return the names of the regularizers and constraints that a layer has and its result not."""
    names = [name for name in layer.get_config() if name.endswith(("_regularizer", "_constraint"))]
    return [
        name
        for name in dict.fromkeys([*names, "activity_regularizer"])
        if (own := getattr(layer, name, None)) and type(own) is not type(getattr(made, name, None))
    ]


def _of_weights(network: Network, made_of: dict, call: Call) -> list[str]:
    """Return what the user should know of a weighted layer's place, scale and bias."""
    layer, notes = call.layer, []
    if network.first(call):
        notes.append("reads an input")
    if layer in network.ends:
        notes.append("last layer")
    if call in network.heads:
        if is_softmax(layer.activation):
            notes.append("its softmax is dropped: losses take logits")
    elif (layer, "norm") in made_of:
        keys = [(key, "norm") for key in (layer, *network.of[layer])]
        names = ", ".join(made_of[key].name for key in keys if key in made_of)
        notes.append(f"{names} inserted for its scale and bias")
    elif not network.keeps_scale(call):
        norms = (key for norm in network.norms[layer] for key in (norm, *network.of[norm]))
        names = ", ".join(made_of[norm].name for norm in norms if norm in made_of)
        notes.append(f"scale{' and bias' * layer.use_bias} moved into {names}")
    return notes
