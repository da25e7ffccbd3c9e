"""ResNet-18 as a functional Keras model with quantized convolutions, in the variants of the tables.

He et al. 2015 (arXiv 1512.03385), with quantizers where the paper's authors put them: every
activation function is one, the one after each residual sum included, so the residual stream itself
is low-bit. Batch norm and biases stay float; no convolution has a bias. Padding is TensorFlow's
"same", which at stride 2 pads the far side first where PyTorch and N2D2 pad both.

With pre-activation blocks (He et al. 2016, arXiv 1603.05027) batch norm and activation stand before
the convolutions instead, and the residual stream is a sum of convolutions. The block that follows
the stem's activation has none of its own, and in the first block of every later stage the shortcut
reads what is activated too.
"""

from __future__ import annotations

import difflib
from numbers import Integral

import larq as lq
import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf._compat import synchronize_by_deviations
from dlqat_tf.heads import CosineHead, GaussianMixtureHead, LinearHead
from dlqat_tf.quantizers import CGPACT
from dlqat_tf.quantizers.base import check_bits

HEADS = {"linear": LinearHead, "cosine": CosineHead, "gml": GaussianMixtureHead}
STEMS = ("cifar", "imagenet")
BLOCKS = ("post", "pre")
SHORTCUTS = ("A", "B")
WIDTHS = {"conv": "weight_bits", "act": "activation_bits"}  # by the last part of a layer's name
EDGE_BITS = 8  # first convolution, last activation and head, whatever the rest has

synchronize_by_deviations()


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
    block: str = "post",
    shortcut: str = "B",
    end_bits: int = EDGE_BITS,
    overrides: dict[str, dict[str, int]] | None = None,
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
        residual_bits: 2 to 8 rounds both inputs of every residual add, and the sums of
            pre-activation blocks, as int8 kernels must; None or 32 adds in float.
        alpha_init: Initial range of the hidden activations.
        last_alpha_init: Initial range of the last activation.
        final_gain: Initial batch-norm gain of the last stage's branch ends, 1 as usual. Smaller
            values start the features at the scale of the Gaussian mixture's means. Branches of
            pre-activation blocks end without batch norm.
        kernel_regularizer: Keras regularizer of every convolution and of the head's kernel.
        method: Name in :mod:`dlqat_tf.methods` of what rounds kernels and activations. The head,
            the first convolution of a method without 8 bits, and ``residual_bits`` are SAT's and
            CG-PACT's for all.
        sync_batch_norm: Let batch norms see the batch of all replicas of a ``tf.distribute``
            strategy in training, and not each replica its own part.
        block: "post" (batch norm and activation after the convolutions) or "pre" (before them).
        shortcut: Where a stage begins, "B" is a 1x1 convolution, "A" takes every other pixel and
            adds channels of zeros.
        end_bits: 8 for the first convolution, the last activation and the head, or 32 for plain
            float ones.
        overrides: By layer name, without patterns, ``{"weight_bits": 4}`` of a convolution,
            ``{"activation_bits": 4}`` of an activation; what :func:`dlqat_tf.choose_bits` returns.

    Returns:
        A functional model from images (batch, height, width, channels) to logits
        (batch, num_classes). The layer "features" gives the head's input (batch, 8 * width).

    Raises:
        ValueError: An argument is outside the values above.
    """
    check_settings(
        *(weight_bits, activation_bits, head, stem, width, residual_bits, method),
        block=block,
        shortcut=shortcut,
        end_bits=end_bits,
        final_gain=final_gain,
    )

    def at_end(bits: int | None) -> int | None:
        return edge_bits(bits) if end_bits == EDGE_BITS else None

    overrides = overrides or {}
    if not isinstance(overrides, dict) or not all(isinstance(e, dict) for e in overrides.values()):
        raise ValueError(
            "Expected overrides to be a dict of dicts by layer name. Received: "
            f"overrides={overrides!r}."
        )
    net = _Builder(
        weight_bits,
        activation_bits,
        residual_bits,
        alpha_init,
        kernel_regularizer,
        methods.get(method),
        sync_batch_norm,
        overrides,
    )
    basic_block = net.post_activation if block == "post" else net.pre_activation

    inputs = tf.keras.Input(input_shape, name="images")
    kernel_size, strides = (3, 1) if stem == "cifar" else (7, 2)
    x = net.convolution(inputs, width, kernel_size, strides, "stem", bits=at_end(weight_bits))
    x = net.activation(net.norm(x, "stem"), "stem")
    if stem == "imagenet":
        x = tf.keras.layers.MaxPool2D(3, 2, padding="same", name="stem_pool")(x)
    last = {"bits": at_end(activation_bits), "alpha_init": last_alpha_init}
    for stage in range(4):
        gain = final_gain if stage == 3 else 1.0
        for number in range(2):
            name = f"stage{stage + 1}_block{number + 1}"
            strides = 2 if stage > 0 and number == 0 else 1
            ending = last if block == "post" and (stage, number) == (3, 1) else {}
            x = basic_block(x, width * 2**stage, strides, name, shortcut, gain, **ending)
    if block == "pre":
        x = net.activation(net.norm(x, "final"), "final", **last)
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = HEADS[head](
        num_classes,
        at_end(weight_bits),
        kernel_regularizer=kernel_regularizer,
        name="head",
    )(x)
    net.check_overrides()
    return tf.keras.Model(inputs, logits, name="resnet18")


def check_settings(
    weight_bits: int | None,
    activation_bits: int | None,
    head: str,
    stem: str,
    width: int,
    residual_bits: int | None,
    method: str = "sat",
    *,
    block: str = "post",
    shortcut: str = "B",
    end_bits: int = EDGE_BITS,
    final_gain: float = 1.0,
) -> None:
    """Refuse what :func:`resnet18` cannot build, before there are images to build it for.

    Raises:
        ValueError: An argument is outside the values that :func:`resnet18` names.
    """
    for name, value, known in (
        ("head", head, tuple(HEADS)),
        ("stem", stem, STEMS),
        ("block", block, BLOCKS),
        ("shortcut", shortcut, SHORTCUTS),
        ("end_bits", end_bits, (EDGE_BITS, 32)),
    ):
        if value not in known:
            shown = ", ".join(map(str, known))
            raise ValueError(f"Expected {name} to be one of {shown}. Received: {name}={value!r}.")
    if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
        raise ValueError(f"Expected width to be a positive integer. Received: width={width!r}.")
    for name, bits, lowest in (
        ("weight_bits", weight_bits, 1),
        ("activation_bits", activation_bits, 1),
        ("residual_bits", residual_bits, 2),
    ):
        if bits is not None:
            check_bits(bits, lowest=lowest, name=name)
    if block == "pre" and final_gain != 1:
        raise ValueError(
            "Expected final_gain=1 with block='pre', whose branches end without batch norm. "
            f"Received: final_gain={final_gain!r}."
        )
    found = methods.get(method)
    if weight_bits is not None:
        found.check(weight_bits)


class _Builder:
    """The kinds of node that ResNet-18 consists of, with the widths filled in."""

    def __init__(
        self,
        weight_bits,
        activation_bits,
        residual_bits,
        alpha_init,
        regularizer,
        method,
        sync_batch_norm,
        overrides,
    ):
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.residual_bits = residual_bits
        self.alpha_init = alpha_init
        self.regularizer = regularizer
        self.method = method
        self.sync_batch_norm = sync_batch_norm
        self.overrides = overrides
        self.layers: list[str] = []  # that have a width

    def post_activation(self, x, filters, strides, name, shortcut, gain, **last):
        """Apply a basic block whose activations follow batch norms and the sum."""
        source = x
        x = self.convolution(x, filters, 3, strides, f"{name}_1")
        x = self.activation(self.norm(x, f"{name}_1"), f"{name}_1")
        x = self.convolution(x, filters, 3, 1, f"{name}_2")
        x = self.rounded(self.norm(x, f"{name}_2", gain), name)
        if strides != 1 and shortcut == "B":
            source = self.convolution(source, filters, 1, strides, f"{name}_shortcut")
            source = self.norm(source, f"{name}_shortcut", gain)
            source = self.rounded(source, f"{name}_shortcut")
        elif strides != 1:
            source = _zero_padded(source, filters, strides, f"{name}_shortcut")
        x = tf.keras.layers.Add(name=f"{name}_add")([x, source])
        return self.activation(x, name, **last)

    def pre_activation(self, x, filters, strides, name, shortcut, gain):
        """Apply a basic block whose activations precede the convolutions."""
        source = x
        if name != "stage1_block1":
            x = self.activation(self.norm(x, f"{name}_pre"), f"{name}_pre")
        if strides != 1:
            source = x
        x = self.convolution(x, filters, 3, strides, f"{name}_1")
        x = self.activation(self.norm(x, f"{name}_1"), f"{name}_1")
        x = self.convolution(x, filters, 3, 1, f"{name}_2", is_normalised=False)
        x = self.rounded(x, name)
        if strides != 1 and shortcut == "B":
            conv = f"{name}_shortcut"
            source = self.convolution(source, filters, 1, strides, conv, is_normalised=False)
            source = self.rounded(source, conv)
        elif strides != 1:
            source = _zero_padded(source, filters, strides, f"{name}_shortcut")
        x = tf.keras.layers.Add(name=f"{name}_add")([x, source])
        return self.rounded(x, f"{name}_sum")

    def convolution(self, x, filters, size, strides, name, *, bits="hidden", is_normalised=True):
        """Apply a convolution; its quantizer knows whether a batch norm follows."""
        is_hidden = bits == "hidden"
        name = f"{name}_conv"
        if tuple(x.shape[1:3]) == (1, 1):
            # The same. Where an image is smaller than the stride, the kernel's gradient in bfloat16
            # reads what is outside of it, on a CPU (TensorFlow 2.21 with oneDNN).
            strides = 1
        bits = self._width(name, "weight_bits", self.weight_bits if is_hidden else bits)
        settings = dict(
            strides=strides,
            padding="same",
            use_bias=False,
            # Uniform Xavier by fan-out, the start that the SAT authors' code gives to the clamp.
            kernel_initializer=tf.keras.initializers.VarianceScaling(
                scale=1.0, mode="fan_out", distribution="uniform"
            ),
            kernel_regularizer=self.regularizer,
            name=name,
        )
        if bits is None:
            return tf.keras.layers.Conv2D(filters, size, **settings)(x)
        make = self.method.weights if is_hidden else self.method.end_weights
        if not is_normalised and self.method.unnormalised_weights is not None:
            make = self.method.unnormalised_weights
        if is_hidden and bits != 32 and self.method.kernel_constraint is not None:
            settings["kernel_constraint"] = self.method.kernel_constraint()
        return lq.layers.QuantConv2D(filters, size, kernel_quantizer=make(bits), **settings)(x)

    def norm(self, x, name, gain=1.0):
        """Apply batch norm."""
        return tf.keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer=tf.keras.initializers.Constant(gain),
            synchronized=self.sync_batch_norm,
            name=f"{name}_bn",
        )(x)

    def activation(self, x, name, bits="hidden", alpha_init=None):
        """Apply the activation quantizer, or the ReLU that it replaces."""
        name = f"{name}_act"
        bits = self.activation_bits if bits == "hidden" else bits
        bits = self._width(name, "activation_bits", bits)
        if bits is None:
            return tf.keras.layers.ReLU(name=name)(x)
        alpha_init = self.alpha_init if alpha_init is None else alpha_init
        quantizer = self.method.activations(
            bits, alpha_init=alpha_init, regularizer=self.regularizer, name=name
        )
        return quantizer(x)

    def rounded(self, x, name):
        """Round an input of a residual add, or its result, where asked for."""
        if self.residual_bits is None:
            return x
        return CGPACT(self.residual_bits, self.alpha_init, signed=True, name=f"{name}_residual")(x)

    def _width(self, layer, width, bits):
        self.layers.append(layer)
        return self.overrides.get(layer, {}).get(width, bits)

    def check_overrides(self) -> None:
        """Raise for overrides without effect."""
        for layer, rule in self.overrides.items():
            if layer not in self.layers:
                close = difflib.get_close_matches(layer, self.layers, n=3, cutoff=0.4)
                raise ValueError(
                    f"The override {layer!r} fits no convolution and no activation."
                    + (f" Close names: {', '.join(close)}." if close else "")
                )
            known = WIDTHS[layer.rpartition("_")[-1]]
            if set(rule) != {known}:
                raise ValueError(
                    f"Expected the override of {layer!r} to set {known}. Received: {rule!r}."
                )


def _zero_padded(x, filters: int, strides: int, name: str):
    """Take every other pixel, and add channels of zeros behind those that there are."""
    added = filters - x.shape[-1]
    x = tf.keras.layers.MaxPool2D(1, strides, padding="same", name=f"{name}_pool")(x)
    # Keras pads the first two axes.
    x = tf.keras.layers.Permute((1, 3, 2), name=f"{name}_in")(x)
    x = tf.keras.layers.ZeroPadding2D(((0, 0), (0, added)), name=f"{name}_pad")(x)
    return tf.keras.layers.Permute((1, 3, 2), name=f"{name}_out")(x)
