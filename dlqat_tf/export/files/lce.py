"""Keras model -> .tflite with binary convolutions of Larq Compute Engine (LCE)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._progress import progress, say
from dlqat_tf._stderr import without_notes
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.assembly import (
    Built,
    ExportReport,
    assemble,
    check_choice,
    checked_batch_size,
    checked_count,
    finish,
    measure,
    targets_of,
)
from dlqat_tf.export.files.bitplanes import PlaneWriter, packed_signs
from dlqat_tf.export.files.inputs import Images, InputTypes, check_lookups
from dlqat_tf.export.files.moving import add_reshape
from dlqat_tf.export.integer.adapted import Size, adapted
from dlqat_tf.export.integer.binary import binary_parts
from dlqat_tf.export.integer.cores import TARGETS
from dlqat_tf.export.integer.endings import Outputs
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.grids import free_levels, grids
from dlqat_tf.export.integer.integers import target_of
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Convolution, Dense, Weighted
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import batches, correction
from dlqat_tf.float_part import FloatPart

PLANE_LIMIT = 9
_WIDEST = 64  # planes of 8 bits times 8 bits


@progress("to_lce")
def to_lce(
    model: tf.keras.Model,
    path: str | Path,
    *,
    input_type: InputTypes = None,
    batch_size: int | None = 1,
    plane_limit: int = PLANE_LIMIT,
    target: str = "all",
    calibration: Images | tf.data.Dataset | None = None,
    preprocessing=None,
    size: Size = None,
    outputs: Outputs = None,
    snap: bool = True,
    force: bool = False,
) -> ExportReport:
    r"""Write a model as a .tflite file whose low-bit convolutions run on binary kernels.

    Weights of x bits are x planes of signs and a code of y bits is y planes, so a convolution is x
    times y binary ones, whose sum is exact in integers: with :math:`s_j = -1` where bit j is set,

    .. math:: W * c = \sum_{i,j} 2^{i+j-1} (\textstyle\sum W_i - W_i * s_j)

    and padding by +1 stands for code 0. Each weight plane is stored once. What follows is float32
    until it is rounded, so residual adds need no ``residual_bits``. Convolutions of more planes
    than ``plane_limit``, grouped and depthwise ones and the 8-bit ends run on int8 kernels, or in
    float32 where no activation quantizer directly follows. Dense layers are convolutions of one
    position. Networks of Larq's own quantizers export too; the report warns where nothing of a
    model runs on binary kernels. Levels on a free basis (LQ-Net, ABC-Net) are exact: weight planes
    have their own factors for each channel, and activation planes come from thresholds. Where such
    weights run on int8 kernels they are at the nearest codes, as in ``to_tflite``.

    LCE's fast kernels are for ARM64; on other processors it runs reference kernels.

    Args:
        model: As for :func:`dlqat_tf.export.integer.lower.lower`.
        path: The file to write.
        input_type: As for ``to_tflite``.
        batch_size: As for ``to_tflite``.
        plane_limit: Largest number of binary convolutions for one layer.
        target: The cores that the file is for, "armv8.0", "dotprod" or "i8mm": layers that are
            cheaper on int8 kernels there run on those, see
            :func:`dlqat_tf.export.integer.cores.dearer`. "all" runs on planes whatever can, for the
            smallest file. The report says which layer went where and why.
        calibration: Images, as for ``to_tflite``, for the ranges of int8 layers that no quantizer
            follows; without them these layers run in float32.
        preprocessing: As for ``to_tflite``.
        size: As for ``to_tflite``.
        outputs: As for ``to_tflite``.
        snap: Move biases away from rounding ties (:func:`dlqat_tf.export.integer.snap.snap`) and
            save ``<stem>.snapped.keras`` beside the file: the model with the file's biases. Else
            they are the trained ones, to the nearest that int8 layers can hold.
        force: Overwrite existing files.

    Raises:
        ExportError: An argument, the model or the folder is not as above. No file is left.
    """
    plane_limit = checked_count("plane_limit", plane_limit)
    check_choice("target", target, TARGETS)
    batch_size = checked_batch_size(batch_size)
    targets = targets_of(path, snap, force)
    say("reads the model")
    model = adapted(model, preprocessing=preprocessing, size=size, outputs=outputs)
    network = lower(model)
    built = build(
        network,
        measure(calibration, network),
        input_type=input_type,
        batch_size=batch_size,
        plane_limit=plane_limit,
        target=target,
        clear=snap,
    )
    say("runs the file once")
    _check_runs(built)
    return finish(model, built, targets)


def build(
    network: IntegerNetwork,
    calibrate=None,
    *,
    input_type: InputTypes = None,
    batch_size: int | None = 1,
    plane_limit: int = PLANE_LIMIT,
    target: str = "all",
    clear: bool = True,
) -> Built:
    """Build the file of :func:`to_lce` in memory.

    Args:
        network: What :func:`dlqat_tf.export.integer.lower.lower` returns.
        calibrate: As for :func:`dlqat_tf.export.integer.plan.plan`.
        input_type: As for :func:`to_lce`.
        batch_size: As for :func:`to_lce`.
        plane_limit: As for :func:`to_lce`.
        target: As for :func:`to_lce`.
        clear: As for :func:`dlqat_tf.export.integer.plan.plan`.

    Raises:
        ExportError: A layer has no kernel that computes what was trained.
    """
    built = assemble(
        _BinaryWriter,
        network,
        calibrate,
        input_type,
        batch_size=batch_size,
        int4=False,
        floats=False,
        plane_limit=plane_limit,
        target=target,
        clear=clear,
    )
    if not _planes_in(built.planned):
        return replace(built, warnings=[_nothing_binary(network, plane_limit, target)])
    return built


def _planes_in(planned: IntegerNetwork) -> list[Convolution]:
    return [node for node in planned if getattr(node, "kernel", "") == "planes"]


def _nothing_binary(network: IntegerNetwork, plane_limit: int, target: str) -> str:
    """Return what to say of a file without binary kernels."""
    if target != "all" and _planes_in(plan(network, plane_limit=plane_limit, clear=False)):
        return (
            f"nothing runs on binary kernels: no layer is cheaper as planes on {target} cores. "
            'Export with to_tflite, or with target="all" for a smaller file'
        )
    widest = plan(network, plane_limit=_WIDEST, clear=False)
    known, levels = grids(widest), free_levels(widest)
    counts = [
        len(binary_parts(node, known[node.inputs[0]] or levels[node.inputs[0]]))
        for node in _planes_in(widest)
    ]
    if counts:
        return (
            f"nothing runs on binary kernels: no layer has at most {plane_limit} planes (weight "
            "bits times activation bits). Raise plane_limit to "
            f"{min(counts)}, or export with to_tflite, whose files need no Larq Compute Engine"
        )
    return (
        "nothing runs on binary kernels, which take weights of 1 to 7 bits without a zero, neither "
        "grouped nor depthwise, and activations that are not negative, after the first layer: "
        "export with to_tflite, whose files need no Larq Compute Engine"
    )


class _BinaryWriter(PlaneWriter):
    """Adds binary convolutions to what stock kernels have.

    Tensors between a layer's operations have no names: those would be a percent of the file.
    """

    def __init__(self, network, input_types, batch_size, kernels):
        super().__init__(network, input_types, batch_size, kernels)
        self._run_part = PartRunner()
        self._uniform: dict[tuple[float, int], int] = {}  # constants by value and length

    def run_part(self, part: FloatPart, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._run_part(part, arrays)

    def run_file(self, data: bytes, codes: np.ndarray) -> np.ndarray:
        return open_interpreter(data).predict([codes])[0]

    def planes(self, node: Convolution) -> int:
        source = self.grids[node.inputs[0]] or self.levels[node.inputs[0]]
        coded = source is not None and not getattr(source, "signed", False)
        bits = self.planes_of(node.inputs[0])
        parts, shape = binary_parts(node, source), self.network.shapes[node.name]
        border = correction(node, source, self.network.shapes[node.inputs[0]])
        pads_ones = coded or border is not None or node.pad_value == 1
        last = "" if border is not None else node.name
        filters: dict[int, int] = {}
        total = None
        for part in parts:
            if part.weight_bit not in filters:
                filters[part.weight_bit] = self.file.constant(
                    f"{node.name}/weights{part.weight_bit}", packed_signs(part.signs)
                )
            output = self.float_tensor(last if len(parts) == 1 else "", shape)
            inputs = [
                bits[part.activation_bit],
                filters[part.weight_bit],
                self._per_channel(part.multiplier),
                self._per_channel(part.bias),
                -1,
            ]
            self.file.operator("LceBconv2d", inputs, output, custom=_options(node, pads_ones))
            if total is not None:
                output = self._sum(total, output, last if part is parts[-1] else "", shape)
            total = output
        self.weights[node.name] = list(filters.values())
        if border is not None:
            total = self._sum(total, self.file.constant("", border), node.name, shape)
        return total

    def _sum(self, first: int, second: int, name: str, shape: tuple[int, ...]) -> int:
        added = self.float_tensor(name, shape)
        self.fusible[added] = schema.AddOptionsT()
        self.file.operator("ADD", [first, second], added, self.fusible[added])
        return added

    def integer_weighted(self, node: Weighted, output: int, fused: int) -> None:
        if not isinstance(node, Dense):
            super().integer_weighted(node, output, fused)
            return
        # With a step for each channel, LCE's TFLite has convolutions on XNNPACK, whose rounding is
        # float32's, but no fully connected layers; those would round in fixed point.
        (source,), image = node.inputs, f"{node.name}/image"
        self.grids[image] = self.grids[source]
        self.tensors[image] = self.coded("", self.grids[source], (1, 1, len(node.weights)))
        add_reshape(
            self.file, "", self.tensors[source], self.tensors[image], (1, 1, len(node.weights))
        )
        rounded = target_of(node, self.readers).grid
        outputs = self.coded("", rounded, (1, 1, len(node.bias)))
        convolution = Convolution(
            name=node.name,
            inputs=(image,),
            weights=node.weights[None, None],
            step=node.step,
            bias=node.bias,
            bits=node.bits,
            kernel=node.kernel,
            stretch=node.stretch,
        )
        super().integer_weighted(convolution, outputs, fused)
        add_reshape(self.file, "", outputs, output, (len(node.bias),))

    def _per_channel(self, values: np.ndarray) -> int:
        """Return a constant; where all values are equal, one for all layers of that width."""
        if np.ptp(values) > 0:
            return self.file.constant("", values)
        key = (float(values[0]), len(values))
        if key not in self._uniform:
            self._uniform[key] = self.file.constant("", values)
        return self._uniform[key]


def _options(node: Convolution, pads_ones: bool) -> bytes:
    same = node.padding == "same"
    kinds = schema.ActivationFunctionType
    return bytes(
        flexbuffers.Dumps(
            {
                "channels_in": node.weights.shape[2],
                "dilation_height_factor": node.dilation[0],
                "dilation_width_factor": node.dilation[1],
                "fused_activation_function": kinds.NONE if node.clipped is None else kinds.RELU,
                "pad_values": int(pads_ones),
                "padding": schema.Padding.SAME if same else schema.Padding.VALID,
                "stride_height": node.strides[0],
                "stride_width": node.strides[1],
            }
        )
    )


def open_interpreter(data: bytes, path="the file", *, threads: int = 1, xnnpack: bool = True):
    """Return LCE's interpreter of a file: ``predict`` maps a list of inputs to one of outputs.

    Args:
        data: Content of the .tflite file.
        path: What errors call it.
        threads: CPU threads that the kernels may use. Several wait for each other at every
            operation, for long where the machine is busy.
        xnnpack: Whether the XNNPACK delegate takes the operations that are not LCE's.

    Raises:
        ExportError: larq-compute-engine is not installed, or refuses the file.
    """
    try:
        from larq_compute_engine.tflite.python.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(
            f"Binarized files run on larq-compute-engine, which cannot be imported ({error}): run "
            "`pip install larq-compute-engine`."
        ) from None
    try:
        # The wrapped interpreter: its wrapper cuts batches into single images in Python.
        with without_notes():
            return Interpreter(data, num_threads=threads, use_xnnpack=xnnpack).interpreter
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"Larq Compute Engine refuses {path}: {reason}") from error


def _check_runs(built: Built) -> None:
    inputs = built.planned.inputs
    count = built.batch_size or 1
    images = [np.zeros((count, *each.shape), built.input_types[each.name]) for each in inputs]
    open_interpreter(built.data).predict(images)
    check_lookups(
        built.data,
        built.planned,
        built.input_types,
        lambda data: open_interpreter(data).predict,
    )


class PartRunner:
    """Runs parts that stay float on LCE's interpreter, whose kernels are of another TFLite."""

    def __init__(self):
        self._open: dict[tuple[bytes, int], object] = {}

    def __call__(self, part: FloatPart, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return what :meth:`dlqat_tf.float_part.FloatPart.run` does."""
        count = part.batch or len(arrays[0])
        if (part.data, count) not in self._open:
            model = flatbuffer.parsed(part.data, "a part")
            interpreter = open_interpreter(flatbuffer.with_batch(model, count))
            self._open[part.data, count] = interpreter
        interpreter = self._open[part.data, count]
        outputs = [interpreter.predict(each) for each in batches(arrays, count)]
        return [np.concatenate(each) for each in zip(*outputs, strict=True)]
