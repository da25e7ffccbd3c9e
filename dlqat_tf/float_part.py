"""Parts of a network that stay float, as TensorFlow's own converter stores them.

Stands below both conversion, which asks before training whether TFLite has a form of a layer, and
export, which splices that form into a file and runs it in the simulation.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._compat import in_inference, unrolled
from dlqat_tf._litert import tflite_interpreter
from dlqat_tf._stderr import silenced
from dlqat_tf.graph import apply, tensors_of

_RANDOM = {
    schema.BuiltinOperator.MULTINOMIAL,
    schema.BuiltinOperator.RANDOM_STANDARD_NORMAL,
    schema.BuiltinOperator.RANDOM_UNIFORM,
}
# Attributes by which Keras's layers are made to compute in plain operations.
_PLAIN = {"_fused": False, "_could_use_gpu_kernel": False}
_CROPS = (tf.keras.layers.CenterCrop, tf.keras.layers.RandomCrop)
_CHOICES = "choices by value have a form with tf.where"
_DRAWS = "it draws random numbers in inference; GaussianNoise and Dropout do in training only"
_STATE = "it keeps a state from one image to the next; with stateful=False it has a form"
_PYTHON = "Python functions are in no file: use TensorFlow's operators"
_RESIZED = "bilinear and nearest neighbours have one, without antialias"
# What to do about operations that TFLite lacks, by how their names begin.
_ADVICE = {
    "CombinedNonMaxSuppression": "choose boxes from the file's outputs, behind it",
    "DenseBincount": "one-hot vectors have one as tf.one_hot(x, size)",
    "EagerPyFunc": _PYTHON,
    "ExtractImagePatches": (
        "patches that do not overlap have one, in the same order, as tf.nn.space_to_depth(x, "
        "size), others as slices of the padded image, joined by tf.concat"
    ),
    "FFT": "products with matrices of cosines and sines have one",
    "MaxPool3D": "strides of a convolution have one",
    "PyFunc": _PYTHON,
    "ResizeArea": "averages of whole windows have one as AveragePooling2D",
    "ResizeBicubic": _RESIZED,
    "ScaleAndTranslate": _RESIZED,
    "StringSplitV2": "prepare strings outside of the model, in tf.data",
    "TensorList": "lists of tensors have one as a tensor, joined by tf.stack or tf.concat",
}
UNTRACED = "it cannot be traced"  # how the reasons begin of what TensorFlow makes no graph of
_SHOWN = 3  # operations that an error names
_TRIED = 2  # images in the run that shows whether a batch goes through


class NoFloatForm(ValueError):
    """TFLite has no operations for a computation; the message says which ones, or why.

    What to do about it stands after a semicolon, where something is known.
    """


class FloatPart:
    """A computation on float tensors, as a TFLite graph of its own.

    Args:
        function: From a list of float32 tensors (batch, ...) to such a list.
        shapes: Of the inputs, without the batch.
        submodules: What the function computes with.
    """

    def __init__(
        self,
        function: Callable[[list], list],
        shapes: Sequence[tuple[int, ...]],
        submodules: Sequence[tf.Module] = (),
    ):
        self.function = function
        self.shapes = tuple(shapes)
        self.submodules = tuple(submodules)
        self._open = (0, None)  # images at once, and the interpreter for them

    @property
    def data(self) -> bytes:
        """The graph as a flatbuffer, inputs and outputs in their order.

        Raises:
            NoFloatForm: TFLite has no operations for it.
        """
        return self._stored[0]

    @property
    def batch(self) -> int | None:
        """How many images the graph takes at once: 1, or None for any number.

        With any number TFLite learns some sizes at run time only, as those of a transposed
        convolution's output, and leaves what follows to slower kernels, which round otherwise.
        """
        return self._stored[1]

    @cached_property
    def _stored(self) -> tuple[bytes, int | None]:
        if not self._recurrent:  # their first state is as long as the batch, at run time
            with contextlib.suppress(NoFloatForm):
                return self._converted(None), None
        return self._converted(1), 1

    @property
    def _recurrent(self) -> list[tf.keras.layers.RNN]:
        return [e for e in _within(self.submodules) if isinstance(e, tf.keras.layers.RNN)]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for float32 arrays, of the kernels that run files too."""
        if self.batch is None:
            return self._run(self.data, arrays)
        singles = zip(*(np.split(array, len(array)) for array in arrays), strict=True)
        outputs = [self._run(self.data, list(each)) for each in singles]
        return [np.concatenate(each) for each in zip(*outputs, strict=True)]

    def output_shapes(self) -> list[tuple[int | None, ...]]:
        """Return the shapes of the outputs without the batch, as tracing the function says.

        Raises:
            NoFloatForm: The function is none that can be traced.
        """
        return [tuple(output.shape[1:]) for output in self._traced(1).outputs]

    def passed_on(self) -> list[int | None]:
        """Return by output which input it is, unchanged; None where something is computed."""
        traced = self._traced(1)
        inputs = {tensor.name: i for i, tensor in enumerate(traced.inputs)}
        found = []
        for output in traced.outputs:
            while output.op.type == "Identity":
                output = output.op.inputs[0]
            found.append(inputs.get(output.name))
        return found

    def _traced(self, batch: int | None):
        def traced(*tensors):
            return self.function(list(tensors))

        signature = [tf.TensorSpec((batch, *shape), tf.float32) for shape in self.shapes]
        function = tf.function(traced, input_signature=signature, autograph=False)
        try:
            with _in_plain_operations(self.submodules), in_inference():
                return function.get_concrete_function()
        except Exception as error:  # whatever a user's layer raises in a graph
            if isinstance(error, tf.errors.OperatorNotAllowedInGraphError):
                raise NoFloatForm(f"Python branches on its values; {_CHOICES}") from error
            raise NoFloatForm(f"{UNTRACED}: {_first_line(error)}") from error

    def _converted(self, batch: int | None) -> bytes:
        if any(layer.stateful for layer in self._recurrent):
            raise NoFloatForm(_STATE)
        traced = self._traced(batch)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], self.function)
        try:
            with silenced():
                data = converter.convert()
        except Exception as error:  # the converter raises its own and whatever a pass runs into
            raise NoFloatForm(_DRAWS if _draws(traced) else _said(error)) from None
        _check(data)
        count = batch or _TRIED
        zeros = [np.zeros((count, *shape), np.float32) for shape in self.shapes]
        try:
            _check_sizes(data, zeros)
            outputs = self._run(data, zeros)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, NoFloatForm):
                raise
            raise NoFloatForm(f"the interpreter refuses its form: {_first_line(error)}") from None
        if any(output.shape[:1] != (count,) for output in outputs):
            shapes = ", ".join(str(output.shape) for output in outputs)
            raise NoFloatForm(
                f"it makes outputs of shapes {shapes} for {count} images; keep the first axis, "
                "that of the images, as tf.reshape(x, [-1, size]) and tf.reduce_mean(x, [1, 2]) "
                "do, and give windows one behind it, which attention_axes=2 attends within"
            )
        return data

    def _run(self, data: bytes, arrays: list[np.ndarray]) -> list[np.ndarray]:
        count, interpreter = self._open
        if count != len(arrays[0]):
            interpreter = _opened(data, arrays)
            self._open = len(arrays[0]), interpreter
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], np.asarray(array, np.float32))
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def computation_of(call) -> Callable[[list], list]:
    """Return what a Keras layer's call computes, on float32 tensors in place of any type.

    Args:
        call: The Keras node.
    """

    def function(tensors: list) -> list:
        kinds = (tensor.dtype for tensor in tensors_of(call))
        typed = [tf.cast(*each) for each in zip(tensors, kinds, strict=True)]
        return [tf.cast(output, tf.float32) for output in apply(call, call.layer, typed)]

    return function


@contextlib.contextmanager
def _in_plain_operations(modules: Sequence[tf.Module]) -> Iterator[None]:
    """Let layers compute by operations that TFLite has, to the same result.

    Layer norms by means and products, as they do where epsilon is small: else they take
    TensorFlow's fused batch norm, for which TFLite needs constants that are as long as the batch.
    Recurrent layers step by step instead of in a loop, which has its steps in a graph of its own.
    Crops by the sizes that are known, where they hold branches for all sizes.
    """
    crops = [each for each in _within(modules) if type(each) in _CROPS]
    for each in crops:
        each.call = partial(_cropped, each)
    kept = [
        (each, name, getattr(each, name))
        for each in _within(modules)
        if isinstance(each, (tf.keras.layers.LayerNormalization, tf.keras.layers.RNN))
        for name in _PLAIN
        if hasattr(each, name)
    ]
    for each, name, _ in kept:
        setattr(each, name, _PLAIN[name])
    try:
        with unrolled():
            yield
    finally:
        for each, name, value in kept:
            setattr(each, name, value)
        for each in crops:
            del each.call


def _cropped(layer, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Return what a RandomCrop or a CenterCrop makes of images in inference.

    The largest window in the middle that has the target's proportions, resized to it. A CenterCrop
    does so with images that are too small.
    """
    size, target = images.shape[1:3], (layer.height, layer.width)
    fits = all(length >= aim for length, aim in zip(size, target, strict=True))
    if isinstance(layer, tf.keras.layers.CenterCrop) and fits:
        return type(layer).call(layer, images)
    # In float32, as Keras computes them.
    sides = (np.float32(size[1 - i] * target[i]) / np.float32(target[1 - i]) for i in range(2))
    rows, columns = (min(length, int(side)) for length, side in zip(size, sides, strict=True))
    window = tf.image.crop_to_bounding_box(
        tf.cast(images, layer.compute_dtype),
        (size[0] - rows) // 2,
        (size[1] - columns) // 2,
        rows,
        columns,
    )
    return tf.cast(tf.image.resize(window, target), layer.compute_dtype)


def _within(modules: Sequence[tf.Module]) -> list[tf.Module]:
    """Return modules and all that is within them, each once."""
    every = (each for module in modules for each in (module, *module.submodules))
    return list({id(each): each for each in every}.values())


def _opened(data: bytes, arrays: list[np.ndarray], *, xnnpack: bool = True):
    interpreter = tflite_interpreter(data, num_threads=2, xnnpack=xnnpack, allocate=False)
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    return interpreter


def _check(data: bytes) -> None:
    """Raise NoFloatForm for what gives other outputs each time, and for loops and branches."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    numbers = {max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes}
    if numbers & _RANDOM:
        raise NoFloatForm(_DRAWS)
    if any(tensor.isVariable for graph in model.subgraphs for tensor in graph.tensors):
        raise NoFloatForm(_STATE)
    if len(model.subgraphs) > 1:
        raise NoFloatForm(f"it has loops or branches that depend on values; {_CHOICES}")


def _draws(traced) -> bool:
    """Return whether a traced function draws random numbers, by generators that TFLite lacks."""
    graph = traced.graph.as_graph_def()
    functions = (node for each in graph.library.function for node in each.node_def)
    return any("Rng" in node.op or "Random" in node.op for node in (*graph.node, *functions))


def _check_sizes(data: bytes, arrays: list[np.ndarray]) -> None:
    """Raise NoFloatForm for tensors whose sizes are known at run time only."""
    interpreter = _opened(data, arrays, xnnpack=False)
    for operator in interpreter._get_ops_details():
        for index in operator["outputs"]:
            try:
                interpreter.get_tensor(int(index))
            except ValueError:  # not allocated yet
                raise NoFloatForm(
                    f"sizes of what {operator['op_name']} gives are known at run time only; files "
                    "have fixed sizes, so multiply by zeros and ones in place of leaving values out"
                ) from None


def _said(error: Exception) -> str:
    """Return what a converter's error is about, the operations that TFLite lacks where it says."""
    names = [each.operator.name for each in getattr(error, "errors", ()) if each.operator]
    names = list(dict.fromkeys(name.removeprefix("tf.") for name in names))
    if not names:
        return f"TensorFlow's converter fails: {_first_line(error)}"
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    said = f"TFLite has no operation {', '.join(names[:_SHOWN])}{rest}"
    known = [advice for part, advice in _ADVICE.items() if any(n.startswith(part) for n in names)]
    return "; ".join([said, *dict.fromkeys(known)])


def _first_line(error: Exception) -> str:
    """Return the first line of an error that says what it is about, at a bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Keras puts a heading above what layers raise.
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    line = next(iter(lines), type(error).__name__)
    return textwrap.shorten(line, 240, placeholder=" ...").rstrip(". ")
