import larq as lq
import tensorflow as tf

from dlqat_tf import SATWeights
from dlqat_tf.quantizers import unwrapped


def test_larq_layers_hold_their_own_quantizers():
    dense = lq.layers.QuantDense(2, kernel_quantizer=SATWeights(1))
    dense(tf.zeros((1, 3)))
    parts = unwrapped(dense)
    assert parts.layer is dense
    assert parts.kernel.shape == (3, 2)
    assert parts.kernel_quantizer is dense.kernel_quantizer
    assert parts.output_quantizer is None

    depthwise = lq.layers.QuantDepthwiseConv2D(1, depthwise_quantizer=SATWeights(2))
    depthwise(tf.zeros((1, 4, 4, 3)))
    parts = unwrapped(depthwise)
    assert parts.kernel.shape == (1, 1, 3, 1)
    assert parts.kernel_quantizer is depthwise.depthwise_quantizer


def test_layers_without_a_kernel():
    parts = unwrapped(tf.keras.layers.ReLU())
    assert (parts.kernel, parts.kernel_quantizer, parts.output_quantizer) == (None, None, None)
