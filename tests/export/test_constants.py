from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

import dlqat_tf
from dlqat_tf.export import constants, to_tflite
from dlqat_tf.export.constants import plan_of
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.record import read_record
from dlqat_tf.export.integer.grids import grids
from dlqat_tf.export.integer.integers import integers, target_of
from dlqat_tf.export.integer.lower import lower
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Activation
from dlqat_tf.export.integer.plan import plan
from tests.export.networks import convolution, randomize, small_network


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    model = small_network()
    to_tflite(model, path, snap=False)
    return lower(model), path


def planned(exported, factor):
    """Return what a layer computes with once the first scale of its weights is another.

    Also that scale in the file, and the file's other constants.
    """
    network, path = exported
    content = flatbuffer.read(path)
    tensors = {tensor.name.decode(): tensor for tensor in content.subgraphs[0].tensors}
    scale = tensors["second/weights"].quantization.scale = np.array(
        tensors["second/weights"].quantization.scale, np.float32
    )
    scale[0] *= np.float32(factor)
    plan, others = plan_of(content, read_record(content, path), network, path)
    node = plan["second"]
    target = target_of(node, plan.consumers()).grid
    return integers(node, grids(plan)[node.inputs[0]], target), scale, others


@pytest.mark.parametrize("ulps", [-3, -1, 0, 1, 2])
def test_scales_are_those_of_the_file_to_the_last_place(exported, ulps):
    before, *_ = planned(exported, 1)
    numbers, scale, others = planned(exported, 1 + ulps * 2.0**-23)
    np.testing.assert_array_equal(numbers.scale, scale)
    np.testing.assert_array_equal(numbers.bias, before.bias)
    np.testing.assert_array_equal(numbers.codes, before.codes)
    assert others == []


@pytest.mark.parametrize(("scale", "channels"), [(None, 0), ([0.5], 1), ([0.5, 0.25], 2)])
def test_scales_are_one_for_each_channel_be_it_a_single_one(scale, channels):
    tensor = schema.TensorT()
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scale if scale is None else np.array(scale, np.float32)
    found = constants._scale_of(tensor)
    assert found.shape == (channels,)
    assert list(found) == (scale or [])


def test_the_scale_of_another_model_is_not_taken(exported):
    before, *_ = planned(exported, 1)
    numbers, scale, others = planned(exported, 1.001)
    assert numbers.scale[0] == before.scale[0] != scale[0]
    assert others == ["second/weights"]


@pytest.mark.parametrize(
    ("factor", "taken"), [(1 + 2.0**-23, True), (1 - 4e-6, True), (1.001, False)]
)
def test_steps_are_those_of_the_file_where_they_moved_by_little(exported, factor, taken):
    network, path = exported
    content = flatbuffer.read(path)
    name = next(node.name for node in network if isinstance(node, Activation))
    (tensor,) = (each for each in content.subgraphs[0].tensors if each.name == name.encode())
    held = np.float32(tensor.quantization.scale[0] * factor)
    tensor.quantization.scale = np.array([held], np.float32)
    found, others = plan_of(content, read_record(content, path), network, path)
    assert (found[name].grid.step == held) == taken
    assert others == ([] if taken else [name])


def test_biases_may_be_as_trained_in_one_layer_and_moved_in_another(tmp_path):
    """A snapped model has moved biases, but for those that no Keras layer has, as of resizing."""
    path, layers = tmp_path / "model.tflite", tf.keras.layers
    inputs = tf.keras.Input((5, 4, 3))
    x = dlqat_tf.CGPACT(8, 2.0)(convolution(inputs, 8, 3, weight_bits=8, name="first"))
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up")(x)
    x = dlqat_tf.CGPACT(8, 2.0)(x)  # on the grid before: means of four codes are ties
    x = layers.GlobalAveragePooling2D()(x)
    model = randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(3)(x)))
    to_tflite(model, path, snap=True)
    network = lower(model)
    moved, trained = plan(network), plan(network, clear=False)
    assert np.any(moved["up"].bias != trained["up"].bias)

    def numbers(planned, name):
        node, readers = planned[name], planned.consumers()
        return integers(node, grids(planned)[node.inputs[0]], target_of(node, readers).grid)

    content = flatbuffer.read(path)
    tensors = {each.name: each for each in content.subgraphs[0].tensors}
    weights, bias = tensors[b"first/weights"], tensors[b"first/bias"]
    held = numbers(trained, "first").bias
    assert np.any(held != numbers(moved, "first").bias)
    content.buffers[bias.buffer].data = np.int32(held).view(np.uint8)
    scale = numbers(trained, "first").scale
    bias.quantization.scale = bias.quantization.scale / weights.quantization.scale * scale
    weights.quantization.scale = scale
    found, others = plan_of(content, read_record(content, path), network, path)
    assert others == []
    np.testing.assert_array_equal(numbers(found, "first").bias, held)
    np.testing.assert_array_equal(numbers(found, "up").bias, numbers(moved, "up").bias)


@pytest.mark.parametrize("factor", [1, 1 + 2.0**-23, 1.0001])
def test_a_gain_that_would_move_again_is_not_that_of_the_file(exported, factor):
    """Its bias may be the same to the unit: of a snapped model only one of two plans has both."""
    network, path = exported
    content = flatbuffer.read(path)
    held = plan(network, clear=False)
    gains = np.ones_like(held["second"].step)
    gains[0] = factor
    node = replace(held["second"], step=held["second"].step * gains)
    node = replace(node, bias=node.bias * gains)  # the same number of units
    moved = IntegerNetwork(tuple(node if each.name == "second" else each for each in held))
    found = constants._with_biases(content, read_record(content, path), moved, held)
    assert (found["second"] is held["second"]) == (factor == 1.0001)
    assert found["first"] is held["first"]
