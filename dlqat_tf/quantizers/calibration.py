"""Where an activation range starts when a float network is about to be quantized."""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from dlqat_tf._progress import progress, steps
from dlqat_tf.graph import copied, tensors_of
from dlqat_tf.quantizers.base import ActivationQuantizer
from dlqat_tf.quantizers.input import InputQuantizer
from dlqat_tf.quantizers.pact import ALPHA_MINIMUM
from dlqat_tf.quantizers.ste import Codes, codes_of
from dlqat_tf.quantizers.wrapped import unwrapped

_ZERO_POINTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_ZERO_POINT_SAMPLE = 20_000
SAMPLE = 200_000  # values per layer: the optimum moves by less than a percent with more
# What a network keeps of a batch is a hundred times as much, in float32. Small images are in one
# batch of all, whose statistics are those of norms that have not been trained.
_BATCH_NUMBERS = 2**21
_SMALLEST_BATCH = 32
_CANDIDATES = np.linspace(0.02, 1.0, 99, dtype=np.float32)


def optimal_range(values: np.ndarray, lowest: int, highest: int) -> float:
    r"""Return the range that loses least when ``values`` are clipped and rounded.

    .. math:: \alpha^* = \arg\min_\alpha \sum_x (Q_\alpha(x) - x)^2

    over 99 candidates up to the largest value, where negative values count as zero if ``lowest``
    is 0 (they are lost to the rectification, not to the rounding). Clipping and rounding errors
    trade off differently at each width: for a unit normal the minimum is at 1.9 for 2 bits, 2.5 for
    3 bits and 2.9 for 4 bits, where SAT's fixed 8.0 would leave 2 bits a step of 2.7 and round 82 %
    of the positive values to zero.

    Args:
        values: Activations before the quantizer, any shape.
        lowest: Lowest code of the grid, zero or negative.
        highest: Highest code of the grid, at ``alpha``.

    Returns:
        The range in units of ``values``; 1.0 when there is nothing to represent.
    """
    values = np.asarray(values, np.float32).ravel()
    if lowest == 0:
        values = np.maximum(values, 0.0)
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return 1.0
    errors = [
        rounding_error(values, Codes(lowest, highest), step)
        for step in _CANDIDATES * (largest / highest)
    ]
    return float(_CANDIDATES[np.argmin(errors)] * largest)


def rounding_error(values: np.ndarray, codes: Codes, step: float) -> float:
    """Return the mean squared error of values that are clipped and rounded to a grid."""
    rounded = np.rint(np.clip(values / step, *codes)) * step
    return float(np.square(rounded - values).mean())


def optimal_zero_point(values: np.ndarray, bits: int) -> int:
    """Return how many of the codes lose least below zero, each number with its optimal range.

    The swish of a unit normal goes from -0.28 to about 4: with 4 bits one code below zero loses two
    fifths of what as many below as above do, since twice as many are left for what is above.

    Args:
        values: What is rounded, any shape; of more than 20,000 values a part is looked at.
        bits: Of the codes, 2 to 8.

    Returns:
        Between 0 and half of the codes, in steps that grow with it.
    """
    values = subsample(values, _ZERO_POINT_SAMPLE, np.random.default_rng(0))
    errors = {}
    for zero_point in (each for each in _ZERO_POINTS if each <= 2 ** (bits - 1)):
        codes = codes_of(bits, zero_point=zero_point)
        step = optimal_range(values, *codes) / codes.highest
        errors[zero_point] = rounding_error(values, codes, step)
    return min(errors, key=errors.__getitem__)


def calibrated(model: tf.keras.Model) -> dict[tf.keras.layers.Layer, ActivationQuantizer]:
    """Return the quantizers of a model whose ranges :func:`calibrate` sets.

    Returns:
        By the layer that they are, or whose output they round.
    """
    quantizers = {}
    for layer in model.layers:
        is_itself = isinstance(layer, ActivationQuantizer)
        quantizer = layer if is_itself else unwrapped(layer).output_quantizer
        # Conversion has set it where all values that there may be are known.
        is_known = is_itself and not layer.trainable
        if quantizer is not None and quantizer.range_of_images is not None and not is_known:
            quantizers[layer] = quantizer
    return quantizers


@progress("calibrate")
def calibrate(
    model: tf.keras.Model, reference: tf.keras.Model, images: np.ndarray, *, trained: bool = True
) -> dict[str, float]:
    """Set the range of every quantizer of ``model`` that has one from a float twin's activations.

    Those of quantizers that are not trainable stay, as of pixels, whose range is known.

    Args:
        model: Network whose ranges are set.
        reference: Network whose layers have the same names, with float activations. For what
            TF-MOT wraps: the network before it was annotated, or one of 32 bits, which has the
            parts of layers that were taken apart.
        images: A few hundred images, float32 in [0, 1].
        trained: Whether the reference's batch-norm averages are meaningful. An untrained one is
            run with the statistics of ``images`` instead, batch by batch: all images up to 32x32
            by hundreds, large ones at least by 32.

    Returns:
        The new range by layer name.

    Raises:
        ValueError: The reference has no such layer, or the model is wrapped by something else.
    """
    quantizers = calibrated(model)
    if not quantizers:
        return {}
    if not trained:  # on a copy, since running in training mode moves the averages
        reference = copied(reference, lambda config: config)
    twins = {unwrapped(layer).layer.name: call for layer, call in _calls(reference).items()}
    calls, rounded = _calls(model), []
    for layer, quantizer in quantizers.items():
        is_itself, name = quantizer is layer, unwrapped(layer).layer.name
        if is_itself and name not in twins:
            (source,) = tensors_of(calls[layer])
            before = unwrapped(source.node.layer).layer.name
            # What conversion puts behind a layer is named after it, and references have none there.
            if isinstance(quantizer, InputQuantizer) or name.startswith(f"{before}_"):
                name, is_itself = before, False
        if name not in twins:
            raise ValueError(
                f"Expected a reference with a layer named {name!r}, since the model has one. "
                f"Received: layers {', '.join(twins)}. Where TF-MOT's scheme took layers apart, "
                "the reference is the model with Scheme(32, 32)."
            )
        call = twins[name]
        rounded.append(tensors_of(call)[0] if is_itself else call.outputs)
    observed = tf.keras.Model(reference.input, rounded)
    samples: list[list[np.ndarray]] = [[] for _ in rounded]
    generator, batches = np.random.default_rng(0), _batches(images)
    for batch in steps("the reference on images, batch", batches):
        activations = tf.nest.flatten(observed(batch, training=not trained))
        for kept, values in zip(samples, activations, strict=True):
            kept.append(subsample(typical(values.numpy()), -(-SAMPLE // len(batches)), generator))
    return {
        layer.name: set_range(quantizer, np.concatenate(values))
        for (layer, quantizer), values in steps(
            "range", zip(quantizers.items(), samples, strict=True)
        )
    }


def _batches(images) -> list:
    """Return images in equal batches that memory has room for; sizes differ by one at most."""
    arrays = tf.nest.flatten(images)
    count, numbers = len(arrays[0]), sum(np.size(each) for each in arrays)
    size = max(_SMALLEST_BATCH, _BATCH_NUMBERS * count // max(numbers, 1))
    ends = np.linspace(0, count, max(count // size, 1) + 1).astype(int)
    return [
        tf.nest.map_structure(lambda each, start=start, end=end: each[start:end], images)
        for start, end in itertools.pairwise(ends)
    ]


def _calls(model: tf.keras.Model) -> dict:
    """Return the first call of each layer in a model; elsewhere it may be called too."""
    depths = sorted(model._nodes_by_depth)  # from the outputs to the inputs
    return {call.layer: call for depth in depths for call in model._nodes_by_depth[depth]}


def typical(values: np.ndarray) -> np.ndarray:
    """Return the activations of images, the first axis, without those of quite another size.

    In inference a float network may answer a single image, a blank one say, with activations a
    hundred times as large as those of all others. Such an image has more squared error to lose than
    the rest together, and a range of few bits that suits it rounds everything else to zero. Left
    out are images whose mean square is more than 16 times that which 95 % of them stay below.
    """
    squares = np.array([np.square(each, dtype=np.float64).mean() for each in values])
    return values[~(squares > 16 * np.quantile(squares, 0.95))]  # NaN leaves nothing out


def subsample(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return at most ``count`` of the values, flat."""
    values = np.ravel(values)
    return generator.choice(values, count, replace=False) if values.size > count else values


def set_range(layer: ActivationQuantizer, values: np.ndarray) -> float:
    """Set the range of one quantizer by what it is to round, and return it."""
    alpha = max(optimal_range(values, *layer.codes), ALPHA_MINIMUM)
    layer.range_of_images.assign(alpha)
    return alpha
