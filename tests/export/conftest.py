import dlqat_tf  # noqa: F401, I001  (first: it decides which Keras larq gets)
import larq as lq
import larq_compute_engine as lce
import pytest
import tensorflow as tf


@pytest.fixture(scope="session")
def stock_file(tmp_path_factory):
    """One float convolution on stock kernels."""
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((8, 8, 3)), tf.keras.layers.Conv2D(4, 3, bias_initializer="ones")]
    )
    path = tmp_path_factory.mktemp("stock") / "stock.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


@pytest.fixture(scope="session")
def lce_file(tmp_path_factory):
    """One binarized convolution: LceQuantize and LceBconv2d."""
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((8, 8, 32), batch_size=1),
            lq.layers.QuantConv2D(
                32,
                3,
                padding="same",
                pad_values=1.0,
                input_quantizer="ste_sign",
                kernel_quantizer="ste_sign",
                use_bias=False,
            ),
        ]
    )
    path = tmp_path_factory.mktemp("lce") / "lce.tflite"
    path.write_bytes(lce.convert_keras_model(model))
    return path
