"""Classification heads: what stands between the features and the loss.

A head's outputs are its logits: class scores whose arg-max is the prediction. They never contain a
margin; margins belong to the losses. Every head deploys as one dense layer: see :meth:`Head.dense`.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf._arguments import known_to
from dlqat_tf.quantizers import SATWeights, SymmetricWeights, WeightGrid, WeightQuantizer

_SQUARED_NORM_FLOOR = 1e-6  # bounds the gradient of the cosine at dead features
_DENSE_ONLY = {
    "activation",
    "use_bias",
    "bias_initializer",
    "bias_regularizer",
    "kernel_constraint",
    "bias_constraint",
}


class Head(tf.keras.layers.Dense):
    """Base class: features (batch, features) in, logits (batch, units) out, both in float32.

    A head is a Keras dense layer, since that is what it deploys as and what other tools, such as
    ``larq.models.summary``, know how to count.

    Under a 16-bit policy a head still computes in float32: squared distances and scaled cosines
    lose the differences between classes otherwise.

    Args:
        units: Number of classes.
        weight_bits: Width of the kernel, or 32 for one that is not rounded, or None for one that is
            used as it is.
        kernel_initializer: Keras initializer of the latent kernel (features, units).
        kernel_regularizer: Optional Keras regularizer of the latent kernel.

    Raises:
        ValueError: ``units`` is not a positive integer, or ``weight_bits`` is out of range.
        TypeError: For arguments of a dense layer that are not above, such as ``activation``.
    """

    has_bias = False
    gives: str | None = None  # what the outputs are, where a loss has to know it

    def __init__(
        self,
        units: int,
        weight_bits: int | None = 8,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        if foreign := _DENSE_ONLY & kwargs.keys():
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(sorted(foreign))}.")
        if isinstance(units, bool) or not isinstance(units, (int, np.integer)) or units < 1:
            raise ValueError(f"Expected units to be a positive integer. Received: units={units!r}.")
        kwargs.setdefault("dtype", "float32")
        with known_to(type(self)):
            super().__init__(
                int(units),
                use_bias=self.has_bias,
                kernel_initializer=kernel_initializer,
                kernel_regularizer=kernel_regularizer,
                **kwargs,
            )
        if self.compute_dtype != "float32":
            raise ValueError(
                f"{type(self).__name__} computes in float32 under every policy. "
                f"Received: dtype={kwargs['dtype']!r}."
            )
        self.weight_bits = weight_bits
        self.kernel_quantizer = None if weight_bits is None else self.make_quantizer(weight_bits)
        self.input_spec = tf.keras.layers.InputSpec(ndim=2)

    def make_quantizer(self, bits: int) -> WeightQuantizer:
        """Return the quantizer of this head's kernel."""
        raise NotImplementedError

    def logits(self, features: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Return the class scores (batch, units) under the quantized ``kernel``."""
        raise NotImplementedError

    def class_scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return the positive factor per class that deployment folds into the kernel."""
        return tf.ones(self.units)

    def class_bias(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return the bias per class of the deployed dense layer."""
        return tf.zeros(self.units)

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the head as one dense layer with the same arg-max.

        Returns:
            float32 kernel (features, units) and bias (units,). ``features @ kernel + bias`` equals
            the logits up to a positive factor and an offset common to all classes of an image.
        """
        kernel = self._quantized_kernel()
        bias = self.class_bias(kernel).numpy()
        if self.weight_bits in (None, 32):
            return (kernel * self.class_scale(kernel)).numpy(), bias
        grid = self.grid()
        return grid.codes * grid.step, bias

    def grid(self) -> WeightGrid:
        """Return the integers behind the kernel of :meth:`dense`, with one step per class.

        Raises:
            ValueError: The kernel is not rounded (32 bits or None) or is not finite.
        """
        if self.kernel_quantizer is None:
            raise ValueError(f"{self.name!r} has weight_bits=None, so it has no integer codes.")
        grid = self.kernel_quantizer.grid(self.kernel)
        return WeightGrid(
            grid.codes, grid.step * self.class_scale(self._quantized_kernel()).numpy()
        )

    def build(self, input_shape):
        super().build(input_shape)
        self.input_spec = tf.keras.layers.InputSpec(ndim=2, axes={-1: input_shape[-1]})
        # Where larq.models.summary looks for the width.
        self.kernel.precision = self.kernel_quantizer.precision if self.kernel_quantizer else 32

    def call(self, inputs):
        logits = self.logits(tf.cast(inputs, tf.float32), self._quantized_kernel())
        logits._dlqat_head = self  # for `head_of`
        return logits

    def get_config(self):
        return {
            **tf.keras.layers.Layer.get_config(self),
            "units": self.units,
            "weight_bits": self.weight_bits,
            "kernel_initializer": tf.keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": tf.keras.regularizers.serialize(self.kernel_regularizer),
        }

    def _quantized_kernel(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        return kernel if self.kernel_quantizer is None else self.kernel_quantizer(kernel)


def head_of(predictions: tf.Tensor) -> Head | None:
    """Return the head whose very output this tensor is, where that is known.

    Known also while a training step is traced, so a loss can refuse another head before any step,
    whatever compiles it.
    """
    return getattr(predictions, "_dlqat_head", None)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LinearHead(Head):
    r"""Dense layer with scale-adjusted SAT weights and a float bias, for cross-entropy.

    .. math:: z = f \, Q(W) / S + b

    The rescaled weights have variance 1 / units whatever the latent ones do, which keeps the
    logits out of saturation (Jin et al. 2020, arXiv 1912.10207).

    Args:
        units: Number of classes.
        weight_bits: 1 to 8; 32 clamps and rescales without rounding; None is a plain dense layer.
        kernel_initializer: Keras initializer of the latent kernel.
        kernel_regularizer: Optional Keras regularizer of the latent kernel.
    """

    has_bias = True
    gives = "logits"

    def make_quantizer(self, bits):
        return SATWeights(bits, scale_adjust=True)

    def logits(self, features, kernel):
        return tf.matmul(features, kernel) + self.bias

    def class_bias(self, kernel):
        return tf.convert_to_tensor(self.bias)


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class CosineHead(Head):
    r"""Cosines between the features and each class vector, for :class:`dlqat_tf.AMSLoss`.

    .. math:: z_k = \frac{f \cdot Q(W)_k}{\lVert f \rVert \, \lVert Q(W)_k \rVert}

    Wang et al. 2018 (arXiv 1801.05599), DL-QAT eq. 2. The kernel is quantized first and normalised
    second, so the outputs are true cosines whatever the rounding did. Features of norm zero give
    cosine 0 for every class.

    Args:
        units: Number of classes.
        weight_bits: 1 to 8; 32 clamps without rounding; None leaves the weights alone.
        kernel_initializer: Keras initializer of the latent kernel, class vectors in its columns.
        kernel_regularizer: Optional Keras regularizer of the latent kernel.
    """

    gives = "cosines"

    def make_quantizer(self, bits):
        return SATWeights(bits)

    def logits(self, features, kernel):
        directions = tf.math.l2_normalize(features, axis=1, epsilon=_SQUARED_NORM_FLOOR)
        return tf.matmul(directions, kernel * self.class_scale(kernel))

    def class_scale(self, kernel):
        return tf.math.rsqrt(
            tf.maximum(tf.reduce_sum(tf.square(kernel), axis=0), _SQUARED_NORM_FLOOR)
        )


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class GaussianMixtureHead(Head):
    r"""Negated squared distances to one trained mean per class, for :class:`dlqat_tf.GMLoss`.

    .. math:: z_k = -d_k = -\tfrac12 \lVert f - Q(\mu)_k \rVert^2

    Wan et al. 2018 (arXiv 1803.02988), DL-QAT eq. 5: a Gaussian mixture with identity covariance.
    Computed as :math:`f \cdot \mu_k - \lVert \mu_k \rVert^2 / 2 - \lVert f \rVert^2 / 2`, a matrix
    product, and clipped at zero against rounding. Arg-max ignores the last term, so the head
    deploys as a dense layer.

    The means keep their scale (:class:`dlqat_tf.quantizers.SymmetricWeights`): the SAT clamp would
    destroy the distances. They start uniform in :math:`\pm 2 \sqrt{3 / \operatorname{mean}(
    \text{features}, \text{units})}`.

    Args:
        units: Number of classes.
        weight_bits: 2 to 8; 32 or None leave the means float.
        kernel_initializer: Keras initializer of the means, one per column.
        kernel_regularizer: Optional Keras regularizer of the latent means.
    """

    gives = "negated distances"

    def __init__(self, units: int, weight_bits: int | None = 8, kernel_initializer=None, **kwargs):
        if kernel_initializer is None:
            kernel_initializer = tf.keras.initializers.VarianceScaling(
                scale=4.0, mode="fan_avg", distribution="uniform"
            )
        super().__init__(units, weight_bits, kernel_initializer, **kwargs)

    def make_quantizer(self, bits):
        return SymmetricWeights(bits)

    @property
    def means(self) -> np.ndarray:
        """Quantized class means, float32 (units, features)."""
        return self._quantized_kernel().numpy().T

    def logits(self, features, kernel):
        norms = tf.reduce_sum(tf.square(features), axis=1, keepdims=True)
        return tf.minimum(tf.matmul(features, kernel) + self.class_bias(kernel) - norms / 2, 0.0)

    def class_bias(self, kernel):
        return -tf.reduce_sum(tf.square(kernel), axis=0) / 2
