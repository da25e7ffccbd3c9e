"""Networks in little space: kernels as codes of their declared width, all else as it is.

A file has the network's configuration and its variables. A kernel that its quantizer rounds is
stored as codes and steps, 1 bit a weight at 1 bit. The latent weights behind the codes are gone: a
network that is read again has others that are rounded to the same levels, so it computes the same,
and training goes on from the middle of the levels, or from as far beside it as their step asks for.

In float32 stay kernels whose codes do not say them: of levels that are no grid (LQ-Net and ABC-Net
of 2 bits and more, SYQ's convolutions), of quantizers that start with the first step of training
and have not (LSQ, SYQ, DSQ, Quantization Networks), and single ones for whose steps no other latent
weights are found, as of a few weights of 8 bits under ``SATWeights(keep_scale=True)``. INQ's levels
are variables beside the codes, which compression makes small.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlqat_tf._code import code_in
from dlqat_tf._host import check_name, replacing
from dlqat_tf.graph import check_graph, refresh
from dlqat_tf.levels import RoundedKernel, rounded_kernels
from dlqat_tf.loading import ModelFileError, damaged
from dlqat_tf.quantizers import WeightGrid

_CONFIGURATION = "configuration"


def save_packed(model: tf.keras.Model, path: str | Path) -> None:
    """Write a network to a file of numpy's compressed arrays (``.npz``).

    Kernels whose quantizer cannot say which latent weights would give the same codes and steps bit
    for bit are stored as they are, as 32-bit kernels are: the module says which.

    >>> dlqat_tf.packed.save_packed(model, "network.npz")

    Args:
        model: Functional or Sequential model.
        path: The file; an existing one is replaced.

    Raises:
        ValueError: The model is of another kind, or the path does not end in ``.npz``.
        OSError: The folder does not exist or cannot be written to.
    """
    path = Path(path)
    check_graph(model)
    check_name(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected a path that ends in .npz. Received: {path}.")
    configuration = tf.keras.saving.serialize_keras_object(model)
    configuration.pop("compile_config", None)
    arrays = {_CONFIGURATION: np.frombuffer(json.dumps(configuration).encode(), np.uint8)}
    rounded = _rounded_by_index(model)
    for index, variable in enumerate(model.weights):
        packed = _packed(rounded[index]) if index in rounded else None
        if packed is None:
            arrays[f"{index}"] = variable.numpy()
        else:
            arrays |= {f"{index}.{name}": each for name, each in packed.items()}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load_packed(path: str | Path) -> tf.keras.Model:
    """Read a network that :func:`save_packed` wrote, not compiled.

    >>> model = dlqat_tf.packed.load_packed("network.npz")

    Args:
        path: The file, which may come from anybody: nothing in it is run.

    Raises:
        ModelFileError: The file is damaged, or holds code.
        OSError: There is nothing at ``path``.
    """
    path = Path(path)
    check_name(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of a packed network, found none at {path}.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        configuration = json.loads(arrays[_CONFIGURATION].tobytes())
        kind = next(code_in(configuration), None)
        if kind is None:
            return _model(configuration, arrays)
    except Exception as error:  # whatever a damaged archive or configuration leads to
        raise damaged(path, "packed network", error) from error
    raise ModelFileError(f"{path} is {kind}. Expected layers that need no code of their own.")


def _model(configuration: dict, arrays: dict[str, np.ndarray]) -> tf.keras.Model:
    model = tf.keras.saving.deserialize_keras_object(configuration)
    if not isinstance(model, tf.keras.Model):
        raise ValueError(f"its configuration is of a {type(model).__name__}.")
    rounded = _rounded_by_index(model)
    for index, variable in enumerate(model.weights):
        if f"{index}" in arrays:
            variable.assign(arrays[f"{index}"])
    # Last: what a kernel is rounded to may depend on the quantizer's own variables.
    for index, each in rounded.items():
        if f"{index}" not in arrays:
            parts = {name: arrays[f"{index}.{name}"] for name in ("levels", "codes", "step")}
            each.kernel.assign(each.quantizer.latent(_unpacked(each.kernel.shape, **parts)))
    refresh(model)
    return model


def _rounded_by_index(model: tf.keras.Model) -> dict[int, RoundedKernel]:
    """Return the rounded kernels by their place among the model's variables."""
    places = {id(variable): index for index, variable in enumerate(model.weights)}
    return {places[id(each.kernel)]: each for each in rounded_kernels(model).values()}


def _packed(rounded: RoundedKernel) -> dict[str, np.ndarray] | None:
    """Return a kernel as arrays, or None where they would not give the same again."""
    try:
        grid = rounded.quantizer.grid(rounded.kernel)
    except ValueError:  # the contract: no equidistant levels
        return None
    again = rounded.quantizer.grid(rounded.quantizer.latent(grid))
    same = np.array_equal(again.codes, grid.codes) and np.array_equal(again.step, grid.step)
    if not same:
        return None
    levels, places = np.unique(grid.codes, return_inverse=True)
    bits = (places.reshape(-1, 1) >> np.arange(_width(levels))) & 1
    packed = np.packbits(bits.astype(np.uint8))
    return {"levels": levels.astype(np.int16), "codes": packed, "step": np.asarray(grid.step)}


def _unpacked(shape, levels: np.ndarray, codes: np.ndarray, step: np.ndarray) -> WeightGrid:
    width, count = _width(levels), math.prod(shape)
    bits = np.unpackbits(codes, count=count * width).reshape(count, width)
    places = bits @ (1 << np.arange(width))
    return WeightGrid(levels[places].reshape(shape), step)


def _width(levels: np.ndarray) -> int:
    """Return the bits that number the levels."""
    return max(int(len(levels) - 1).bit_length(), 1)
