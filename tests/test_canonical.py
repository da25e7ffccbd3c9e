"""What is read as standard layers computes the same; what is not the same, is not."""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf._compat import convnext_layers
from dlqat_tf.canonical import StandardLayers, function_of, is_plain_transposed

layers = tf.keras.layers


def last_call(function, *shapes):
    """Return the Keras node of the last call, with weights that are not zero, and its inputs."""
    inputs = [tf.keras.Input(shape) for shape in shapes]
    node = function(*inputs).node
    generator = np.random.default_rng(0)
    node.layer.set_weights([generator.normal(size=w.shape) for w in node.layer.get_weights()])
    return node, [generator.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]


def check(function, *shapes, kinds, in_rows=False):
    node, values = last_call(function, *shapes)
    part = StandardLayers().of(node, in_rows)
    used = [type(each).__name__ for each in part.layers if type(each) is not layers.InputLayer]
    assert used == kinds
    same = tf.keras.Model(node.keras_inputs, node.outputs)
    np.testing.assert_allclose(part(values), same(values), rtol=1e-5, atol=1e-5)
    return part


IMAGE, OTHER = (4, 6, 3), (4, 6, 3)
OPERATORS = {
    "add": (lambda x, y: x + y, ["Add"]),
    "math.add": (tf.add, ["Add"]),
    "subtract": (lambda x, y: x - y, ["Subtract"]),
    "multiply": (lambda x, y: x * y, ["Multiply"]),
    "maximum": (tf.maximum, ["Maximum"]),
    "minimum": (tf.minimum, ["Minimum"]),
    "concat": (lambda x, y: tf.concat([x, y], 2), ["Concatenate"]),
}
ON_ONE = {
    "relu": (tf.nn.relu, ["ReLU"]),
    "relu6": (lambda x: tf.nn.relu6(4 * x), ["ReLU"]),
    "clip": (lambda x: tf.clip_by_value(x, 0, 1), ["ReLU"]),
    "leaky": (tf.nn.leaky_relu, ["LeakyReLU"]),
    "leaky 0.3": (lambda x: tf.nn.leaky_relu(x, 0.3), ["LeakyReLU"]),
    "gelu": (tf.nn.gelu, ["Activation"]),
    "swish": (tf.nn.swish, ["Activation"]),
    "sigmoid": (tf.sigmoid, ["Activation"]),
    "tanh": (tf.tanh, ["Activation"]),
    "elu": (tf.nn.elu, ["Activation"]),
    "selu": (tf.nn.selu, ["Activation"]),
    "softplus": (tf.nn.softplus, ["Activation"]),
    "softmax": (lambda x: tf.nn.softmax(x, 1), ["Softmax"]),
    "mean": (lambda x: tf.reduce_mean(x, [1, 2]), ["GlobalAveragePooling2D"]),
    "mean kept": (lambda x: tf.reduce_mean(x, (-2, 1), True), ["GlobalAveragePooling2D"]),
    "max": (lambda x: tf.reduce_max(x, [1, 2]), ["GlobalMaxPooling2D"]),
    "reshape": (lambda x: tf.reshape(x, [-1, 8, 9]), ["Reshape"]),
    "squeeze": (lambda x: tf.squeeze(tf.keras.layers.Cropping2D(((1, 2), 0))(x), 1), ["Reshape"]),
    "expand": (lambda x: tf.expand_dims(x, 1), ["Reshape"]),
    "transpose": (lambda x: tf.transpose(x, [0, 3, 1, 2]), ["Permute"]),
    "pad": (lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 0]]), ["ZeroPadding2D"]),
    "resize": (lambda x: tf.image.resize(x, (8, 12)), ["UpSampling2D"]),
    "identity": (tf.identity, ["Activation"]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_two_tensors(name):
    function, kinds = OPERATORS[name]
    part = check(function, IMAGE, OTHER, kinds=kinds)
    assert part.layers[-1].name.startswith("tf.")  # as Keras calls it


@pytest.mark.parametrize("name", ON_ONE)
def test_operators_on_one_tensor(name):
    function, kinds = ON_ONE[name]
    node, values = last_call(function, IMAGE)
    part = StandardLayers().of(node)
    assert [type(each).__name__ for each in part.layers[1:]] == kinds
    (before,) = node.keras_inputs
    outer = tf.keras.Model(before.node.keras_inputs or before, [before, node.outputs])
    given, expected = outer(values if before.node.is_input else values[0])
    np.testing.assert_allclose(part(given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1.0,
        lambda x: 2.0 * x,
        lambda x: tf.clip_by_value(x, -1, 1),
        lambda x: tf.nn.gelu(x, approximate=True),
        lambda x: tf.reduce_mean(x, [1]),
        lambda x: tf.reduce_mean(x),
        lambda x: tf.reshape(x, [-1, 6]),  # rows of one image become images
        lambda x: tf.transpose(x, [1, 0, 2, 3]),
        lambda x: tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, 1]]),
        lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1),
        lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"),
        lambda x: tf.cast(x, tf.int32),
        lambda x: tf.split(x, 2, 0)[0],
        lambda x: x[:, ::-1],
        lambda x: x[1:],
        lambda x: tf.image.resize(x, (8, 12), "bicubic"),
        lambda x: tf.image.resize(x, (8, 12), antialias=True),
        lambda x: tf.image.resize(x, (6, 12), "nearest"),
        layers.Conv2D(2, 1),
    ],
)
def test_what_has_no_standard_layer_is_left(function):
    node, _ = last_call(function, IMAGE)
    assert StandardLayers().of(node) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.nn.depth_to_space(x, 2),
        lambda x: tf.nn.space_to_depth(x, 2),
        lambda x: tf.reshape(x, [-1, 4, 6, 4]),
        lambda x: tf.squeeze(layers.Reshape((1, -1, 2))(x), 2),
        lambda x: tf.expand_dims(x, 1),
        lambda x: x[:, 1:],
        lambda x: tf.split(x, 2, 3)[0],
        lambda x: tf.image.resize(x, (8, 12)),
        lambda x: tf.reduce_mean(x, [1]),
    ],
)
def test_operators_on_free_sizes_are_left(function):
    assert StandardLayers().of(function(tf.keras.Input((None, None, 4))).node) is None


def test_the_first_axis_is_that_of_the_images():
    assert StandardLayers().of(tf.expand_dims(tf.keras.Input((4,)), 0).node) is None


FREE = {
    "squeeze": (lambda x: tf.squeeze(x, 2), (None, 1, 3), ["Reshape"]),
    "expand": (lambda x: tf.expand_dims(x, 1), (None, 3), ["Reshape"]),
    "mean": (lambda x: tf.reduce_mean(x, [1, 2]), (None, None, 3), ["GlobalAveragePooling2D"]),
    "transpose": (lambda x: tf.transpose(x, [0, 2, 1, 3]), (None, None, 3), ["Permute"]),
    "concat": (lambda x: tf.concat([x, x], 3), (None, None, 3), ["Concatenate"]),
    "convolution": (layers.Conv1D(2, 3), (None, 3), ["Reshape", "Conv2D", "Reshape"]),
    "whole pool": (
        layers.GlobalAveragePooling1D(),
        (None, 3),
        ["Reshape", "GlobalAveragePooling2D"],
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_free_sizes_that_standard_layers_find_out(name):
    function, shape, kinds = FREE[name]
    inputs = tf.keras.Input(shape)
    node = function(inputs).node
    part = StandardLayers().of(node)
    assert [type(each).__name__ for each in part.layers if each not in part._input_layers] == kinds
    x = np.random.default_rng(0).normal(size=(2, *(5 if s is None else s for s in shape)))
    values = [x] * len(part.inputs)
    expected = tf.keras.Model(inputs, node.outputs)(x)
    np.testing.assert_allclose(part(values), expected, rtol=1e-5, atol=1e-5)


def test_layers_of_convnext_are_such_as_keras_loads(tmp_path):
    scale, depth = convnext_layers()
    part = check(scale(0.5, 3), IMAGE, kinds=["LayerScale"])
    part.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(1).normal(size=(2, *IMAGE)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), part(x))
    assert loaded.layers[-1].init_values == 0.5
    part = check(depth(0.75), IMAGE, kinds=["Dropout"])
    dropped = part(np.ones((64, *IMAGE), np.float32), training=True).numpy().reshape(64, -1)
    assert set(np.unique(dropped)) == {0.0, 4.0}  # 1 / (1 - rate) keeps the mean
    assert (dropped == dropped[:, :1]).all()  # all values of an image, or none
    assert 4 <= (dropped[:, 0] > 0).sum() <= 32


SLICES = {
    "channels": (lambda x: x[..., 1:], ["Reshape", "Cropping2D", "Reshape"]),
    "rows": (lambda x: x[:, 1:-1, 2:], ["Cropping2D", "Reshape"]),
    "rows and channels": (lambda x: x[:, :2, :, :1], ["Reshape", "Cropping2D"] * 2 + ["Reshape"]),
    "one row": (lambda x: x[:, -1], ["Cropping2D", "Reshape"]),
    "one channel": (lambda x: x[:, :, :, 1], ["Reshape", "Cropping2D", "Reshape"]),
    "new axis": (lambda x: x[:, None, :, 1:3], ["Cropping2D", "Reshape"]),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_crops(name):
    function, kinds = SLICES[name]
    check(function, IMAGE, kinds=kinds)


def test_slices_of_sequences_and_vectors_are_crops():
    check(lambda x: x[:, 1:5], (9, 3), kinds=["Reshape", "Cropping2D", "Reshape"])
    check(lambda x: x[:, 2], (4,), kinds=["Reshape", "Cropping2D", "Reshape"])


@pytest.mark.parametrize("sizes", [3, [2, 1]])
def test_splits_are_crops_with_an_output_each(sizes):
    node, values = last_call(lambda x: tf.split(x, sizes, -1)[0], IMAGE)
    part = StandardLayers().of(node)
    same = tf.keras.Model(node.keras_inputs, node.outputs)(values)
    for made, expected in zip(part(values), same, strict=True):
        np.testing.assert_array_equal(made, expected)


def test_resizing_by_whole_numbers_and_pixel_shuffles_are_moves():
    nearest = lambda x: tf.image.resize(x, (8, 18), "nearest")  # noqa: E731
    check(nearest, IMAGE, kinds=["UpSampling2D"])
    kinds = ["Reshape", "Permute", "Reshape"]
    check(lambda x: tf.nn.space_to_depth(x, 2), IMAGE, kinds=kinds)
    check(lambda x: tf.nn.depth_to_space(x, 2), (2, 3, 8), kinds=kinds)


def test_separable_convolutions_are_two():
    layer = layers.SeparableConv2D(
        5, (3, 2), (2, 2), "same", depth_multiplier=2, activation="relu", name="sep"
    )
    part = check(layer, IMAGE, kinds=["DepthwiseConv2D", "Conv2D"])
    assert [each.name for each in part.layers[1:]] == ["sep_depthwise", "sep"]


SEQUENCES = {
    "conv": (layers.Conv1D(4, 3, 2, activation="relu"), "Conv2D"),
    "dilated": (layers.Conv1D(4, 3, padding="same", dilation_rate=2, use_bias=False), "Conv2D"),
    "depthwise": (layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2), "DepthwiseConv2D"),
    "transposed": (layers.Conv1DTranspose(4, 3, 2, padding="same"), "Conv2DTranspose"),
    "max": (layers.MaxPool1D(2, padding="same"), "MaxPooling2D"),
    "average": (layers.AveragePooling1D(3, 2), "AveragePooling2D"),
    "pad": (layers.ZeroPadding1D((1, 2)), "ZeroPadding2D"),
    "crop": (layers.Cropping1D((1, 2)), "Cropping2D"),
    "upsample": (layers.UpSampling1D(3), "UpSampling2D"),
}


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [
        ({}, True),
        ({"padding": "same"}, True),
        ({"strides": (3, 4), "padding": "same"}, True),
        ({"strides": (2, 3), "padding": "same"}, False),  # windows reach beyond in rows only
        ({"strides": (2, 3)}, True),
        ({"strides": 2, "output_padding": 1}, False),
        ({"dilation_rate": 2}, False),
    ],
)
def test_transposed_convolutions_of_int8_kernels(options, is_plain):
    assert is_plain_transposed(layers.Conv2DTranspose(2, 3, **options)) == is_plain


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_are_images_of_one_row(name):
    layer, kind = SEQUENCES[name]
    check(layer, (9, 3), kinds=["Reshape", kind, "Reshape"])


def test_functions_inside_of_layers_stand_apart_where_something_reads_them():
    kinds = ["DepthwiseConv2D", "Conv2D", "Activation"]
    check(layers.SeparableConv2D(5, 2, activation="swish"), IMAGE, kinds=kinds)
    for layer in (
        layers.Conv2D(5, 2, activation="tanh", name="c"),
        layers.DepthwiseConv2D(2, activation=tf.nn.leaky_relu, name="c"),
        layers.Dense(5, activation="sigmoid", name="c"),
    ):
        node, values = last_call(layer, IMAGE)
        assert StandardLayers().of(node) is None  # the end of a model keeps its form
        layers.Flatten()(node.outputs)
        part = StandardLayers().of(node)
        assert [each.name for each in part.layers[1:]] == ["c", f"c_{layer.activation.__name__}"]
        np.testing.assert_allclose(part(*values), layer(*values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.LeakyReLU(), "leaky_relu"),
        (layers.ReLU(negative_slope=0.1), "leaky_relu"),
        (layers.ReLU(threshold=0.1), "leaky_relu"),
        (layers.PReLU(), "prelu"),
        (layers.ELU(), "elu"),
        (layers.ELU(0.5), "scaled_elu"),  # TFLite's has no scale
        (layers.Activation("swish"), "swish"),
        (layers.Activation(tf.nn.silu), "swish"),
        (tf.keras.activations.tanh, "tanh"),
        (layers.ReLU(6.0), None),
        (layers.Activation("relu"), None),
        (layers.Activation("softmax"), None),
        (layers.Dense(2), None),
        (None, None),
    ],
)
def test_functions_of_single_values(layer, name):
    assert function_of(layer) == name


def test_more_of_sequences():
    kinds = ["Reshape", "ZeroPadding2D", "Conv2D", "Reshape"]
    check(layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 3), kinds=kinds)
    kinds = ["Reshape", "DepthwiseConv2D", "Conv2D", "Reshape"]
    check(layers.SeparableConv1D(4, 3, 2, dilation_rate=1), (9, 3), kinds=kinds)
    for kind, pool in (("Average", "GlobalAveragePooling2D"), ("Max", "GlobalMaxPooling2D")):
        layer = getattr(layers, f"Global{kind}Pooling1D")
        check(layer(), (9, 3), kinds=["Reshape", pool])
        check(layer(keepdims=True), (9, 3), kinds=["Reshape", pool, "Reshape"])


def test_what_computes_by_value_goes_on_with_images_of_one_row():
    norm = layers.BatchNormalization()
    node, _ = last_call(norm, (9, 3))
    assert StandardLayers().of(node) is None
    check(
        layers.BatchNormalization(),
        (9, 3),
        kinds=["Reshape", "BatchNormalization", "Reshape"],
        in_rows=True,
    )
    both = lambda x, y: layers.Add()([x, y])  # noqa: E731
    check(both, (9, 3), (9, 3), kinds=["Reshape", "Reshape", "Add", "Reshape"], in_rows=True)


def test_what_takes_many_tensors_takes_two_at_a_time():
    for kind in (layers.Add, layers.Multiply, layers.Maximum, layers.Minimum):
        three = lambda *x, kind=kind: kind(name="m")(x)  # noqa: E731
        part = check(three, IMAGE, IMAGE, IMAGE, kinds=[kind.__name__] * 2)
        assert part.output.node.layer.name == "m"
    node, _ = last_call(lambda *x: layers.Add()(x), IMAGE, IMAGE)
    assert StandardLayers().of(node) is None


@pytest.mark.parametrize(
    "kind", [layers.Add, layers.Average, layers.Concatenate, layers.Maximum, layers.Multiply]
)
def test_what_brings_tensors_together_passes_on_one_alone(kind):
    """Of a list of one, as YOLOv8's detector concatenates its boxes, Keras loads no call."""
    part = check(lambda x: kind(name="box")([x]), IMAGE, kinds=["Activation"])
    assert part.output.node.layer.name == "box"


def test_a_mean_of_tensors_is_one_of_windows():
    kinds = ["Concatenate", "Reshape", "AveragePooling2D", "Reshape"]
    for shape in (IMAGE, (7,)):
        check(lambda *x: layers.Average()(x), shape, shape, shape, kinds=kinds)
    node, _ = last_call(lambda *x: layers.Average()(x), IMAGE, (1, 1, 3))
    assert StandardLayers().of(node) is None


def test_a_layer_that_is_called_twice_becomes_one():
    layer, inputs = layers.SeparableConv2D(2, 1), [tf.keras.Input(IMAGE) for _ in range(2)]
    nodes = [layer(x).node for x in inputs]
    standard = StandardLayers()
    parts = [standard.of(node) for node in nodes]
    assert parts[0].layers[1:] == parts[1].layers[1:]


@pytest.mark.parametrize("kind", [lambda: layers.Conv1D(3, 3), layers.MaxPool1D])
def test_a_layer_on_sequences_of_several_lengths_is_one_on_images(kind):
    """What brings them in shape and back differs."""
    layer, standard = kind(), StandardLayers()
    x = tf.keras.Input((24, 3))
    nodes = [layer(x).node, layer(layer(x)).node]
    parts = [standard.of(node) for node in nodes]
    assert parts[0].layers[2] is parts[1].layers[2]
    for part in parts:
        assert standard.makes_row(part.layers[1])
        assert standard.makes_sequence(part.layers[3])
        values = np.random.default_rng(0).normal(size=part.input.shape[1:])[None]
        np.testing.assert_allclose(part(values), layer(np.float32(values)), rtol=1e-5, atol=1e-5)


def test_frozen_layers_and_their_regularizers_stay():
    layer = layers.SeparableConv2D(
        2, 1, depthwise_regularizer="l1", pointwise_regularizer="l2", trainable=False
    )
    node, _ = last_call(layer, IMAGE)
    depthwise, pointwise = StandardLayers().of(node).layers[1:]
    assert isinstance(depthwise.depthwise_regularizer, tf.keras.regularizers.L1)
    assert isinstance(pointwise.kernel_regularizer, tf.keras.regularizers.L2)
    assert (depthwise.trainable, pointwise.trainable) == (False, False)


def test_layers_that_read_a_mask_are_left():
    inputs = tf.keras.Input((9, 3))
    node = layers.GlobalAveragePooling1D()(layers.Masking()(inputs)).node
    assert StandardLayers().of(node) is None
