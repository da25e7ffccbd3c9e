"""ResNet-18 as a functional Keras model, post-activation, with quantized convolutions.

He et al. 2015 (arXiv 1512.03385), with quantizers where the paper's authors put them: every
activation function is one, the one after each residual sum included, so the residual stream itself
is low-bit. Batch norm and biases stay float; no convolution has a bias. Padding is TensorFlow's
"same", which at stride 2 pads the far side first where PyTorch and N2D2 pad both.
"""

from __future__ import annotations

from numbers import Integral

import larq as lq
import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf.heads import CosineHead, GaussianMixtureHead, LinearHead
from dlqat_tf.quantizers import CGPACT
from dlqat_tf.quantizers.base import check_bits

HEADS = {"linear": LinearHead, "cosine": CosineHead, "gml": GaussianMixtureHead}
STEMS = ("cifar", "imagenet")
EDGE_BITS = 8  # first convolution, last activation and head, whatever the rest has


def edge_bits(bits: int | None) -> int | None:
    """Return the width at a network's ends, given the hidden one."""
    return bits if bits in (None, 32) else EDGE_BITS


def resnet18(
    num_classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    weight_bits: int | None = 1,
    activation_bits: int | None = 2,
    head: str = "linear",
    stem: str = "cifar",
    width: int = 64,
    residual_bits: int | None = None,
    *,
    alpha_init: float = 8.0,
    last_alpha_init: float = 10.0,
    final_gain: float = 1.0,
    kernel_regularizer=None,
    method: str = "sat",
    sync_batch_norm: bool = False,
) -> tf.keras.Model:
    """Build ResNet-18: 20 convolutions, 17 activations, global average pooling and a head.

    The first convolution, the last activation and the head have 8 bits; all other convolutions,
    the 1x1 shortcuts included, ``weight_bits``; all other activations ``activation_bits``.
    ``weight_bits=32, activation_bits=32`` is the float stage that training starts from (clamped
    weights, ReLU). ``None, None`` is the plain float network.

    Args:
        num_classes: Number of classes.
        input_shape: (height, width, channels) of the images, which are float in [0, 1].
        weight_bits: 1 to 8, 32 or None.
        activation_bits: 1 to 8, 32 or None.
        head: "linear" (cross-entropy), "cosine" (AMSLoss) or "gml" (GMLoss).
        stem: "cifar" (3x3 convolution) or "imagenet" (7x7 with stride 2, then max-pooling).
        width: Channels of the first stage; the next ones have 2, 4 and 8 times as many.
        residual_bits: 2 to 8 rounds both inputs of every residual add, as int8 kernels must; None
            or 32 adds in float.
        alpha_init: Initial range of the hidden activations.
        last_alpha_init: Initial range of the last activation.
        final_gain: Initial batch-norm gain of the last stage's branch ends, 1 as usual. Smaller
            values start the features at the scale of the Gaussian mixture's means.
        kernel_regularizer: Keras regularizer of every convolution and of the head's kernel.
        method: Name in :mod:`dlqat_tf.methods` of what rounds kernels and activations. The head,
            the first convolution of a method without 8 bits, and ``residual_bits`` are SAT's and
            CG-PACT's for all.
        sync_batch_norm: Let batch norms see the batch of all replicas of a ``tf.distribute``
            strategy in training, and not each replica its own part.

    Returns:
        A functional model from images (batch, height, width, channels) to logits
        (batch, num_classes). The layer "features" gives the head's input (batch, 8 * width).

    Raises:
        ValueError: An argument is outside the values above.
    """
    check_settings(weight_bits, activation_bits, head, stem, width, residual_bits, method)
    net = _Builder(
        weight_bits,
        activation_bits,
        residual_bits,
        alpha_init,
        kernel_regularizer,
        methods.get(method),
        sync_batch_norm,
    )

    inputs = tf.keras.Input(input_shape, name="images")
    kernel_size, strides = (3, 1) if stem == "cifar" else (7, 2)
    x = net.convolution(inputs, width, kernel_size, strides, "stem", bits=edge_bits(weight_bits))
    x = net.activation(x, "stem")
    if stem == "imagenet":
        x = tf.keras.layers.MaxPool2D(3, 2, padding="same", name="stem_pool")(x)
    for stage in range(4):
        gain = final_gain if stage == 3 else 1.0
        for block in range(2):
            name = f"stage{stage + 1}_block{block + 1}"
            filters, strides = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            shortcut = x
            x = net.convolution(x, filters, 3, strides, f"{name}_1")
            x = net.activation(x, f"{name}_1")
            x = net.branch_end(net.convolution(x, filters, 3, 1, f"{name}_2", gain=gain), name)
            if strides != 1:
                shortcut = net.convolution(
                    shortcut, filters, 1, strides, f"{name}_shortcut", gain=gain
                )
                shortcut = net.branch_end(shortcut, f"{name}_shortcut")
            x = tf.keras.layers.Add(name=f"{name}_add")([x, shortcut])
            if (stage, block) == (3, 1):
                x = net.activation(x, name, edge_bits(activation_bits), last_alpha_init)
            else:
                x = net.activation(x, name)
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = HEADS[head](
        num_classes,
        edge_bits(weight_bits),
        kernel_regularizer=kernel_regularizer,
        name="head",
    )(x)
    return tf.keras.Model(inputs, logits, name="resnet18")


def check_settings(
    weight_bits: int | None,
    activation_bits: int | None,
    head: str,
    stem: str,
    width: int,
    residual_bits: int | None,
    method: str = "sat",
) -> None:
    """Refuse what :func:`resnet18` cannot build, before there are images to build it for.

    Raises:
        ValueError: An argument is outside the values that :func:`resnet18` names.
    """
    if head not in HEADS:
        raise ValueError(f"Expected head to be one of {', '.join(HEADS)}. Received: head={head!r}.")
    if stem not in STEMS:
        raise ValueError(f"Expected stem to be one of {', '.join(STEMS)}. Received: stem={stem!r}.")
    if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
        raise ValueError(f"Expected width to be a positive integer. Received: width={width!r}.")
    for name, bits, lowest in (
        ("weight_bits", weight_bits, 1),
        ("activation_bits", activation_bits, 1),
        ("residual_bits", residual_bits, 2),
    ):
        try:
            if bits is not None:
                check_bits(bits, lowest=lowest)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    found = methods.get(method)
    if weight_bits is not None:
        try:
            found.weights(weight_bits)
        except ValueError as error:
            raise ValueError(f"weight_bits with method={method!r}: {error}") from None


class _Builder:
    """The three kinds of node that ResNet-18 consists of, with the widths filled in."""

    def __init__(
        self,
        weight_bits,
        activation_bits,
        residual_bits,
        alpha_init,
        regularizer,
        method,
        sync_batch_norm,
    ):
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.residual_bits = residual_bits
        self.alpha_init = alpha_init
        self.regularizer = regularizer
        self.method = method
        self.sync_batch_norm = sync_batch_norm

    def convolution(self, x, filters, size, strides, name, *, bits="hidden", gain=1.0):
        """Apply convolution and batch norm."""
        is_hidden = bits == "hidden"
        bits = self.weight_bits if is_hidden else bits
        settings = dict(
            strides=strides,
            padding="same",
            use_bias=False,
            # Uniform Xavier by fan-out, the start that the SAT authors' code gives to the clamp.
            kernel_initializer=tf.keras.initializers.VarianceScaling(
                scale=1.0, mode="fan_out", distribution="uniform"
            ),
            kernel_regularizer=self.regularizer,
            name=f"{name}_conv",
        )
        if bits is None:
            x = tf.keras.layers.Conv2D(filters, size, **settings)(x)
        else:
            quantizer = (self.method.weights if is_hidden else self.method.end_weights)(bits)
            if is_hidden and bits != 32 and self.method.kernel_constraint is not None:
                settings["kernel_constraint"] = self.method.kernel_constraint()
            x = lq.layers.QuantConv2D(filters, size, kernel_quantizer=quantizer, **settings)(x)
        return tf.keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer=tf.keras.initializers.Constant(gain),
            synchronized=self.sync_batch_norm,
            name=f"{name}_bn",
        )(x)

    def activation(self, x, name, bits="hidden", alpha_init=None):
        """Apply the activation quantizer, or the ReLU that it replaces."""
        bits = self.activation_bits if bits == "hidden" else bits
        if bits is None:
            return tf.keras.layers.ReLU(name=f"{name}_act")(x)
        alpha_init = self.alpha_init if alpha_init is None else alpha_init
        quantizer = self.method.activations(
            bits, alpha_init=alpha_init, regularizer=self.regularizer, name=f"{name}_act"
        )
        return quantizer(x)

    def branch_end(self, x, name):
        """Round an input of a residual add, where asked for."""
        if self.residual_bits is None:
            return x
        return CGPACT(self.residual_bits, self.alpha_init, signed=True, name=f"{name}_residual")(x)
