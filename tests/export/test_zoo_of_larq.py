"""A network of Larq's zoo, if that is installed."""

import pytest
import tensorflow as tf

from dlqat_tf.export import parity, to_lce
from tests.export.networks import images_for, randomize

sota = pytest.importorskip(
    "larq_zoo.sota",
    reason="larq-zoo is not installed: pip install --no-deps larq-zoo==2.4.0 zookeeper==1.4.0 "
    "(it asks for an older protobuf than TensorFlow takes, so it is no extra)",
)


def test_the_simulation_equals_the_file(tmp_path):
    model = sota.QuickNetSmall(input_shape=(32, 32, 3), weights=None, num_classes=5)
    report = to_lce(randomize(model), tmp_path / "quicknet.tflite")
    assert report.census.operators["LceBconv2d"] > 0
    snapped = tf.keras.models.load_model(report.snapped)
    found = parity(snapped, report.path, images_for(model, 8))
    assert found.first_diverging is None
    assert found.agreement["simulation_file"] == 100.0
