"""What goes into a file: the type of each input, and arrays as Keras and as the file take them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import tensorflow as tf

from dlqat_tf.export.files.flatbuffer import batch_size_of, packed, parsed
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation, Affine, Input, Lookup, Node, Reshape
from dlqat_tf.export.integer.simulate import by_input
from dlqat_tf.preprocessing import PIXELS, RAW, UNIT
from dlqat_tf.quantizers import ActivationGrid

# One array; for a model of several inputs one for each, in their order or by their names.
Images = np.ndarray | list[np.ndarray] | tuple[np.ndarray, ...] | dict[str, np.ndarray]
InputTypes = str | tf.DType | dict | None
INPUT_TYPES = ("uint8", "int8", "float32")


def zero_point(grid: ActivationGrid) -> int:
    """Return the int8 that stands for code 0: the highest code is at 127, where int8 saturates."""
    return 127 - grid.highest


def input_types(network: IntegerNetwork, wanted=None) -> dict[str, str]:
    """Return the type of each input in a file.

    Args:
        network: What takes them.
        wanted: One of :data:`INPUT_TYPES` or a dtype for all inputs, a dictionary of these by input
            name, or None for uint8 pixels of images and float32 of other values.

    Raises:
        ExportError: A type is none of these, or an input has no such form.
    """
    names = [node.name for node in network.inputs]
    each = wanted if isinstance(wanted, dict) else dict.fromkeys(names, wanted)
    if set(each) - set(names):
        raise ExportError(
            f"Expected input_type by input name, of {', '.join(names)}. Received: "
            f"{', '.join(map(str, each))}."
        )
    found = {node.name: _input_type(node, each.get(node.name)) for node in network.inputs}
    for node in network.inputs:
        _check_type(node, found[node.name], network.consumers())
    return found


def _input_type(node: Input, wanted) -> str:
    if wanted is None:
        return "float32" if node.preprocessing is None else "uint8"
    name = wanted
    with contextlib.suppress(TypeError):
        name = tf.as_dtype(wanted).name
    if name not in INPUT_TYPES:
        raise ExportError(
            f"Expected input_type to be one of {', '.join(INPUT_TYPES)}. Received: "
            f"input_type={name!r}."
        )
    return name


def _check_type(node: Input, name: str, consumers: dict[str, list[Node]]) -> None:
    is_image = node.preprocessing is not None
    if name == "uint8" and not is_image:
        raise ExportError(
            f"The input {node.name!r} takes values that are no pixels, or whose preprocessing "
            'nobody said: expected input_type to be "float32" or "int8", or a dictionary by input '
            'name. Received: "uint8". Where they are prepared pixels, say how: preprocessing="tf", '
            '"caffe", "torch" or Preprocessing(mean=, std=).'
        )
    if name == "int8" and not is_image and codes_of(node, consumers) is None:
        raise ExportError(
            f"The input {node.name!r} has no codes in the file, since not one quantizer alone "
            'reads it: expected input_type="float32".'
        )
    readers = consumers[node.name]
    lookups = [reader for reader in readers if isinstance(reader, Lookup)]
    if name != "uint8" and lookups and len(readers) > 1:
        raise ExportError(
            f"Several layers prepare the image {node.name!r}, each in its own way: expected "
            'input_type="uint8".'
        )
    if name == "float32" and lookups:
        _check_floats(node.name, *lookups)


def _check_floats(name: str, lookup: Lookup) -> None:
    """Raise where a float kernel rounds a prepared pixel otherwise than Keras."""
    step = np.float32(lookup.grid.step)
    codes = np.rint(lookup.values * (np.float32(1) / step))
    if np.any(np.clip(codes, lookup.grid.lowest, lookup.grid.highest) != lookup.codes):
        raise ExportError(
            f"Some prepared pixels of {name!r} lie halfway between two codes, where float kernels "
            'round otherwise than Keras: expected input_type="uint8" or "int8".'
        )


def codes_of(node: Input, consumers: dict[str, list[Node]]) -> ActivationGrid | None:
    """Return the grid of an int8 input, None where it has none."""
    if node.preprocessing is None:
        way = way_to_codes(node, consumers)
        return way[-1].grid if way else None
    readers = consumers[node.name]
    alone = len(readers) == 1 and isinstance(readers[0], Lookup)
    return readers[0].grid if alone else node.grid


def way_to_codes(node: Input, consumers: dict[str, list[Node]]) -> list[Node]:
    """Return what measurements pass until an activation rounds them, that included.

    Each node computes value by value, or moves all, and alone reads the one before; empty where
    something else comes before the activation.
    """
    way: list[Node] = []
    while not (way and isinstance(way[-1], Activation)):
        readers = consumers[way[-1].name if way else node.name]
        if len(readers) != 1 or not isinstance(readers[0], (Activation, Affine, Reshape)):
            return []
        way.append(readers[0])
    return way


def _prepared(way: list[Node], values: np.ndarray) -> np.ndarray:
    """Return what measurements become on their way to codes, in the shape that they came in."""
    shape = values.shape
    for node in way:
        if isinstance(node, Affine):
            values = values * node.gain + node.offset
        elif isinstance(node, Reshape):
            values = values.reshape(len(values), *node.shape)
    return values.reshape(shape)


def arrays_of(images: Images, network: IntegerNetwork) -> list[np.ndarray]:
    """Return what a network takes: uint8 pixels, or float32 values where it takes no images.

    Args:
        images: An array; a list or tuple of one for each input; or a dictionary by input name.
        network: What takes them.

    Raises:
        ExportError: There are arrays too many or too few, they are not what the model takes, of
            another size, or not equally many.
    """
    names = [node.name for node in network.inputs]
    if isinstance(images, dict):
        if set(images) != set(names):
            raise ExportError(
                f"Expected images by input name, for {', '.join(names)}. Received: images for "
                f"{', '.join(map(str, images))}."
            )
        images = [images[name] for name in names]
    arrays = by_input(images)
    if len(arrays) != len(names):
        raise ExportError(
            f"Expected one array of images for each input, {', '.join(names)}. Received: "
            f"{len(arrays)} for {len(names)}."
        )
    arrays = [_array(*each) for each in zip(arrays, network.inputs, strict=True)]
    counts = [len(each) for each in arrays]
    if len(set(counts)) > 1:
        raise ExportError(
            f"Expected as many images for each input, {', '.join(names)}. Received: "
            f"{', '.join(map(str, counts))}."
        )
    return arrays


def _array(images, node: Input) -> np.ndarray:
    received, images = type(images).__name__, np.asarray(images)
    if images.shape[1:] != node.shape or images.ndim != len(node.shape) + 1 or not len(images):
        # Datasets and generators are arrays of no dimension.
        shown = f"shape {images.shape}" if images.ndim else received
        raise ExportError(
            f"Expected images of shape (images, {', '.join(map(str, node.shape))}) for the input "
            f"{node.name!r}. Received: {shown}."
        )
    if node.preprocessing is not None:
        return _pixels(images, node)
    numbers = np.issubdtype(images.dtype, np.number) and images.dtype.kind != "c"
    if not numbers or not np.all(np.isfinite(images)):
        raise ExportError(
            f"Expected finite numbers for the input {node.name!r}. Received: {images.dtype}"
            f"{' with NaN or infinity' if numbers else ''}."
        )
    return images.astype(np.float32)


def _pixels(images: np.ndarray, node: Input) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    preprocessing = node.preprocessing
    if np.issubdtype(images.dtype, np.floating) and np.all(np.isfinite(images)):
        if preprocessing in (UNIT, RAW) and images.min() >= 0 and images.max() <= 1:
            return np.rint(images * 255).astype(np.uint8)
        outside = images.min() < 0 or images.max() > 1
        if preprocessing.fits(images) and not (preprocessing == UNIT and outside):
            return preprocessing.pixels(images)
    expected = "in [0, 1]"
    if preprocessing not in (UNIT, RAW):
        ends = preprocessing.of_all_pixels(node.shape[-1])
        expected = f"prepared as {preprocessing}, from {ends.min():g} to {ends.max():g}"
    shown = f"{images.dtype}"
    if np.issubdtype(images.dtype, np.number):
        shown += f" from {images.min()} to {images.max()}"
    raise ExportError(
        f"Expected uint8 images or float ones {expected} for the input {node.name!r}. Received: "
        f"{shown}."
    )


def for_keras(arrays: list[np.ndarray], network: IntegerNetwork):
    """Return what :func:`arrays_of` returned as the Keras model takes it."""
    prepared = [
        each if node.preprocessing is None else node.preprocessing(each)
        for each, node in zip(arrays, network.inputs, strict=True)
    ]
    return prepared if len(prepared) > 1 else prepared[0]


def for_file(network: IntegerNetwork, types: dict[str, str]) -> Callable:
    """Return a function that turns what :func:`arrays_of` returned into what a file takes."""
    readers = network.consumers()

    def feed(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [
            _fed(node, readers, each, types[node.name])
            for node, each in zip(network.inputs, arrays, strict=True)
        ]

    return feed


def _fed(
    node: Input, consumers: dict[str, list[Node]], values: np.ndarray, name: str
) -> np.ndarray:
    readers = consumers[node.name]
    lookup = next((reader for reader in readers if isinstance(reader, Lookup)), None)
    if name == "uint8" or (name == "float32" and node.preprocessing is None):
        return values
    if name == "float32":
        if lookup is None:
            return UNIT(values)
        return looked_up(lookup.values, lookup.order, values)
    grid = codes_of(node, consumers)
    if lookup is not None:
        codes = looked_up(lookup.codes, lookup.order, values)
    elif node.preprocessing is not None:
        codes = values.astype(np.int16)
    else:
        values = _prepared(way_to_codes(node, consumers), values)
        codes = np.rint(values * (np.float32(1) / grid.step))
        codes = np.clip(codes, grid.lowest, grid.highest)
    return (codes + zero_point(grid)).astype(np.int8)


def recorded(network: IntegerNetwork, types: dict[str, str]) -> list[dict]:
    """Return what a file records of each input."""
    return [
        dict(
            type=types[node.name],
            shape=node.shape,
            preprocessing=node.preprocessing and asdict(node.preprocessing),
            **_arithmetic(node, network.consumers(), types[node.name]),
        )
        for node in network.inputs
    ]


def _arithmetic(node: Input, consumers: dict[str, list[Node]], kind: str) -> dict[str, list]:
    """Return gain and offset of what int8 codes stand for, where measurements are prepared."""
    way = way_to_codes(node, consumers)
    if kind != "int8" or node.preprocessing is not None or len(way) < 2:
        return {}
    gain, offset = np.ones(node.shape), np.zeros(node.shape)
    for each in way:
        if isinstance(each, Affine):
            gain, offset = gain * each.gain, offset * each.gain + each.offset
        elif isinstance(each, Reshape):
            gain, offset = (part.reshape(each.shape) for part in (gain, offset))
    of_channels = [each.reshape(-1, node.shape[-1]) for each in (gain, offset)]
    if all(np.all(each == each[0]) for each in of_channels):
        of_channels = [each[0] for each in of_channels]
    gain, offset = (each.ravel().tolist() for each in of_channels)
    return dict(gain=gain, offset=offset)


def clipped(network: IntegerNetwork) -> list[str]:
    """Return how many pixels are outside of the range of their quantizer, where any are."""
    found = []
    for node in network:
        if isinstance(node, Lookup):
            codes = node.values / node.grid.step
            # Ranges that were measured end where the loss is least, a step or so before the end.
            outside = (codes < node.grid.lowest - 2) | (codes > node.grid.highest + 2)
            if np.any(outside):
                found.append(
                    f"{node.name}: {outside.any(axis=1).sum()} of the 256 pixel values are outside "
                    "of its range: pass the preprocessing to dlqat_tf.quantize"
                )
    return found


def check_lookups(
    data: bytes, network: IntegerNetwork, types: dict[str, str], opened: Callable
) -> None:
    """Raise unless a file makes the codes that Keras makes of each pixel of each channel.

    Args:
        data: Content of the file.
        network: The planned network.
        types: Of each input.
        opened: Given the content of a file, returns a function from the list of its inputs to that
            of its outputs.
    """
    nodes = [
        node for node in network if isinstance(node, Lookup) and types[node.inputs[0]] != "int8"
    ]
    if not nodes:
        return
    content = parsed(data, "the file")
    graph = content.subgraphs[0]
    names = [(tensor.name or b"").decode() for tensor in graph.tensors]
    graph.outputs = np.array([names.index(node.name) for node in nodes], np.int32)
    run, feed = opened(packed(content)), for_file(network, types)
    images = [_all_pixels(node) for node in network.inputs]
    count = batch_size_of(content) or 1
    for i in range(max(map(len, images))):
        arrays = [each[[i % len(each)] * count] for each in images]
        by_name = dict(zip((node.name for node in network.inputs), arrays, strict=True))
        for node, output in zip(nodes, run(feed(arrays)), strict=True):
            expected = looked_up(node.codes, node.order, by_name[node.inputs[0]])
            if not np.array_equal(output.astype(np.int16) - zero_point(node.grid), expected):
                raise ExportError(
                    f"The kernels prepare pixels of {node.inputs[0]!r} otherwise than Keras: "
                    'expected input_type="uint8" or "int8".'
                )


def _all_pixels(node: Input) -> np.ndarray:
    """Return as many images as hold each pixel in each channel; zeros of an input without."""
    if node.preprocessing is None:
        return np.zeros((1, *node.shape), np.float32)
    positions = int(np.prod(node.shape[:-1]))
    count = -(-PIXELS // positions)
    pixels = np.arange(count * positions) % PIXELS
    images = np.broadcast_to(pixels[:, None], (len(pixels), node.shape[-1]))
    return images.reshape(count, *node.shape).astype(np.uint8)


def looked_up(table: np.ndarray, order: tuple[int, ...], pixels: np.ndarray) -> np.ndarray:
    """Return the entries of a table (256, channels) for pixels (..., channels)."""
    return table[pixels[..., order], np.arange(len(order))]
