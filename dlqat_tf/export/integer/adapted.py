"""A copy of a model that takes one size of images, knows their preparation, and ends as asked."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import tensorflow as tf

from dlqat_tf.canonical.lambdas import without_lambdas
from dlqat_tf.export.integer.endings import Outputs, wanted, with_endings
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.inputs import input_quantizers, preprocessing_before
from dlqat_tf.graph import check_graph, copied
from dlqat_tf.preprocessing import Preprocessing, preprocessing_of

Size = Sequence[int] | dict[str, Sequence[int]] | None


def adapted(
    model: tf.keras.Model, *, preprocessing=None, size: Size = None, outputs: Outputs = None
) -> tf.keras.Model:
    """Return a model, or a copy of it where anything changes.

    Args:
        model: Functional or Sequential model.
        preprocessing: What is done to pixels outside of the model: "tf", "caffe" or "torch", a
            :class:`~dlqat_tf.preprocessing.Preprocessing`, or a dictionary of these by input name.
            None: what the model says.
        size: What takes the place of the dimensions that are free, such as (height, width), or a
            dictionary of this by input name. None: the model has none.
        outputs: "logits" without a softmax or sigmoid at the end, "probabilities" with one, or a
            dictionary of these by output name. None: what the model returns.

    Raises:
        ExportError: An argument is not as above or does not fit the model.
    """
    check_graph(model, ExportError)
    model = without_lambdas(model)
    if outputs is not None:
        model = with_endings(model, wanted(model, outputs))
    shapes = _shapes(model, size)
    known = _known(model, preprocessing)
    if not shapes and not known:
        return model

    def change(config: dict) -> dict:
        layers = []
        for each in config["layers"]:
            settings = dict(each["config"])
            if settings["name"] in shapes:
                settings["batch_input_shape"] = (None, *shapes[settings["name"]])
            if settings["name"] in known:
                settings["preprocessing"] = known[settings["name"]]
            layers.append({**each, "config": settings})
        without = {key: value for key, value in config.items() if key != "build_input_shape"}
        return {**without, "layers": layers}

    return copied(model, change)


def _by_input(model, name: str, value) -> dict[str, object]:
    """Return what is given for each input, where it is given by name; else for all of them."""
    names = [tensor.node.layer.name for tensor in model.inputs]
    if not isinstance(value, dict):
        return dict.fromkeys(names, value)
    if set(value) - set(names):
        raise ExportError(
            f"Expected {name} by input name, of {', '.join(names)}. Received: "
            f"{', '.join(map(str, value))}."
        )
    return value


def _shapes(model, size: Size) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs that get another one."""
    given, found = _by_input(model, "size", size), {}
    for tensor in model.inputs:
        name, shape = tensor.node.layer.name, tuple(tensor.shape[1:])
        sizes, free = given.get(name), shape.count(None)
        if sizes is None or (not free and not isinstance(size, dict) and len(model.inputs) > 1):
            continue
        if (
            isinstance(sizes, str)
            or not isinstance(sizes, Sequence)
            or not all(isinstance(each, Integral) and each > 0 for each in sizes)
            or len(sizes) != free
            or not free
        ):
            expected = f"{free} positive integers" if free else "none, since it is fixed"
            raise ExportError(
                f"Expected the size of the input {name!r}, of shape {shape}, to be {expected}. "
                f"Received: size={sizes!r}."
            )
        rest = map(int, sizes)
        found[name] = tuple(next(rest) if each is None else each for each in shape)
    return found


def _known(model, preprocessing) -> dict[str, Preprocessing]:
    """Return the preprocessing by the name of each input quantizer that does not know it yet."""
    found: dict[str, Preprocessing] = {}
    given = _by_input(model, "preprocessing", preprocessing)
    for tensor in model.inputs:
        layer, shape = tensor.node.layer, tuple(tensor.shape[1:])
        value = given.get(layer.name)
        if value is None or (not isinstance(preprocessing, dict) and len(shape) != 3):
            continue
        try:
            value = preprocessing_of(value)
            value.check_channels(shape[-1])
        except ValueError as error:
            raise ExportError(f"For the input {layer.name!r}: {error}") from None
        before, quantizers = preprocessing_before(layer, shape), input_quantizers(layer)
        if before == value:
            continue
        if before is not None or not quantizers:
            raise ExportError(
                f"The input {layer.name!r} takes "
                f"{'values that nothing rounds' if before is None else f'pixels by {before}'}. "
                f"Received: preprocessing={value}. Say it to dlqat_tf.quantize, so that training "
                "sees the rounding."
            )
        found |= {each.name: value for each in quantizers}
    return found
