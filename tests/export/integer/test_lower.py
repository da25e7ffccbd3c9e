import math

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, BWNWeights, SATWeights
from dlqat_tf.export import ExportError, lower
from dlqat_tf.export.integer.nodes import (
    Activation,
    Add,
    Concatenate,
    Convolution,
    Dense,
    MaxPool,
    Pad,
    ReLU,
    Reshape,
    Sign,
)
from dlqat_tf.preprocessing import UNIT
from dlqat_tf.quantizers import DepthwiseWeights, TransposedWeights
from tests.export.networks import (
    convolution,
    images_for,
    quantized,
    randomize,
    siamese_network,
    small_network,
)

layers = tf.keras.layers


def one_convolution(kernel, **norm):
    """A 1x1 binary convolution of two channels, a batch norm and an activation of 2 bits."""
    inputs = tf.keras.Input((1, 1, 2), name="images")
    convolve = lq.layers.QuantConv2D(
        2, 1, kernel_quantizer=SATWeights(1), use_bias=False, name="conv"
    )
    norm_layer = layers.BatchNormalization(epsilon=0.0, name="norm", **norm)
    outputs = CGPACT(2, 3.0, name="act")(norm_layer(convolve(inputs)))
    model = tf.keras.Model(inputs, layers.Flatten()(outputs))
    convolve.kernel.assign(np.reshape(kernel, (1, 1, 2, 2)))
    return model


def test_batch_norm_folds_into_step_and_bias():
    model = one_convolution([[0.5, -0.5], [-0.5, -0.5]])
    norm = model.get_layer("norm")
    norm.gamma.assign([2.0, -3.0])
    norm.beta.assign([0.5, 1.0])
    norm.moving_mean.assign([1.0, 2.0])
    norm.moving_variance.assign([4.0, 1.0])
    node = lower(model)["conv"]
    # Channel 0: gain 2 / 2 = 1, bias 0.5 - 1 * 1. Channel 1: gain -3, bias 1 + 2 * 3.
    assert node.step.tolist() == [1.0, 3.0]
    assert node.bias.tolist() == [-0.5, 7.0]
    # The negative gain flips channel 1, whose weights were both -1.
    assert node.weights[0, 0].tolist() == [[1, 1], [-1, 1]]
    assert node.bias_sources == ("norm",)
    # In training outputs were around beta, by the gain times the deviation of what was read.
    assert node.moments.mean.tolist() == [0.5, 1.0]
    assert node.moments.deviation.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("settings", [dict(center=False), dict(scale=False), {}])
def test_moments_of_a_norm_that_stands_alone(settings):
    inputs = tf.keras.Input((2, 2, 3), name="images")
    norm = layers.BatchNormalization(name="norm", **settings)
    x = norm(CGPACT(2, 1.0)(layers.Rescaling(1 / 255)(inputs)))
    model = tf.keras.Model(inputs, layers.Flatten()(CGPACT(2, 1.0, signed=True)(x)))
    norm.moving_variance.assign([4.0, 0.0, 1.0])
    norm.moving_mean.assign([5.0, 6.0, 7.0])
    moments = lower(model)["norm"].moments
    assert moments.mean.tolist() == [0, 0, 0]
    np.testing.assert_allclose(moments.deviation, [1, 0, 1], rtol=1e-3)


def test_a_convolution_without_a_norm_has_no_moments():
    inputs = tf.keras.Input((2, 2, 3), name="images")
    x = CGPACT(2, 1.0)(quantized(2, 1, name="conv")(layers.Rescaling(1 / 255)(inputs)))
    assert lower(tf.keras.Model(inputs, layers.Flatten()(x)))["conv"].moments is None


def test_order_is_topological_and_activations_follow_what_they_round():
    network = lower(dlqat_tf.resnet18(10, width=4, stem="imagenet"))
    seen = set()
    for node in network:
        assert set(node.inputs) <= seen
        seen.add(node.name)
    assert sum(isinstance(node, Convolution) for node in network) == 20
    assert sum(isinstance(node, Activation) for node in network) == 17
    assert sum(isinstance(node, Add) for node in network) == 8


def test_activation_moves_before_pooling_and_concatenation():
    inputs = tf.keras.Input((4, 4, 3))
    first, second = (convolution(inputs, 2, 1, weight_bits=1, name=name) for name in "ab")
    x = layers.Concatenate(name="both")([first, second])
    x = CGPACT(2, 1.0, name="act")(layers.MaxPool2D(name="pool")(x))
    network = lower(tf.keras.Model(inputs, layers.Flatten(name="flat")(x)))
    names = [node.name for node in network]
    assert names[-6:] == ["act_1", "act_2", "both", "pool", "flat", "flat/output"]
    assert network["both"].inputs == ("act_1", "act_2")
    assert isinstance(network["both"], Concatenate)
    assert isinstance(network["pool"], MaxPool)


@pytest.mark.parametrize(
    "head", [dlqat_tf.LinearHead, dlqat_tf.CosineHead, dlqat_tf.GaussianMixtureHead]
)
def test_heads_become_dense(head):
    inputs = tf.keras.Input((2, 2, 3))
    layer = head(4, name="head")
    model = tf.keras.Model(inputs, layer(layers.Flatten()(inputs)))
    node = lower(model)["head"]
    kernel, bias = layer.dense()
    assert isinstance(node, Dense)
    assert node.bits == 8
    np.testing.assert_allclose(node.values, kernel, rtol=1e-6)
    np.testing.assert_allclose(node.bias, bias, rtol=1e-6)


def test_nested_and_sequential_models_are_flattened():
    inner = tf.keras.Sequential(
        [
            layers.InputLayer((4, 4, 3)),
            lq.layers.QuantConv2D(4, 3, kernel_quantizer=SATWeights(2), name="conv"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    inputs = tf.keras.Input((4, 4, 3))
    x = CGPACT(2, 1.0, name="act")(inner(inputs))
    network = lower(tf.keras.Model(inputs, layers.Flatten(name="flat")(x)))
    assert [node.name for node in network][1:] == ["inner/conv", "act", "flat", "flat/output"]
    assert network["inner/conv"].bias_sources == ("inner/norm", "inner/conv")


def test_saved_and_mixed_precision_models_lower_the_same(tmp_path):
    model = small_network()
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        mixed = small_network()
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    mixed.set_weights(model.get_weights())
    for other in (loaded, mixed):
        for first, second in zip(lower(model), lower(other), strict=True):
            if isinstance(first, (Convolution, Dense)):
                np.testing.assert_array_equal(first.weights, second.weights)
                np.testing.assert_array_equal(first.step, second.step)
                np.testing.assert_array_equal(first.bias, second.bias)


def test_model_under_a_distribution_strategy_lowers_the_same():
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = small_network()
    assert len(lower(model).nodes) == len(lower(small_network()).nodes)


def test_signs_times_a_magnitude():
    inputs = tf.keras.Input((1, 1, 2))
    layer = lq.layers.QuantConv2D(
        3, 1, kernel_quantizer="magnitude_aware_sign", use_bias=False, name="conv"
    )
    model = tf.keras.Model(inputs, layer(inputs))
    layer.kernel.assign([[[[0.5, -0.2, 0.0], [-1.0, -0.6, 0.0]]]])
    node = lower(model)["conv"]
    assert node.weights[0, 0].tolist() == [[1, -1, 0], [-1, -1, 0]]
    np.testing.assert_allclose(node.step, [0.75, 0.4, 1.0])  # means of the magnitudes
    assert node.bits == 1


def test_depthwise_padding_rescaling_and_signs():
    inputs = tf.keras.Input((5, 5, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.ZeroPadding2D(((1, 0), (0, 2)), name="pad")(x)
    x = lq.layers.QuantDepthwiseConv2D(
        2, depth_multiplier=2, depthwise_quantizer=SATWeights(2), name="depthwise"
    )(x)
    x = lq.layers.QuantConv2D(
        4, 1, input_quantizer="ste_sign", kernel_quantizer="ste_sign", name="binary"
    )(layers.Dropout(0.5)(x))
    network = lower(tf.keras.Model(inputs, layers.Flatten()(x)))
    assert isinstance(network["pad"], Pad)
    assert network["pad"].inputs == (network.nodes[0].name,)
    assert network["depthwise"].depthwise
    assert network.shapes["depthwise"] == (5, 6, 6)
    assert isinstance(network["binary_input"], Sign)
    assert set(network["binary"].weights.ravel().tolist()) <= {-1, 1}


def refused(*stack, shape=(4, 4, 3)):
    inputs = tf.keras.Input(shape)
    x = inputs
    for layer in stack:
        x = layer(x)
    return tf.keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ([layers.Rescaling(1 / 127.5, offset=-1, name="odd")], "'odd'.*no InputQuantizer"),
        ([layers.Rescaling(1 / 256, name="odd"), layers.Flatten()], "'odd'.*no InputQuantizer"),
        ([layers.Rescaling(0.5, name="odd"), CGPACT(2, 1.0)], "'odd'.*no InputQuantizer"),
        (
            [lq.layers.QuantConv2D(2, 1, kernel_quantizer=SATWeights(32), name="odd")],
            "'odd'.*bits=32",
        ),
        (
            [lq.layers.QuantConv2D(2, 1, kernel_quantizer=tf.exp, name="odd")],
            "'odd'.*weights that exp makes are not on equidistant levels",
        ),
        (
            [lq.layers.QuantLocallyConnected2D(2, 1, kernel_quantizer=SATWeights(2), name="odd")],
            r"'odd' \(QuantLocallyConnected2D\).*holds quantizers",
        ),
        (
            [
                lq.layers.QuantConv2D(
                    2, 1, input_quantizer=lq.quantizers.DoReFa(2, "weights"), name="odd"
                )
            ],
            "'odd_input'.*a factor that depends on them",
        ),
        (
            [
                lq.layers.QuantConv2D(
                    3, 1, kernel_quantizer=TransposedWeights(BWNWeights()), name="odd"
                )
            ],
            "'odd'.*TransposedWeights is for transposed convolutions",
        ),
        (
            [
                lq.layers.QuantDepthwiseConv2D(
                    1, depthwise_quantizer=TransposedWeights(BWNWeights()), name="odd"
                )
            ],
            "'odd'.*TransposedWeights is for transposed convolutions",
        ),
        (
            [
                lq.layers.QuantConv2D(
                    3, 1, kernel_quantizer=DepthwiseWeights(BWNWeights()), name="odd"
                )
            ],
            "'odd'.*DepthwiseWeights is for depthwise convolutions",
        ),
        (
            [lq.layers.QuantConv2D(2, 1, activation=lq.quantizers.NoOp(2), name="odd")],
            "'odd'.*its activation says no integer codes",
        ),
    ],
)
def test_what_has_no_integer_form_is_named(stack, message):
    with pytest.raises(ExportError, match=message):
        lower(refused(*stack))


def test_nan_is_refused_by_layer():
    model = small_network()
    kernel = model.get_layer("second").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ExportError, match="'second' holds NaN"):
        lower(model)


@pytest.mark.parametrize("epsilon", [0.0, math.nan])
def test_a_gain_that_is_not_finite(epsilon):
    model = one_convolution([[0.5, -0.5], [-0.5, -0.5]])
    model.get_layer("norm").moving_variance.assign([0.0, 1.0])
    model.get_layer("norm").epsilon = epsilon
    with pytest.raises(
        ExportError, match=f"'norm' has channels of variance 0 and epsilon {epsilon}"
    ):
        lower(model)


def test_models_without_a_fixed_graph_are_refused():
    with pytest.raises(ExportError, match="inputs of a fixed size"):
        lower(refused(layers.Conv2D(2, 1), shape=(None, None, 3)))
    with pytest.raises(ExportError, match="functional or Sequential"):
        lower(tf.keras.Sequential([layers.Dense(2)]))


def test_fixed_batch_dimension_lowers():
    inputs = tf.keras.Input((4, 4, 3), batch_size=2)
    model = tf.keras.Model(inputs, layers.Flatten()(CGPACT(2, 1.0)(inputs)))
    assert lower(model).shapes["images" if "images" in model.input_names else model.input_names[0]]


def test_float_evaluation_of_the_network_is_the_keras_model():
    from dlqat_tf.export.integer.plan import plan
    from dlqat_tf.export.integer.simulate import Simulation

    model = randomize(small_network(), seed=3)
    images = images_for(model, 8)
    expected = model(images.astype(np.float32) / np.float32(255)).numpy()
    actual = Simulation(plan(lower(model))).logits(images)
    # Unsnapped biases may move single codes, so only the bulk is compared.
    assert np.median(np.abs(actual - expected)) < 0.05 * np.abs(expected).max()


def test_one_value_is_added_to_many():
    inputs = tf.keras.Input((4, 4, 3))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    network = lower(tf.keras.Model(inputs, layers.Add(name="odd")([inputs, pooled])))
    assert isinstance(network["odd"], Add)
    assert network.shapes["odd"] == (4, 4, 3)


def test_inputs_come_first_in_the_order_of_the_model():
    inputs = {"b": tf.keras.Input((4, 4, 3), name="x"), "a": tf.keras.Input((2, 3, 1), name="y")}
    parts = [layers.Flatten()(CGPACT(2, 1.0)(each)) for each in inputs.values()]
    network = lower(tf.keras.Model(inputs, layers.Concatenate()(parts)))
    # Keras sorts dictionaries by key.
    assert [(node.name, node.shape) for node in network.inputs] == [
        ("y", (2, 3, 1)),
        ("x", (4, 4, 3)),
    ]
    assert network.inputs == network.nodes[:2]


def test_a_vector_is_no_image():
    image, vector = tf.keras.Input((2, 2, 1)), tf.keras.Input((4,), name="age")
    model = tf.keras.Model([image, vector], layers.Concatenate()([layers.Flatten()(image), vector]))
    of_image, of_vector = lower(model).inputs
    assert (of_image.preprocessing, of_image.grid.highest) == (UNIT, 255)
    assert (of_vector.preprocessing, of_vector.grid) == (None, None)


@pytest.mark.parametrize("nested", [False, True])
def test_each_call_of_a_layer_is_a_node_with_its_weights(nested):
    network = lower(siamese_network(nested=nested))
    prefix = "tower/" if nested else ""
    for name, image in (("first", "left"), ("first_2", "right")):
        node = network[prefix + name]
        assert node.inputs == (image,)
        # The layer that holds the bias, whichever call it is.
        assert node.bias_sources == (f"{prefix}first_bn", f"{prefix}first")
        np.testing.assert_array_equal(node.weights, network[f"{prefix}first"].weights)
    assert network[f"{prefix}second_act_2"].inputs == (f"{prefix}second_2",)


def test_each_call_of_a_dense_layer_on_rows_reads_its_own():
    inputs = tf.keras.Input((2, 3), name="rows")
    dense = layers.Dense(4, name="dense")
    first, second = dense(inputs), dense(layers.ReLU(name="relu")(inputs))
    network = lower(tf.keras.Model(inputs, layers.Subtract(name="difference")([first, second])))
    (difference,) = (node for node in network if node.name == "difference")
    read = [_behind(network, name) for name in difference.inputs]
    assert read == [["dense", "rows"], ["dense_2", "relu", "rows"]]


def _behind(network, name):
    """The nodes from one of a chain to the input, those that reshape left out."""
    found = []
    while True:
        node = network[name]
        found += [] if isinstance(node, Reshape) else [name]
        if not node.inputs:
            return found
        (name,) = node.inputs


def test_calls_have_the_same_names_after_saving(tmp_path):
    model = siamese_network()
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    described = [[(node.name, node.inputs) for node in lower(each)] for each in (model, loaded)]
    assert described[0] == described[1]


def test_a_nested_model_called_by_names():
    x, y = tf.keras.Input((2, 2, 1), name="x"), tf.keras.Input((2, 2, 1), name="y")
    inner = tf.keras.Model([y, x], layers.Concatenate(name="both")([y, x]), name="inner")
    first, second = (
        tf.keras.Input((2, 2, 1), name="first"),
        tf.keras.Input((2, 2, 1), name="second"),
    )
    outputs = layers.Flatten()(inner({"x": first, "y": second}))
    network = lower(tf.keras.Model([first, second], outputs))
    assert network["inner/both"].inputs == ("second", "first")


def test_a_nested_model_of_two_outputs():
    inputs = tf.keras.Input((2, 2, 1), name="images")
    inner = tf.keras.Model(inputs, [inputs, layers.ReLU(name="relu")(inputs)], name="inner")
    network = lower(tf.keras.Model(inputs, inner(inputs)))
    assert [node.inputs for node in network.outputs] == [("images",), ("inner/relu",)]


def test_moved_activations_keep_clear_of_the_names_of_calls():
    inputs = tf.keras.Input((4, 4, 3))
    activation = CGPACT(2, 1.0, name="act")
    x = activation(convolution(inputs, 2, 1, weight_bits=1))
    x = layers.Concatenate()([convolution(x, 2, 1, weight_bits=1, name=name) for name in "ab"])
    network = lower(tf.keras.Model(inputs, layers.Flatten()(activation(x))))
    names = [node.name for node in network if isinstance(node, Activation)]
    # The second call, act_2, goes to both inputs of the concatenation.
    assert names == ["act", "act_2_1", "act_2_2"]


@pytest.mark.parametrize("relu6", [layers.ReLU(6.0), layers.Activation("relu6")])
@pytest.mark.parametrize(("alpha", "highest"), [(3.0, 15), (9.0, 10), (8.5, 11)])
def test_a_grid_ends_where_a_relu6_before_it_does(relu6, alpha, highest):
    inputs = tf.keras.Input((4, 4, 3))
    x = CGPACT(4, alpha, name="act")(relu6(convolution(inputs, 2, 1, weight_bits=2)))
    network = lower(tf.keras.Model(inputs, layers.Flatten()(x)))
    assert not any(isinstance(node, ReLU) for node in network)
    # 15 steps to 3.0; 10 steps of 9 / 15 to 6.0; 10.6 steps of 8.5 / 15, which round to 11.
    assert network["act"].grid.highest == highest


def test_what_surrounds_the_image_of_a_same_convolution():
    inputs = tf.keras.Input((4, 4, 3))
    x = inputs
    for padding, pad_values in (("same", 1.0), ("same", 0.0), ("valid", 1.0)):
        name = f"{padding}{pad_values:g}"
        x = lq.layers.QuantConv2D(2, 2, padding=padding, pad_values=pad_values, name=name)(x)
    network = lower(tf.keras.Model(inputs, layers.Flatten()(x)))
    found = {node.name: node.pad_value for node in network if isinstance(node, Convolution)}
    assert found == {"same1": 1.0, "same0": 0.0, "valid1": 0.0}


def test_the_lowest_of_three_relus_stays():
    inputs = tf.keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, activation="relu6")(inputs)
    x = layers.ReLU()(layers.Activation(tf.nn.relu)(x))
    network = lower(tf.keras.Model(inputs, layers.Flatten()(x)))
    assert [node.highest for node in network if isinstance(node, ReLU)] == [6.0]


def test_what_reshapes_and_what_is_a_convolution():
    inputs = tf.keras.Input((2, 3, 4))
    x = quantized(4, 2, name="conv")(inputs)
    x = lq.layers.QuantDense(5, kernel_quantizer=SATWeights(2), name="dense")(x)
    x = layers.GlobalMaxPooling2D(name="max")(x)
    x = layers.Reshape((1, 1, -1), name="image")(x)
    network = lower(tf.keras.Model(inputs, layers.Flatten(name="flat")(x)))
    assert isinstance(network["dense"], Convolution)
    assert network["dense"].weights.shape == (1, 1, 4, 5)
    assert network["max"].size == (2, 3)
    reshaped = {node.name: node.shape for node in network if isinstance(node, Reshape)}
    assert reshaped == {"max_flat": (5,), "image": (1, 1, 5), "flat": (5,)}
    kept = tf.keras.Model(inputs, layers.GlobalMaxPooling2D(keepdims=True, name="max")(inputs))
    assert lower(kept).shapes["max"] == (1, 1, 4)


@pytest.mark.parametrize(
    ("alpha", "reason"),
    [(1e7, "has the step 3.3"), (np.inf, "range .alpha. is inf"), (np.nan, "range .alpha. is nan")],
)
def test_a_range_that_exploded_is_refused(alpha, reason):
    model = small_network()
    model.get_layer("first_act").alpha.assign(alpha)
    with pytest.raises(ExportError, match=rf"'first_act'.* {reason}.*diverged"):
        lower(model)
