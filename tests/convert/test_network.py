import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, ConversionError, SATWeights, quantize
from dlqat_tf.export import lower
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.snap import snap
from tests.convert.networks import (
    FLOAT,
    classifier,
    conv_norm,
    detector,
    mobile,
    quantizer_of,
    residual,
    settle,
    siamese,
    vgg,
)

layers = tf.keras.layers
Model = tf.keras.Model


def test_widths_and_names():
    model, report = quantize(mobile(), 2, 3, "linear", residual_bits=5)
    weights = {
        layer.name: quantizer_of(layer).bits for layer in model.layers if quantizer_of(layer)
    }
    assert weights == {
        "stem": 8,
        "expand0": 2,
        "depth0": 2,
        "project0": 2,
        "expand1": 2,
        "depth1": 2,
        "project1": 2,
        "last": 2,
        "predictions": 8,
    }
    places = {q.name: (q.bits, q.signed) for q in model.layers if isinstance(q, CGPACT)}
    assert places == {
        "stem_relu": (3, False),
        "expand0_relu": (3, False),
        "depth0_relu": (3, False),
        "expand1_relu": (3, False),
        "depth1_relu": (3, False),
        "project0_bn_residual": (5, True),
        "add0_residual": (5, True),
        "project1_bn_residual": (5, True),
        "last_relu": (8, False),
    }
    rows = {row.layer: row for row in report.conversions}
    assert rows["depth0"].became == "QuantDepthwiseConv2D"
    assert rows["depth0"].note == "scale moved into depth0_bn"
    assert (rows["add0"].became, rows["add0"].activation_bits) == ("Add", 5)
    assert rows["predictions"].became == "LinearHead"
    assert "softmax is dropped" in rows["predictions"].note
    assert "images" not in rows
    report.print()


def test_first_layers_are_those_that_no_kernel_precedes():
    """What prepares images is no layer that quantization counts from; a sum with a branch is."""
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Lambda(lambda x: 2 * x, name="prepare")(inputs))
    x = layers.Conv2D(3, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(3, 3, padding="same", name="second")(x)
    x = layers.ReLU()(layers.Add()([x, inputs]))
    x = layers.Conv2D(3, 3, activation="relu", name="third")(x)
    source = Model(inputs, layers.Dense(2, name="last")(layers.Flatten()(x)))
    _, report = quantize(source, overrides={"prepare": "float"})
    widths = {row.layer: row.weight_bits for row in report.conversions if row.weight_bits}
    assert widths == {"first": 8, "second": 1, "third": 1, "last": 8}
    assert "reads an input" in {row.layer: row.note for row in report.conversions}["first"]


def test_what_the_model_returns_is_not_rounded():
    inputs = tf.keras.Input((8, 8, 1))
    x = conv_norm(layers.ReLU(name="hidden")(conv_norm(inputs, 4, 3)), 4, 3, name="end")
    source = Model(inputs, layers.ReLU(name="features")(x))
    model, report = quantize(source, head=None)
    assert type(model.get_layer("features")) is layers.ReLU
    assert report.conversions[-1].note == "stays float: it is the output"
    assert model.get_layer("end").kernel_quantizer.bits == 8
    assert model.get_layer("hidden").bits == 8


@pytest.mark.parametrize("fused", [True, False])
def test_what_follows_the_last_weights_has_8_bits_and_the_sign_that_it_has(fused):
    """SqueezeNet ends in a convolution, a ReLU and a pool."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(5, 1, activation="relu" if fused else None, name="last")(x)
    x = x if fused else layers.ReLU(name="last_relu")(x)
    source = Model(inputs, layers.GlobalAveragePooling2D(name="scores")(x))
    images = np.random.default_rng(0).random((8, 8, 8, 3)).astype(np.float32)
    model, _ = quantize(source, 2, 2, head=None, images=images)
    place = model.get_layer("last_residual" if fused else "last_relu")
    assert (place.bits, place.signed) == (8, False)
    assert model.get_layer("first_act").bits == 8  # what the last layer reads
    plan(lower(model))  # has a range everywhere
    correlation = np.corrcoef(np.ravel(model(images)), np.ravel(source(images)))[0, 1]
    assert correlation > 0.99


def test_a_head_needs_a_classifier():
    inputs = tf.keras.Input((4, 4, 3))
    segmentation = Model(inputs, layers.Conv2D(2, 1, name="pixels")(inputs))
    with pytest.raises(ConversionError, match=r"ends in 'pixels' \(Conv2D\).*head=None"):
        quantize(segmentation)
    assert quantize(segmentation, head=None)[0].output_shape == (None, 4, 4, 2)
    two = Model(inputs, [layers.Flatten()(inputs), inputs])
    with pytest.raises(ConversionError, match="one output"):
        quantize(two)
    with pytest.raises(ConversionError, match=r"ends in 'scores' \(Dense, sigmoid\)"):
        quantize(classifier(activation="sigmoid"))


def test_overrides():
    source = residual()
    model, report = quantize(
        source,
        overrides={
            "*": dict(weight_bits=3),
            "outer*": dict(weight_bits=4),
            "outer1": "float",
            "inner*": dict(activation_bits=5),
            "outer?_bn": dict(residual_bits=6),
            "predictions": dict(weight_bits=4),
            "shortcut": dict(weight_bits=2),
        },
    )
    rows = {row.layer: row for row in report.conversions}
    assert rows["stem"].weight_bits == 3  # an override beats the width of the ends
    assert rows["outer0"].weight_bits == 4
    assert (rows["outer1"].became, rows["outer1"].weight_bits) == ("Conv2D", None)
    assert rows["outer1"].note == "stays float: override"
    assert rows["inner0"].activation_bits == 5
    assert rows["outer0_bn"].activation_bits == 6
    assert model.get_layer("predictions").weight_bits == 4
    assert model.get_layer("shortcut").kernel_quantizer.bits == 2
    np.testing.assert_array_equal(
        model.get_layer("outer1").get_weights()[0], source.get_layer("outer1").get_weights()[0]
    )


def test_float_activations_and_fused_ones():
    overrides = {"conv1": dict(activation_bits=4), "conv2": "float"}
    model, _ = quantize(vgg(), overrides=overrides)
    assert model.get_layer("conv1_act").bits == 4
    assert model.get_layer("conv2").activation is tf.nn.relu6
    assert not model.get_layer("conv2_residual").signed  # its ReLU6 is kept with it
    model, _ = quantize(mobile(), overrides={"expand0_relu": "float"})
    assert model.get_layer("expand0_relu").max_value == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conv3": "float"}, "'conv3' matches no layer. Close names: 'conv"),
        ({"pool": dict(weight_bits=2)}, "'pool' sets weight_bits.*pool"),
        ({"flat": dict(activation_bits=2)}, "'flat' sets activation_bits"),
        ({"conv1": "int8"}, "Received: 'int8'"),
        ({"conv1": dict(bits=2)}, "Received: {'bits': 2}"),
        ({"conv1": dict(weight_bits=9)}, "bits=9"),
        ({"conv1": dict(residual_bits=1)}, "bits=1"),
        (["conv1"], r"a dict by layer name or pattern. Received: overrides=\['conv1'\]"),
        ([], r"a dict by layer name or pattern. Received: overrides=\[\]"),
        ({1: "float"}, "a dict by layer name or pattern"),
    ],
)
def test_overrides_without_effect_are_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        quantize(vgg(), overrides=overrides)


def test_residual_bits_none_rounds_no_branch():
    model, _ = quantize(residual(), residual_bits=None)
    assert not any(q.signed for q in model.layers if isinstance(q, CGPACT))


def test_layers_without_a_quantized_form_stay_float():
    inputs = tf.keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, activation="swish", name="swished")(inputs)
    x = layers.Conv2DTranspose(4, 2, 2, output_padding=1, name="transposed")(x)
    x = layers.Activation("gelu", name="gelu")(layers.LeakyReLU(name="leaky")(x))
    x = layers.ReLU(negative_slope=0.1, name="sloped")(layers.Lambda(lambda x: 2 * x, name="f")(x))
    x = layers.LayerNormalization(name="layer_norm")(x * 2.0)
    x = layers.BatchNormalization(axis=1, name="rows")(x)
    source = Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    images = np.random.default_rng(0).random((4, 4, 4, 3)).astype(np.float32)
    model, report = quantize(source, head=None, **FLOAT, images=images)
    message = "\n".join(report.notes)
    for part in (
        "5 of 13 layers",
        "'transposed': No int8 kernel computes this transposed convolution exactly",
        "'f': 'Lambda'",
        "'layer_norm': 'LayerNormalization'",
        "'rows': Its axis is 1",
    ):
        assert part in message
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 8])
def test_functions_before_a_relu_stay_float_behind_a_quantizer(bits):
    """The kernel before them ends on a grid; there is one after them, the ReLU's."""
    inputs = tf.keras.Input((4, 4, 3), name="images")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(inputs))
    x = layers.Activation("tanh", name="tanh")(layers.LeakyReLU(name="leaky")(x))
    x = layers.GlobalAveragePooling2D()(layers.ReLU(name="relu")(x))
    model, _ = quantize(Model(inputs, layers.Dense(3, name="last")(x)), 1, bits)
    places = [layer.name for layer in model.layers if isinstance(layer, CGPACT)]
    assert places == ["norm_residual", "relu"]
    plan(lower(model))  # knows all ranges


def test_quantized_and_subclassed_models_are_refused():
    class Own(Model):
        def call(self, x):
            return x

    with pytest.raises(ConversionError, match=r"tf\.keras\.Model\(inputs, model\.call\(inputs\)\)"):
        quantize(Own())
    inputs = tf.keras.Input((4,))
    with pytest.raises(ConversionError, match=r"'own'.*Subclassed"):
        quantize(Model(inputs, layers.Dense(2)(Own(name="own")(inputs))))
    done = lq.layers.QuantDense(2, kernel_quantizer=SATWeights(1), name="done")
    with pytest.raises(ConversionError, match=r"quantized already, 'done'"):
        quantize(Model(inputs, layers.Dense(2)(done(inputs))))


def test_nested_models_are_flattened_or_kept():
    def base(name, channels):
        inputs = tf.keras.Input((8, 8, channels))
        x = layers.ReLU(name="relu")(conv_norm(inputs, 4, 3, name="conv"))
        return Model(inputs, layers.Conv2D(4, 1, name="project")(x), name=name)

    inputs = tf.keras.Input((8, 8, 1), name="images")
    first, second = base("first", 1), base("second", 4)
    second.trainable = False
    x = layers.Flatten()(second(first(inputs), training=False))
    source = Model(inputs, layers.Dense(3, name="scores")(x))
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)
    settle(source, images)
    model, report = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)
    names = [layer.name for layer in model.layers]
    assert {"conv", "conv_bn", "relu", "second_conv", "second_relu"} <= set(names)
    assert not model.get_layer("second_conv").trainable
    assert "frozen" in {r.layer: r.note for r in report.conversions}["second_conv"]

    model, _ = quantize(source, overrides={"second": "float"}, head=None, images=images)
    assert isinstance(model.get_layer("second"), Model)
    for a, b in zip(model.get_layer("second").weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pre_activation_and_float_branches():
    """Batch norms of their own and a sum without a ReLU read and give codes."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    for i in range(2):
        y = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"norm{i}")(x))
        x = layers.Add(name=f"add{i}")([x, layers.Conv2D(4, 3, padding="same", name=f"c{i}")(y)])
    x = layers.Concatenate(name="both")([x, layers.AveragePooling2D(1, name="pool")(y)])
    x = layers.ReLU(name="end")(layers.Conv2D(4, 1, name="c2")(x))
    source = Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    model, _ = quantize(source, 2, 2, "linear")
    rounded = {q.name for q in model.layers if isinstance(q, CGPACT) and q.signed}
    assert rounded == {
        "stem_residual",
        "c0_residual",
        "c1_residual",
        "add0_residual",
        "add1_residual",
    }
    # The sum and the pool come together.
    assert len(model.get_layer("add1_residual").inbound_nodes) == 2
    plan(lower(model))  # every layer has an integer kernel


def test_what_a_relu_and_the_model_read_is_rounded():
    """An integer kernel ends on one grid, which cannot be the ReLU's alone."""
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    pool = layers.MaxPool2D(name="pool")(layers.Conv2D(4, 3, name="second")(layers.ReLU()(x)))
    scores = layers.Dense(3)(layers.Flatten()(layers.ReLU()(pool)))
    model, _ = quantize(Model(inputs, [layers.Softmax()(x), scores, pool]), 4, 4, None)
    rounded = [q.name for q in model.layers if isinstance(q, CGPACT) and q.signed]
    assert rounded == ["first_residual", "second_residual"]
    plan(lower(model))  # every layer has an integer kernel


def test_what_a_concatenation_brings_together_has_one_quantizer():
    model, report = quantize(siamese(), residual_bits=5, overrides={"pool0": dict(residual_bits=7)})
    places = [q for q in model.layers if q.name.endswith("residual")]
    assert [(q.name, q.bits, len(q.inbound_nodes)) for q in places] == [("pool0_residual", 7, 2)]
    rows = {row.layer: row.note for row in report.conversions}
    assert rows["pool0"] == rows["pool1"] == "outputs rounded by pool0_residual"


def test_functions_share_the_quantizer_of_what_they_meet():
    """As in the stages of YOLOv8: a file has one grid there, and Keras rounds to it too."""
    inputs = tf.keras.Input((8, 8, 3))
    one, two = tf.split(tf.nn.silu(layers.Conv2D(8, 3)(inputs)), 2, axis=-1)
    deeper = layers.Activation("swish", name="deeper")(layers.Conv2D(4, 3, padding="same")(two))
    x = layers.Add(name="sum")([two, deeper])
    x = layers.Conv2D(4, 1)(tf.concat([one, two, x], -1))
    source = Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    model, _ = quantize(source, 8, 8, "linear")
    joint = [q for q in model.layers if isinstance(q, CGPACT) and len(q.inbound_nodes) > 1]
    assert [(q.name, q.bits, q.signed) for q in joint] == [("sum_residual", 8, True)]
    model, _ = quantize(source, 4, 4, "linear")  # whose levels all have room on one grid
    assert all(len(q.inbound_nodes) == 1 for q in model.layers if isinstance(q, CGPACT))


def test_the_range_of_a_function_is_not_that_of_what_it_meets():
    inputs = tf.keras.Input((8, 8, 3))
    gate = layers.Activation("sigmoid", name="gate")(layers.Conv2D(4, 3, name="first")(inputs))
    x = layers.Concatenate()([layers.Conv2D(4, 3, name="second")(inputs), gate])
    x = layers.Conv2D(4, 1)(x)
    source = Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    source.get_layer("second").bias.assign(tf.fill([4], 5.0))
    images = np.random.default_rng(0).random((16, 8, 8, 3)).astype(np.float32)
    model, _ = quantize(source, 8, 8, "linear", images=images)
    (joint,) = [q for q in model.layers if isinstance(q, CGPACT) and len(q.inbound_nodes) > 1]
    assert float(joint.alpha) > 5


def test_nested_models_called_by_name_with_several_outputs():
    """Its inputs in the order of its own list, and each output where it goes."""
    inner = [tf.keras.Input((8, 8, channels), name=f"in{channels}") for channels in (2, 1)]
    outputs = [layers.Conv2D(3, 3, name=f"of{x.shape[-1]}")(x) for x in inner]
    tower = Model(inner, outputs, name="tower")
    inputs = [tf.keras.Input((8, 8, channels), name=f"image{channels}") for channels in (1, 2)]
    two, one = tower({"in1": inputs[0], "in2": inputs[1]})
    x = layers.ReLU()(layers.Conv2D(3, 3)(layers.ReLU()(one)))
    x = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(two)])
    source = Model(inputs, layers.Dense(2)(x))
    generator = np.random.default_rng(0)
    images = [generator.random((4, 8, 8, channels)).astype(np.float32) for channels in (1, 2)]
    for overrides in ({}, {"tower": "float"}):
        model, _ = quantize(source, head=None, **FLOAT, overrides=overrides, images=images)
        np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_called_on_rows_and_on_images_has_a_norm_for_each():
    inputs = tf.keras.Input((2, 3, 4))
    dense = layers.Dense(4, "relu", name="dense")
    rows = dense(layers.Reshape((6, 4), name="rows")(inputs))
    x = layers.Concatenate()([layers.Flatten()(each) for each in (dense(inputs), rows)])
    source = Model(inputs, layers.Dense(2, name="last")(x))
    images = np.random.default_rng(0).random((4, 2, 3, 4)).astype(np.float32)
    model, _ = quantize(source, head=None, **FLOAT, images=images)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-4, atol=1e-5)


def test_calls_of_a_last_layer_read_one_grid():
    """Where something rounds what they give: its biases are in steps of what they read."""
    model, _ = quantize(detector("relu"), 8, 8, head=None)
    shared = [q for q in model.layers if isinstance(q, CGPACT) and len(q.inbound_nodes) > 1]
    assert {q.name for q in shared} == {"large", "objects_residual"}
    snap(model)


@pytest.mark.parametrize("is_first", [True, False])
def test_layers_that_sequences_share_with_vectors_have_a_name_for_each(is_first):
    inputs = tf.keras.Input((9, 3), name="sound")
    act, add = layers.ReLU(name="act"), layers.Add(name="add")
    norm = layers.BatchNormalization(name="norm")
    x = act(norm(layers.Conv1D(4, 3, name="c0")(inputs)))
    y = act(layers.Dense(4, name="d0")(layers.GlobalAveragePooling1D(name="mean")(inputs)))
    x = norm(layers.Dense(4, name="d1")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(act(layers.Conv1D(4, 3, name="c1")(x)))
    x = add([x, y, y]) if is_first else add([x, y])
    x = add([x, y]) if is_first else add([x, y, y])
    source = Model(inputs, layers.Dense(2, name="last")(x))
    sounds = np.random.default_rng(0).random((4, 9, 3)).astype(np.float32)
    model, _ = quantize(source, head=None, **FLOAT)
    np.testing.assert_allclose(model(sounds), source(sounds), rtol=1e-4, atol=1e-5)
    assert lower(quantize(source, 8, 8, head=None)[0])
