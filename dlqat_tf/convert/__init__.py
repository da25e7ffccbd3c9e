"""Bring your own model: a float Keras model in, a DL-QAT model out, weights carried over.

The source is read as a list of calls, nested models flattened. From it follows where codes are
needed, hence where quantizers stand (:mod:`~dlqat_tf.convert.network`); a second walk builds the
new model (:mod:`~dlqat_tf.convert.builder`).
"""

from __future__ import annotations

import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf._progress import progress, say
from dlqat_tf.convert.builder import Builder
from dlqat_tf.convert.ends import kinds_of
from dlqat_tf.convert.images import Data
from dlqat_tf.convert.inputs import check_sizes
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import WIDTHS, Overrides
from dlqat_tf.convert.problems import check_losses
from dlqat_tf.convert.report import Conversion, ConversionError, ConversionReport
from dlqat_tf.convert.reporting import report_of
from dlqat_tf.graph import check_graph
from dlqat_tf.quantizers.base import check_bits

__all__ = ["Conversion", "ConversionError", "ConversionReport", "quantize"]


@progress("quantize")
def quantize(
    model: tf.keras.Model,
    weight_bits: int = 1,
    activation_bits: int = 2,
    head: str | dict[str, str | None] | None = "gml",
    overrides: dict[str, dict[str, int] | str] | None = None,
    residual_bits: int | None = 8,
    *,
    images=None,
    labels=None,
    batch_size: int = 64,
    preprocessing=None,
    method: str = "sat",
) -> tuple[tf.keras.Model, ConversionReport]:
    r"""Turn a float model into a DL-QAT model that starts from its weights.

    Convolutions and dense layers get SAT weights, ReLU and ReLU6 become CG-PACT, or what another
    ``method`` has in their place, and the last dense layer becomes the head that the loss asks for.
    A softmax after it is dropped: losses take logits. Nested models are flattened, a layer that is
    called twice stays one layer. What is frozen (``trainable=False``) stays so, its ranges too, and
    what is called with ``training=False`` keeps its averages.

    Weights are carried over so that the quantized ones, Q, are the nearest up to a factor a per
    output channel, which goes into the batch norm that follows (one is inserted where none does):

    .. math:: L = \operatorname{artanh}\Big(t \frac{W}{\max|W|}\Big), \qquad
        a = \frac{\langle W, Q \rangle}{\langle Q, Q \rangle}, \qquad
        \mu' = \mu / a, \quad \sigma'^2 = \sigma^2 / a^2

    with the maximum per output channel and :math:`t = \tanh \min(\max|W|, 1)` over the tensor; at
    one bit a is that of BWN (Rastegari et al. 2016, arXiv 1603.05279). Methods without the
    tanh clamp start from W itself.

    Int8 kernels need codes wherever they read, so outputs that no ReLU rounds (linear bottlenecks,
    residual branches, sums) get a quantizer of ``residual_bits`` where an add, a pool, a batch norm
    of its own or a weighted layer reads them; signed, unless they cannot be negative. Those that
    a concatenation brings together share one, since it takes codes of one grid. Functions that are
    no ReLU (swish, tanh) get a signed one too; with ``images`` and less than 8 bits, as many codes
    below zero as lose least on these.

    What comes in needs codes too. Pixels / 255 are codes, whether the model gets them so or
    rescales pixels itself. Behind any other arithmetic that prepares an image (Rescaling,
    Normalization, the operators of ``preprocess_input``), and behind inputs that are no images,
    there is an :class:`~dlqat_tf.quantizers.InputQuantizer` of 8 bits. Its range is that of the 256
    values that pixels become, or that of ``images``.

    Args:
        model: Functional or Sequential model; it is not changed.
        weight_bits: 1 to 8 for hidden layers, 32 for clamped float weights. Layers that read an
            input, through layers without kernels too, and the last ones have 8.
        activation_bits: 1 to 8 for hidden activations, 32 for none. What feeds the last layer has
            8.
        head: "linear" (cross-entropy), "cosine" (AMSLoss) or "gml" (GMLoss). None keeps the last
            layer's form, outputs and scale, with 8-bit weights. For several outputs a dict of these
            by output name; those that it leaves out, boxes or features say, are as with None.
        overrides: By layer name or pattern (``fnmatch``): ``"float"`` keeps the layer as it is;
            a dict sets its ``weight_bits``, the ``activation_bits`` of the ReLU that it is or has,
            the ``residual_bits`` of the quantizer after it. Of several that match, later ones win,
            width by width. Nested models match as a whole too.
        residual_bits: 2 to 8, or 32 for quantizers that do not round, or None for none of them.
        images: Training images as the model takes them, a few hundred: an array, or for several
            inputs a list of arrays or a dict by input name; or a batched ``tf.data.Dataset`` of
            images, or of images and labels, whose first 512 images are taken. They set activation
            ranges, the statistics of batch norms, and the head. The outputs of a layer are held for
            all of them at once. Averages of batch norms that are far from what they get on these
            images are replaced by it, as in training, and the report says so.
        labels: Classes of the images, integers (images,). For "gml", which starts from the means of
            their features or from those that the classifier amounts to, whichever explains the
            labels better (the report says which), and "cosine". For several outputs a list of such
            arrays, None for those without, or a dict by output name.
        batch_size: Images that are run at once.
        preprocessing: How the images were prepared outside of the model, where that is not
            pixels / 255: "tf", "caffe" or "torch" as in ``tf.keras.applications``, or a
            :class:`~dlqat_tf.preprocessing.Preprocessing`; "values" for an input that is no image;
            a dict of these by input name. The result remembers it, so that files take pixels.
        method: Name in :mod:`dlqat_tf.methods` of what rounds hidden kernels and ReLUs, and the
            first kernels where it defines their width. Heads, ``residual_bits`` and inputs are the
            same for all. Some methods need callbacks in training, or images before it: the
            report says so.

    Returns:
        The model, not compiled, whose layers have the source's names, and the report. A head
        outputs logits.

    Raises:
        ConversionError: A layer has neither a quantized form nor one in float that files can hold
            (the message names all of them, the reasons and the overrides that train with them
            nevertheless), the model is quantized already, an override fits nothing, or an argument
            is not as above.
        ValueError: A width is out of range, or the method does not define it, or there is no such
            method; the message has close names.
    """
    widths = dict(
        weight_bits=weight_bits, activation_bits=activation_bits, residual_bits=residual_bits
    )
    for name, bits in widths.items():
        if name != "residual_bits" or bits is not None:
            check_bits(bits, lowest=WIDTHS[name], name=name)
    chosen = methods.get(method)
    chosen.check(weight_bits)
    check_graph(model, ConversionError)
    check_losses(model)
    check_sizes(model)
    kinds_of(head, model.output_names)
    data = None if images is None else Data(model, images, labels, batch_size)
    if data is None and labels is not None:
        raise ConversionError("Expected images along with labels. Received: labels only.")
    say("reads the model")
    network = Network(
        model,
        Overrides({} if overrides is None else overrides),
        head,
        widths,
        preprocessing=preprocessing,
        images=None if data is None else data.arrays,
    )
    if data is not None:
        data.check(network)
    say("builds the model and carries weights over")
    builder = Builder(model, network, chosen)
    builder.carry_weights()
    measured = None if data is None else builder.measure(data)
    for call, end in network.heads.items():
        builder.fill_head(call, measured, None if data is None else data.labels[end.output])
    return builder.model, report_of(type(model), network, chosen, builder.made, data, measured)
