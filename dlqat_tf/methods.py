"""The registry of methods: which quantizers, callbacks and training a name stands for.

Everything that takes a ``method`` reads it here. A method of one's own is a file with its
quantizers and one call of :func:`register`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from dlqat_command.recipe import Recipe
from dlqat_tf.quantizers import (
    CGPACT,
    PACT,
    ABCNetActivations,
    ABCNetWeights,
    ActivationQuantizer,
    BWNWeights,
    CentredAndClamped,
    DoReFaActivations,
    DoReFaWeights,
    DSQActivations,
    DSQWeights,
    HAWQActivations,
    HAWQWeights,
    INQWeights,
    IRNetWeights,
    LQNetActivations,
    LQNetWeights,
    LSQActivations,
    LSQWeights,
    QuantizationNetworksWeights,
    QuantizerProgress,
    SATWeights,
    SYQWeights,
    WeightQuantizer,
    bwnh,
)


@dataclass(frozen=True)
class Row:
    """A row of the DL-QAT paper's tables: ResNet-18 on ImageNet.

    Attributes:
        table: 2 (low-bit weights) or 3 (binary weights).
        weight_bits: Bits of the hidden weights.
        activation_bits: Bits of the hidden activations; 32 is float.
        accuracy: Top-1 in percent, as the table has it.
    """

    table: int
    weight_bits: int
    activation_bits: int
    accuracy: float


def _cg_pact(bits: int, *, alpha_init: float, regularizer, name: str) -> ActivationQuantizer:
    return CGPACT(bits, alpha_init, name=name)


def _or_cg_pact(quantizer, others: tuple[int, ...]) -> Callable[..., ActivationQuantizer]:
    """Make a method's own quantizer, or CG-PACT of other bits, as the last layer reads."""

    def make(bits: int, *, name: str, **rest) -> ActivationQuantizer:
        return _cg_pact(bits, name=name, **rest) if bits in others else quantizer(bits, name=name)

    return make


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
        name: What ``method=`` and ``--method`` take.
        source: Paper, with the equations in the docstrings of the quantizers.
        weights: Makes the quantizer of a hidden kernel from its bits, 32 included; raises a
            ``ValueError`` that names the widths for one that the method does not define.
        activations: Makes the quantizer in place of a hidden ReLU from its bits and the keywords
            ``alpha_init`` (where a trained range starts), ``regularizer`` (that of the kernels) and
            ``name``. CG-PACT where the method's paper leaves activations in float.
        end_weights: As ``weights``, for the first convolution of 8 bits; SAT's where the method
            defines no 8 bits.
        unnormalised_weights: As ``weights``, for a kernel that no batch norm follows; None where
            ``weights`` keep the scale of the kernel.
        kernel_constraint: Makes the Keras constraint of a hidden kernel that is rounded, or None.
        callbacks: Makes what training needs from its epochs and its steps an epoch; None where
            ``fit`` knows them.
        prepare: Changes a network that has the weights of its float twin, given it and images,
            before it is trained on.
        network: The ResNet-18 of the paper's rows in words, as the tables' footnotes name it; ""
            where they do not.
        recipe: The settings of :class:`dlqat_tf.training.Recipe`, of network and training, that its
            paper or its authors' code gives, where known.
        rows: The DL-QAT paper's rows of it.
    """

    name: str
    source: str
    weights: Callable[[int], WeightQuantizer]
    activations: Callable[..., ActivationQuantizer] = _cg_pact
    end_weights: Callable[[int], WeightQuantizer] = SATWeights
    unnormalised_weights: Callable[[int], WeightQuantizer] | None = None
    kernel_constraint: Callable[[], tf.keras.constraints.Constraint] | None = None
    callbacks: Callable[..., list] = lambda epochs, steps=None: []
    prepare: Callable[[tf.keras.Model, np.ndarray], object] | None = None
    network: str = ""
    recipe: dict = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def check(self, weight_bits: int) -> None:
        """Refuse a width of hidden weights that the method does not define.

        Raises:
            ValueError: The method does not define it; the message names those that it does.
        """
        try:
            self.weights(weight_bits)
        except ValueError as error:
            raise ValueError(f"weight_bits with method={self.name!r}: {error}") from None

    @property
    def lowest_bits(self) -> int:
        """The lowest width of hidden weights that the method defines."""
        for bits in range(1, 9):
            with contextlib.suppress(ValueError):
                self.check(bits)
                return bits
        raise ValueError(f"method={self.name!r} defines no width from 1 to 8 bits.")


def clamps(quantizer: WeightQuantizer) -> bool:
    """Return whether kernels pass a tanh clamp, which loses their scale."""
    quantizer = quantizer.of_channels_last
    # DoReFa's binary and float ones have the scale of the kernel.
    return isinstance(quantizer, SATWeights) or (
        isinstance(quantizer, DoReFaWeights) and 1 < quantizer.bits < 32
    )


_methods: dict[str, Method] = {}
_SETTINGS = {field.name for field in dataclasses.fields(Recipe)}


def register(method: Method) -> None:
    """Add a method.

    Raises:
        ValueError: There is one of that name; it is no :class:`Method`; its name is not of letters,
            digits and ``_``, as the names of a comparison's cells have it; or its recipe has
            settings that there are not.
    """
    if not isinstance(method, Method):
        raise ValueError(
            f"Expected a Method. Received: {method!r}: give Method(name, source, weights)."
        )
    if not (isinstance(method.name, str) and re.fullmatch(r"\w+", method.name)):
        raise ValueError(
            "Expected a name of letters, digits and _, which names files too. Received: "
            f"{method.name!r}: choose another."
        )
    if unknown := [name for name in method.recipe if name not in _SETTINGS]:
        raise ValueError(
            f"Expected a recipe of settings of dlqat_tf.training.Recipe. Received: "
            f"{', '.join(map(repr, unknown))}: correct the recipe of {method.name!r}."
        )
    if method.name in _methods:
        raise ValueError(f"Expected a new name. Received: {method.name!r}, which is registered.")
    _methods[method.name] = method


def names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(_methods)


def get(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: There is none; the message has close names.
    """
    if isinstance(name, str) and name in _methods:
        return _methods[name]
    close = difflib.get_close_matches(str(name).lower(), _methods, n=3, cutoff=0.4)
    raise ValueError(
        f"Expected method to be one of {', '.join(_methods)}. Received: method={name!r}."
        + (
            f" Did you mean {' or '.join(close)}?"
            if close
            else " One of your own is there once its module is imported (--import MODULE)."
        )
    )


for _method in (
    Method(
        "sat",
        "Jin et al., BMVC 2020 (arXiv 1912.10207)",
        SATWeights,
        unnormalised_weights=lambda bits: SATWeights(bits, scale_adjust=True),
        network="original (post-activation) ResNet-18",
        rows=(
            Row(2, 4, 4, 70.0),
            Row(2, 2, 8, 67.4),
            Row(2, 2, 2, 63.1),
            Row(3, 1, 8, 67.5),
            Row(3, 1, 4, 66.9),
            Row(3, 1, 2, 63.1),
        ),
    ),
    Method(
        "dorefa",
        "Zhou et al. 2016 (arXiv 1606.06160)",
        DoReFaWeights,
        lambda bits, *, name, **_: DoReFaActivations(bits, name=name),
        DoReFaWeights,
        recipe={"end_bits": 32},
    ),
    Method(
        "pact",
        "Choi et al. 2018 (arXiv 1805.06085), with DoReFa's weights",
        DoReFaWeights,
        lambda bits, *, alpha_init, regularizer, name: PACT(
            bits, alpha_init, alpha_regularizer=regularizer, name=name
        ),
        DoReFaWeights,
        network="full pre-activation ResNet-18",
        recipe={"block": "pre", "end_bits": 32, "final_gain": 1.0},
        rows=(Row(3, 1, 2, 62.9),),
    ),
    Method(
        "lsq",
        "Esser et al., ICLR 2020 (arXiv 1902.08153)",
        LSQWeights,
        lambda bits, *, name, **_: LSQActivations(bits, name=name),
        LSQWeights,
        network="full pre-activation ResNet-18, residual connections in float",
        recipe={
            "block": "pre",
            "residual_bits": None,
            "final_gain": 1.0,
            "stages": 2,
            "epochs": 90,
            "quantized_learning_rate": 0.01,
            "momentum": 0.9,
            "weight_decay": 1e-4,
        },
        rows=(Row(2, 4, 4, 71.1), Row(2, 2, 2, 67.6)),
    ),
    Method(
        "bwn",
        "Rastegari et al., ECCV 2016 (arXiv 1603.05279)",
        BWNWeights,
        kernel_constraint=CentredAndClamped,
        network="ResNet-18 with type-B shortcuts",
        recipe={"shortcut": "B", "end_bits": 32},
        rows=(Row(3, 1, 32, 60.8),),
    ),
    Method(
        "irnet",
        "Qin et al., CVPR 2020 (arXiv 1909.10788)",
        IRNetWeights,
        callbacks=lambda epochs, steps=None: [QuantizerProgress(epochs, steps)],
        recipe={  # of its code for CIFAR, the ends of that for ImageNet
            "end_bits": 32,
            "stages": 1,
            "epochs": 400,
            "batch_size": 128,
            "learning_rate": 0.1,
            "reference_batch": 128,
            "weight_decay": 1e-4,
        },
        rows=(Row(3, 1, 32, 66.5),),
    ),
    Method(
        "inq",
        "Zhou et al., ICLR 2017 (arXiv 1702.03044)",
        INQWeights,
        callbacks=lambda epochs, steps=None: [QuantizerProgress(epochs, steps)],
        recipe={"stages": 2},
        rows=(Row(2, 2, 32, 66.0),),
    ),
    Method(
        "hawq",
        "Yao et al., HAWQ-V3, ICML 2021 (arXiv 2011.10680)",
        HAWQWeights,
        lambda bits, *, name, **_: HAWQActivations(bits, name=name),
        HAWQWeights,
        rows=(Row(2, 4, 4, 68.5),),
    ),
    Method(
        "syq",
        "Faraone et al., CVPR 2018 (arXiv 1807.00301)",
        SYQWeights,
        recipe={"stages": 2},
        rows=(Row(3, 1, 8, 62.9),),
    ),
    Method(
        "lqnet",
        "Zhang et al., LQ-Nets, ECCV 2018 (arXiv 1807.10029)",
        LQNetWeights,
        _or_cg_pact(LQNetActivations, (5, 6, 7, 8)),
        network="full pre-activation ResNet-18 with type-A shortcuts, ends in float",
        recipe={  # training as in its code, which steps the learning rate down instead
            "block": "pre",
            "shortcut": "A",
            "end_bits": 32,
            "final_gain": 1.0,
            "stages": 1,
            "epochs": 110,
            "batch_size": 256,
            "learning_rate": 0.1,
            "reference_batch": 256,
            "weight_decay": 5e-5,
        },
        rows=(Row(3, 1, 2, 62.6),),
    ),
    Method(
        "abcnet",
        "Lin et al., ABC-Net, NeurIPS 2017 (arXiv 1711.11294)",
        ABCNetWeights,
        _or_cg_pact(ABCNetActivations, (6, 7, 8)),
        rows=(Row(2, 2, 32, 63.7), Row(3, 1, 32, 62.8)),
    ),
    Method(
        "dsq",
        "Gong et al., ICCV 2019 (arXiv 1908.05033)",
        DSQWeights,
        lambda bits, *, name, **_: DSQActivations(bits, name=name),
        DSQWeights,
        rows=(Row(3, 1, 32, 63.7),),
    ),
    Method(
        "quantization_networks",
        "Yang et al., CVPR 2019 (arXiv 1911.09464)",
        QuantizationNetworksWeights,
        callbacks=lambda epochs, steps=None: [QuantizerProgress(epochs, steps)],
        recipe={  # of its code, which steps the learning rate down instead
            "end_bits": 32,
            "stages": 2,
            "epochs": 35,
            "batch_size": 256,
            "reference_batch": 256,
            "quantized_learning_rate": 0.001,
            "weight_decay": 1e-4,
        },
        rows=(Row(3, 1, 32, 66.5),),
    ),
    Method(
        "bwnh",
        "Hu et al., AAAI 2018 (arXiv 1802.02733), then BWN's training",
        BWNWeights,
        kernel_constraint=CentredAndClamped,
        prepare=bwnh,
        recipe={"stages": 2},
        rows=(Row(3, 1, 32, 64.3),),
    ),
):
    register(_method)
