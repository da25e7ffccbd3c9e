"""What is read of wrappers."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import levels
from dlqat_tf.export import ExportError, lower
from tests.tfmot.networks import (
    applied,
    larq_network,
    network,
)

layers = tf.keras.layers


def test_summary_sees_what_wrappers_hold():
    report, twin = map(dlqat_tf.summary, (applied(network(), alpha_init=2.0), larq_network()))
    assert report.notes == twin.notes == []
    assert report.macs == twin.macs
    assert report.bit_operations == twin.bit_operations
    assert report.parameters == twin.parameters
    assert report.trainable_parameters == twin.trainable_parameters
    for mine, other in zip(report.storage, twin.storage, strict=True):
        assert mine.weight_bytes == other.weight_bytes
        assert mine.peak_activation_bytes == other.peak_activation_bytes
        if mine.file_bytes:  # names differ
            assert mine.file_bytes == pytest.approx(other.file_bytes, rel=0.05)
    rows = {row.layer: (row.kind, row.weight_bits, row.output_bits) for row in report.layers}
    assert rows["quant_depthwise"] == ("DepthwiseConv2D", (1,), 2)
    assert rows["quant_second_bn"] == ("BatchNormalization", (), 8)


def test_summary_of_what_others_quantized():
    inputs = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    report = dlqat_tf.summary(tfmot.quantization.keras.quantize_model(model))
    assert "tfmot.Scheme" in report.storage[-1].reason
    assert "not counted" in report.notes[0]


def test_clip_shares_of_what_wrappers_round(tmp_path):
    inputs = tf.keras.Input((2,))
    x = layers.Dense(2, activation="relu", use_bias=False, name="first")(inputs)
    model = applied(tf.keras.Model(inputs, layers.Dense(1, name="last")(x)), 8, 2, alpha_init=3.0)
    first = model.get_layer("quant_first")
    levels.rounded_kernels(model)["quant_first"].kernel.assign([[1.0, 0.0], [0.0, 1.0]])
    values = np.float32([[1.0, 4.0], [5.0, -4.0]])  # 4 and 5 are beyond 3; -4 is rectified
    before, held = model(values), first._output_quantizers
    ranges = levels.activation_ranges(model)
    assert ranges["quant_first"] == pytest.approx((0.0, 3.0))
    assert levels.clip_shares(model, values)["quant_first"] == 0.5
    assert first._output_quantizers is held
    np.testing.assert_array_equal(model(values), before)
    model.save_weights(tmp_path / "weights")  # Keras tracks nothing else than before
    model.load_weights(tmp_path / "weights").assert_consumed()


def test_export_refuses_what_this_package_did_not_quantize():
    inputs = tf.keras.Input((8, 8, 3))
    model = tf.keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    api = tfmot.quantization.keras
    with pytest.raises(ExportError, match=r"'quantize_annotate.*annotated.*quantize_apply"):
        lower(api.quantize_annotate_model(model))
    with pytest.raises(ExportError, match=r"'quantize_layer\w*'.*AllValuesQuantizer.*Scheme"):
        lower(api.quantize_model(model))
    default = api.default_8bit.Default8BitQuantizeRegistry().get_quantize_config(model.layers[1])
    wrapped = api.QuantizeWrapperV2(layers.Conv2D(2, 3, name="odd"), default)
    with pytest.raises(ExportError, match=r"'quant_odd'.*Default8Bit.*Scheme"):
        lower(tf.keras.Model(inputs, wrapped(inputs)))
