"""BWNH: binary weights fitted to what layers compute.

Hu et al., "From hashing to CNNs: training binary weight networks via hashing", AAAI 2018
(arXiv 1802.02733).
"""

from __future__ import annotations

import larq as lq
import numpy as np
import tensorflow as tf

from dlqat_tf.quantizers.bwn import BWNWeights
from dlqat_tf.quantizers.wrapped import unwrapped

_layers = tf.keras.layers
_PATCHES = 20_000  # of a layer's inputs
_BATCH = 32


def fit_binary(
    kernel: np.ndarray, gram: np.ndarray, sweeps: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return the signs and factors with which a layer comes closest to its float outputs.

    .. math:: \min_{b_j \in \{-1, 1\}, a_j} \lVert X^\top w_j - a_j X^\top b_j \rVert^2

    for each output channel j: the factor is :math:`\langle X^\top w, X^\top b \rangle /
    \lVert X^\top b \rVert^2`; signs change one after the other where that lowers the error. They
    start at those of the kernel; where these come no nearer to the outputs than zero does, at those
    with which a small factor does.

    Args:
        kernel: float (weights, channels).
        gram: float64 (weights, weights), :math:`X X^\top`.
        sweeps: How often each sign is looked at.

    Returns:
        float64 signs of the kernel's shape, and factors (channels,) of at least zero.
    """
    kernel = np.asarray(kernel, np.float64)
    signs = np.where(kernel >= 0, 1.0, -1.0)
    target, moments = gram @ kernel, gram @ signs
    factors = _factors(signs, target, moments)
    for _ in range(sweeps):
        before = signs.copy()
        for i in range(len(signs)):
            # The error's part that depends on this sign, the others as they are.
            others = moments[i] - gram[i, i] * signs[i]
            # Over the factor: a channel that starts against its target has one of zero, and
            # takes the signs with which its error falls.
            pull = target[i] - factors * others
            new = np.where(pull == 0, signs[i], np.where(pull > 0, 1.0, -1.0))
            changed = new != signs[i]
            if changed.any():
                moments[:, changed] += np.outer(gram[:, i], (new - signs[i])[changed])
                signs[i] = new
        factors = _factors(signs, target, moments)
        if np.array_equal(before, signs):
            break
    return signs, factors


def _factors(signs: np.ndarray, target: np.ndarray, moments: np.ndarray) -> np.ndarray:
    energy = (signs * moments).sum(axis=0)
    agreement = (signs * target).sum(axis=0)
    return np.maximum(agreement, 0.0) / np.maximum(energy, 1e-30)


def latent_kernel(kernel: np.ndarray, signs: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return what to store for signs and factors: BWN's quantizer and its constraint keep both.

    Weights have the magnitudes of the kernel, none below a thousandth of a channel's mean. At each
    kernel position those above zero are scaled, and those below, so that both have one sum, half of
    all; where there is but one sign, no scale does that. Then each channel has the mean magnitude
    that its factor is.

    Args:
        kernel: float, input and output channels last.
        signs: -1 and 1, of the kernel's shape.
        factors: (output channels,).

    Returns:
        float32, of the kernel's shape.
    """
    magnitudes, axes = np.abs(kernel), tuple(range(kernel.ndim - 1))
    means = magnitudes.mean(axes)
    magnitudes = np.maximum(magnitudes, np.where(means > 0, 1e-3 * means, 1.0))
    above, below = (
        np.where(signs == sign, magnitudes, 0.0).sum(-2, keepdims=True) for sign in (1, -1)
    )
    has_both = (above > 0) & (below > 0)
    half, own = (above + below) / 2, np.where(signs > 0, above, below)
    magnitudes = magnitudes * np.where(has_both, half / np.where(has_both, own, 1.0), 1.0)
    return np.asarray(signs * magnitudes * (factors / magnitudes.mean(axes)), np.float32)


def bwnh(model: tf.keras.Model, images: np.ndarray, *, sweeps: int = 3) -> dict[str, float]:
    """Fit a network's binary weights to its activations, layer by layer; train it on afterwards.

    Of each kernel :class:`~dlqat_tf.BWNWeights` then makes the signs times the factors of
    :func:`fit_binary`. A layer's inputs are those that the network has with all layers before
    binarised already; that layer's own float kernel on them is what is fitted. Depthwise, grouped
    and transposed convolutions keep BWN's signs.

    The paper does not say where between its signs training finds the stored kernel. Here it keeps
    the magnitudes that it has, by which training decides how easily a sign changes, in proportions
    that :class:`~dlqat_tf.CentredAndClamped` leaves: see :func:`latent_kernel`.

    Args:
        model: Functional or Sequential network of trained float kernels under ``BWNWeights(1)``,
            of Larq's layers or in TF-MOT's wrappers.
        images: A few hundred, as the model takes them.
        sweeps: How often each sign is looked at.

    Returns:
        What is left of each layer's output, squared error over squared output, by layer name.

    Raises:
        ValueError: The model has no kernel of ``BWNWeights(1)``, or there are no images.
    """
    layers = [layer for layer in model.layers if _is_binary(layer)]
    if not layers:
        raise ValueError(
            "bwnh expected a model with BWNWeights(1) on its kernels. Received: a model without; "
            "build it so and load the weights of its float twin."
        )
    if len(images) == 0:
        raise ValueError("bwnh expected images to fit to. Received: none.")
    errors = {}
    for layer in layers:
        parts = unwrapped(layer)
        gram = _gram(tf.keras.Model(model.inputs, layer.input), parts.layer, images)
        with lq.context.quantized_scope(False):
            latent = np.asarray(tf.convert_to_tensor(parts.kernel), np.float64)
        kernel = latent.reshape(-1, latent.shape[-1])
        signs, factors = fit_binary(kernel, gram, sweeps)
        rest = kernel - signs * factors
        output = max(float((kernel * (gram @ kernel)).sum()), 1e-30)
        errors[layer.name] = float((rest * (gram @ rest)).sum()) / output
        stored = latent_kernel(latent, signs.reshape(latent.shape), factors)
        tf.keras.backend.set_value(parts.kernel, stored)
    return errors


def _is_binary(layer) -> bool:
    parts = unwrapped(layer)
    layer, quantizer = parts.layer, parts.kernel_quantizer
    convolves = isinstance(layer, _layers.Conv2D) and layer.groups == 1
    convolves = convolves and not isinstance(layer, _layers.Conv2DTranspose)
    convolves = convolves and layer.data_format == "channels_last"
    fits = convolves or isinstance(layer, _layers.Dense)
    return fits and isinstance(quantizer, BWNWeights) and quantizer.bits == 1


def _gram(before: tf.keras.Model, layer, images: np.ndarray) -> np.ndarray:
    """Return the products of a layer's inputs with each other, summed over its positions."""
    generator, total = np.random.default_rng(0), np.zeros(())
    share = -(-_PATCHES // max(len(images) // _BATCH, 1))
    for i in range(0, len(images), _BATCH):
        values = before(images[i : i + _BATCH], training=False)
        quantizer = getattr(layer, "input_quantizer", None)
        if quantizer is not None:
            values = quantizer(values)
        patches = _patches(layer, tf.cast(values, tf.float32))  # sums of 16 bits would overflow
        if len(patches) > share:
            patches = patches[generator.choice(len(patches), share, replace=False)]
        total = total + np.asarray(patches.T @ patches, np.float64)
    return total


def _patches(layer, values: tf.Tensor) -> np.ndarray:
    """Return the inputs of each output position, (positions, weights)."""
    if isinstance(layer, _layers.Dense):
        return values.numpy().reshape(-1, values.shape[-1])
    # Rows, columns, channels: the order of the kernel.
    patches = tf.image.extract_patches(
        values,
        [1, *layer.kernel_size, 1],
        [1, *layer.strides, 1],
        [1, *layer.dilation_rate, 1],
        layer.padding.upper(),
    )
    return patches.numpy().reshape(-1, patches.shape[-1])
