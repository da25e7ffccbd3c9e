"""The operations of an integer network, one frozen class each.

Weights are integer codes with one float step per output channel, activations integer codes with one
float step per tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dlqat_tf.export.integer.moments import Moments
from dlqat_tf.float_part import FloatPart
from dlqat_tf.preprocessing import UNIT, Preprocessing
from dlqat_tf.quantizers import ActivationGrid, ActivationPlanes

OUTPUT = "/output"  # the end of an Output's name, after that of the Keras model's output


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation.

    Attributes:
        name: Unique name, that of the Keras layer where there is one.
        inputs: Names of the nodes whose outputs it reads.
    """

    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Input(Node):
    """Images: the integers 0 to 255, standing for [0, 1] where no :class:`Lookup` reads them.

    Or float values, which an :class:`Activation` rounds.

    Attributes:
        shape: Without the batch; of images (height, width, channels).
        preprocessing: What the Keras model expects to have been done to pixels; None for float
            values.
    """

    shape: tuple[int, ...]
    preprocessing: Preprocessing | None = UNIT

    @property
    def grid(self) -> ActivationGrid | None:
        """Codes of the pixels."""
        is_image = self.preprocessing is not None
        return ActivationGrid(0, 255, np.float32(1 / 255)) if is_image else None


@dataclass(frozen=True)
class FreeLevels:
    """Trained weights whose levels lie on no grid, so that int8 codes are only near to them.

    Attributes:
        layer: Keras layer of the kernel; that of a nested model after the model's name and a slash.
        shift: Largest distance of a trained weight from its code, in units of the weights.
        relative: The same in units of the largest weight of its output channel.
        signs: int8 (planes, weights, output channels) of -1 and 1, whose sum times ``scales`` the
            weights are; None where they are no such sum.
        scales: float32 (planes, output channels), or None.
    """

    layer: str
    shift: float
    relative: float
    signs: np.ndarray | None
    scales: np.ndarray | None

    def times(self, gain: np.ndarray) -> FreeLevels:
        """Return them times a number for each output channel."""
        if self.signs is None or self.scales is None:
            return self
        signs = np.where(gain < 0, -self.signs, self.signs)
        return replace(self, signs=signs, scales=np.float32(self.scales * np.abs(gain)))


@dataclass(frozen=True, kw_only=True)
class Weighted(Node):
    """Base of the nodes with weights: output = input . (weights * step) + bias, per channel.

    Attributes:
        weights: int16 codes, or float32 where ``step`` is None.
        step: float32 (output channels,), always above zero; None for weights that are not rounded.
            Where a file's scales stand in for the model's, float64, so that they are exact.
        bias: float64 (output channels,).
        bits: Declared width of the weights; 32 where ``step`` is None.
        kernel: What runs it: "int8", "int4", "planes" (binary), "float", "sums" (float kernels that
            sum signs times codes, which is exact, before these are scaled), or "" before planning.
        why: Why that kernel, where binary ones were a choice.
        library: Whose kernels: "xnnpack", or "builtin", TFLite's own and TFLite Micro's.
        bias_sources: Keras layers that the bias was folded from, last one first; the name of
            a layer in a nested model follows the model's name and a slash.
        gain_source: The one of them whose gain scales the channels and may move; "" for none.
        moments: Of the outputs in training, None where no batch norm knows them.
        pad_value: What "same" padding puts around the image, where there is any.
        stretch: int64 (output channels,), what an integer kernel's file multiplies the codes by;
            None before planning and on other kernels.
        free: What was trained, where the codes are only near to it.
        storage: How a float kernel's codes are stored, "int8" or "int4".
    """

    weights: np.ndarray
    step: np.ndarray | None
    bias: np.ndarray
    bits: int
    kernel: str = ""
    why: str = ""
    library: str = "xnnpack"
    bias_sources: tuple[str, ...] = ()
    gain_source: str = ""
    moments: Moments | None = None
    pad_value: float = 0.0
    stretch: np.ndarray | None = None
    free: FreeLevels | None = None
    storage: str = "int8"

    @property
    def values(self) -> np.ndarray:
        """float32 weights as the float kernels see them."""
        if self.step is None:
            return self.weights
        step = self.step.reshape(self.weights.shape[-2:]) if self.depthwise else self.step
        return self.weights.astype(np.float32) * step

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel only."""
        return False


@dataclass(frozen=True, kw_only=True)
class Convolution(Weighted):
    """Two-dimensional convolution.

    Attributes:
        weights: (height, width, input channels / groups, output channels), or for a depthwise
            convolution (height, width, input channels, multiplier).
        strides: Rows and columns.
        dilation: Rows and columns.
        padding: "same" or "valid", as TensorFlow means them.
        groups: 1, or the number of separate groups of channels.
        is_depthwise: Whether it is depthwise.
        clipped: On binary kernels: what sums that are clipped at zero are multiplied by, float32
            (output channels,), beside the step and before the bias is added; None: nothing is
            clipped.
    """

    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "valid"
    groups: int = 1
    is_depthwise: bool = False
    clipped: np.ndarray | None = None

    @property
    def depthwise(self) -> bool:
        return self.is_depthwise


@dataclass(frozen=True, kw_only=True)
class TransposedConvolution(Weighted):
    """Two-dimensional transposed convolution: each position adds its window to the output.

    Attributes:
        weights: (height, width, input channels, output channels).
        strides: Rows and columns.
        padding: "same" or "valid", as TensorFlow means them.
    """

    strides: tuple[int, int] = (1, 1)
    padding: str = "valid"


@dataclass(frozen=True, kw_only=True)
class Dense(Weighted):
    """Fully connected layer; weights (features, units)."""


@dataclass(frozen=True, kw_only=True)
class Activation(Node):
    """Clips and rounds to a grid.

    Attributes:
        grid: The codes and their step.
        bits: Declared width.
        calibrated: Whether the range comes from images, not from training.
        source: The Keras layer that it is, where its step may move; "" where it may not.
    """

    grid: ActivationGrid
    bits: int
    calibrated: bool = False
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Lookup(Activation):
    """Codes of prepared pixels, one for each of 256 values of each channel.

    Attributes:
        values: float32 (256, channels), what the activation rounds.
        codes: int16 (256, channels), what it makes of them.
        order: The channel of the image that each channel comes from.
    """

    values: np.ndarray
    codes: np.ndarray
    order: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Affine(Node):
    """Float values times ``gain`` plus ``offset``, both float32 (channels,)."""

    gain: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sign(Node):
    """+1 where the input is at least 0, else -1."""


@dataclass(frozen=True, kw_only=True)
class Levels(Node):
    """Clips and rounds to levels that are no grid.

    Attributes:
        planes: The levels, as sums of planes, and the thresholds between them.
        bits: Declared width.
    """

    planes: ActivationPlanes
    bits: int


@dataclass(frozen=True, kw_only=True)
class ReLU(Node):
    """The larger of the input and 0, but at most ``highest``, which is 6 or infinite.

    Attributes:
        highest: 6 or infinite.
        unrounded: Whether an activation quantizer of 32 bits is what it is.
    """

    highest: float = math.inf
    unrounded: bool = False


@dataclass(frozen=True, kw_only=True)
class Merge(Node):
    """Base of what computes one value from one of each input, whose shapes are broadcast."""


@dataclass(frozen=True, kw_only=True)
class Add(Merge):
    """Sum of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Subtract(Merge):
    """The first of two inputs minus the second."""


@dataclass(frozen=True, kw_only=True)
class Multiply(Merge):
    """Product of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Maximum(Merge):
    """The largest of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Minimum(Merge):
    """The smallest of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Concatenate(Node):
    """Inputs side by side along the channels."""


@dataclass(frozen=True, kw_only=True)
class Pad(Node):
    """Rows and columns around the image.

    Attributes:
        amounts: ((top, bottom), (left, right)).
        value: What they hold.
        mirrored: Whether they hold the image instead, mirrored at its edges.
    """

    amounts: tuple[tuple[int, int], tuple[int, int]]
    value: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Pool(Node):
    """Base of the pools: window and strides in rows and columns, padding "same" or "valid"."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str


@dataclass(frozen=True, kw_only=True)
class MaxPool(Pool):
    """Maximum over each window."""


@dataclass(frozen=True, kw_only=True)
class AveragePool(Pool):
    """Mean over each window, padding not counted."""


@dataclass(frozen=True, kw_only=True)
class GlobalAveragePool(Node):
    """Mean over all rows and columns; (batch, 1, 1, channels) if ``keepdims``, else rank 2."""

    keepdims: bool = False


@dataclass(frozen=True, kw_only=True)
class Reshape(Node):
    """The same values, in the same order, in another shape without the batch."""

    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Island(Node):
    """A part of the model that has no integer form: it runs in float, as TFLite's converter says.

    What it computes is read through :class:`FromIsland` nodes only.

    Attributes:
        part: What it computes.
        layers: Names of the Keras layers in it.
        operator: Of one function of single values, TFLite's name where it has an int8 kernel.
        slopes: Of one function of two slopes, those below zero, float32; else None.
        factors: Of one bilinear upsampling, of rows and of columns; else None.
    """

    part: FloatPart
    layers: tuple[str, ...]
    operator: str = ""
    slopes: np.ndarray | None = None
    factors: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class PReLU(Node):
    """Codes as they are from zero up, and times a slope below; an activation rounds them.

    Attributes:
        layer: Keras layer of several slopes; "" of one, which its code and step hold.
        slopes: float32, as trained; they broadcast against one input.
        codes: int8, those that the file holds, of the same shape.
        step: Theirs.
    """

    layer: str
    slopes: np.ndarray
    codes: np.ndarray
    step: np.float32


@dataclass(frozen=True, kw_only=True)
class FromIsland(Node):
    """An output of the Island that it reads, the ``index``-th; its shape is without the batch."""

    shape: tuple[int, ...]
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Output(Node):
    """What the Keras model returns, or one of the things: float values of the node it reads.

    Attributes:
        ending: "softmax" or "sigmoid" where they come from one, else "".
    """

    ending: str = ""


@dataclass(frozen=True, kw_only=True)
class Crop(Node):
    """The image without rows and columns at its edges; amounts ((top, bottom), (left, right))."""

    amounts: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Upsample(Node):
    """Each row and column as many times as ``size`` says."""

    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Transpose(Node):
    """The dimensions in another order, the batch not counted: the first one is 0."""

    order: tuple[int, ...]
