"""Configurations of one layer, and what they refuse."""

import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf.tfmot import QuantizeConfig, Scheme
from tests.tfmot.networks import (
    widths,
)

layers = tf.keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_layer


def settings(quantizer):
    """The settings of the quantizer behind TF-MOT's interface."""
    return quantizer.get_config()["quantizer"]["config"]


@pytest.mark.parametrize(
    ("options", "scale_adjust", "outputs"),
    [
        ({"scale_adjust": True}, True, []),
        ({"residual_bits": 5}, False, [{"bits": 5, "alpha_init": 8.0, "signed": True}]),
        ({}, False, []),
    ],
)
def test_configuration_of_a_linear_layer(options, scale_adjust, outputs):
    layer = layers.Dense(2)
    layer.build((None, 3))
    config = QuantizeConfig.from_config(QuantizeConfig(3, **options).get_config())
    ((kernel, quantizer),) = config.get_weights_and_quantizers(layer)
    assert kernel is layer.kernel
    expected = {"bits": 3, "scale_adjust": scale_adjust, "keep_scale": False}
    assert settings(quantizer).items() >= expected.items()
    found = [settings(each) for each in config.get_output_quantizers(layer)]
    assert len(found) == len(outputs)
    for each, wanted in zip(found, outputs, strict=True):
        assert each.items() >= wanted.items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizeConfig(weight_bits=0), "bits=0"),
        (lambda: QuantizeConfig(activation_bits=16), "bits=16"),
        (lambda: QuantizeConfig(residual_bits=1), "bits=1"),
        (lambda: QuantizeConfig(scale_adjust=1), "scale_adjust"),
        (lambda: QuantizeConfig(alpha_init=0.0), "alpha_init"),
        (lambda: Scheme(weight_bits=0), "bits=0"),
        (lambda: Scheme(residual_bits=1), "bits=1"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@tf.keras.utils.register_keras_serializable("tests")
class Inverse(layers.Layer):
    """What TFLite has no operation for."""

    def call(self, x):
        return tf.linalg.inv(x[..., 0])


@pytest.mark.parametrize(
    ("layer", "config", "message"),
    [
        (layers.LeakyReLU(name="odd"), None, r"'odd' \(LeakyReLU\).*Expected Conv2D"),
        (layers.Activation("swish", name="odd"), None, "'odd'.*'swish'"),
        (layers.Conv2D(2, 1, activation="tanh", name="odd"), None, "'odd'.*'tanh'"),
        (
            Inverse(name="odd"),
            None,
            "'odd'.*nor has TFLite: TFLite has no operation MatrixInverse",
        ),
        (layers.ReLU(negative_slope=0.1, name="odd"), None, "'odd'.*no ReLU"),
        (layers.MaxPool2D(name="odd"), QuantizeConfig(), "'odd'.*no method"),
        (layers.BatchNormalization(name="odd"), QuantizeConfig(), "'odd'.*no method"),
        (layers.Activation("linear", name="odd"), QuantizeConfig(), "'odd'.*'linear'"),
    ],
)
def test_layers_that_cannot_be_quantized_are_named(layer, config, message):
    inputs = tf.keras.Input((8, 8, 3))
    annotated = tf.keras.Model(inputs, annotate(layer, config)(inputs))
    with pytest.raises(ValueError, match=message):
        tfmot.quantization.keras.quantize_apply(annotated, Scheme())


def test_configurations_go_before_the_scheme_and_feeders_are_rounded():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="first")(inputs)  # not annotated
    x = layers.ReLU(6.0, name="feeder")(layers.Conv2D(4, 3, name="second")(x))
    config = QuantizeConfig(3, 4, alpha_init=2.5)
    x = annotate(layers.Conv2D(4, 3, activation="relu", name="third"), config)(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = annotate(layers.Dense(3, name="last"))(x)
    annotated = tf.keras.Model(inputs, x)
    model = tfmot.quantization.keras.quantize_apply(annotated, Scheme(1, 2))
    expected = {"first": 32, "second": 32, "feeder_output": 2, "third": 3, "last": 8}
    assert widths(model) == {**expected, "third_output": 4}
    alphas = {v.name: float(v) for v in model.trainable_variables if "alpha" in v.name}
    assert alphas == {"quant_feeder/output_alpha:0": 8.0, "quant_third/output_alpha:0": 2.5}


def test_a_method_and_a_width_that_do_not_go_together():
    with pytest.raises(ValueError, match="weight_bits with method='bwn': BWN defines 1 bit"):
        Scheme(4, 4, method="bwn")
    with pytest.raises(ValueError, match=r"Received: method='lsp'\. Did you mean lsq"):
        QuantizeConfig(2, 2, method="lsp")
