"""Layers that make one value of several, end to end: converted, trained, exported, and proven."""

import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import quantize
from dlqat_tf._compat import convnext_layers
from dlqat_tf.export import parity, to_lce, to_tflite
from tests.convert.networks import FLOAT, alive, conv_norm

layers = tf.keras.layers


def merged(merge):
    """Two branches, what makes one of them, and a classifier."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.ReLU(name="first_relu")(conv_norm(inputs, 8, 3, name="first"))
    y = layers.ReLU(name="left_relu")(conv_norm(x, 8, 3, name="left"))
    x = merge(x, y, conv_norm(x, 8, 3, name="right"))
    x = layers.ReLU(name="last_relu")(conv_norm(x, 8, 3, name="last"))
    return tf.keras.Model(inputs, layers.Dense(5, name="scores")(layers.Flatten(name="flat")(x)))


def excited(x, y, z):
    """Squeeze and excitation: a gate for each channel."""
    gate = layers.GlobalAveragePooling2D(name="squeeze")(x)
    gate = layers.Reshape((1, 1, 8), name="squeezed")(gate)
    gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="expand")(gate)
    return layers.Multiply(name="excite")([y, gate])


# Operations of the file that compute with two tensors of codes.
MERGES = {
    "excited": (excited, {"MUL": 1}),
    "subtract": (lambda x, y, z: layers.Subtract(name="merge")([y, z]), {"SUB": 1}),
    "operator": (lambda x, y, z: x * z - y, {"MUL": 1, "SUB": 1}),
    "maximum": (lambda x, y, z: layers.Maximum(name="merge")([x, y, z]), {"MAXIMUM": 2}),
    "minimum": (lambda x, y, z: tf.minimum(y, z), {"MINIMUM": 1}),
    "average": (lambda x, y, z: layers.Average(name="merge")([x, y, z]), {"CONCATENATION": 1}),
    "add": (lambda x, y, z: layers.Add(name="merge")([x, y, z]), {"ADD": 2}),
}


@pytest.mark.parametrize("name", MERGES)
def test_trains_exports_and_matches(name, tmp_path):
    merge, operations = MERGES[name]
    tf.keras.utils.set_random_seed(0)
    model, labels = merged(merge), np.arange(32) % 5
    images = alive(model, (32, 6, 6, 3))
    same, _ = quantize(model, head=None, **FLOAT, images=images)
    expected, computed = (np.asarray(each(images, training=False)) for each in (model, same))
    np.testing.assert_allclose(computed, expected, atol=0.03 * np.abs(expected).max())
    converted, report = quantize(model, 2, 4, "gml", images=images, labels=labels)
    assert not [note for note in report.notes if "float" in note]
    converted.compile(tf.keras.optimizers.Adam(1e-3), dlqat_tf.GMLoss())
    converted.fit(images, labels, epochs=1, verbose=0)
    for export in (to_tflite, to_lce):
        exported = export(converted, tmp_path / f"{export.__name__}.tflite")
        snapped = tf.keras.models.load_model(exported.snapped)
        assert parity(snapped, exported.path, images, labels).failures(keras_agreement=90) == []
        if export is to_tflite:
            assert exported.census.islands == []
            assert exported.census.operators.items() >= operations.items()
            # Of what the classifier reads, and of its weights.
            assert exported.census.operators["DEQUANTIZE"] == 2


_scale, _depth = convnext_layers()
# What stands between a small branch and the sum that it comes to, and what the quantizer follows.
BETWEEN = {
    "nothing": (lambda z: z, "right_bn"),
    "identity": (layers.Activation("linear"), "right_bn"),
    "dropout": (layers.Dropout(0.1), "right_bn"),
    "moves": (lambda z: layers.Reshape((6, 6, 8))(layers.Flatten()(z)), "right_bn"),
    "convnext": (lambda z: _depth(0.1)(_scale(1e-6, 8, name="scale")(z)), "scale"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_branch_far_smaller_than_what_it_is_added_to(tmp_path, name):
    """As one with ConvNeXt's layer scale begins: its own range would be no ratio of int8 adds."""
    between, rounded = BETWEEN[name]
    tf.keras.utils.set_random_seed(0)
    model = merged(lambda x, y, z: layers.Add(name="merge")([y, between(z)]))
    images = alive(model, (32, 6, 6, 3))
    for variable in model.get_layer("right_bn").trainable_weights:
        variable.assign(1e-6 * variable)
    result, _ = quantize(model, 8, 8, "linear", images=images)
    left, right = (result.get_layer(name) for name in ("left_relu", f"{rounded}_residual"))
    step = float(left.alpha) / left.codes.highest / 64
    assert float(right.alpha) / right.codes.highest == pytest.approx(step)
    report = to_tflite(result, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert parity(snapped, report.path, images).agreement["simulation_file"] == 100.0


def test_two_relus_of_one_value(tmp_path):
    """As in NASNet: an operation of the file ends on one grid, and each ReLU has its own."""
    tf.keras.utils.set_random_seed(0)
    model = merged(lambda x, y, z: layers.ReLU(name="a")(z) + layers.ReLU(6.0, name="b")(z))
    images = alive(model, (32, 6, 6, 3))
    result, _ = quantize(model, 8, 8, "linear", images=images)
    rounded = {layer.name for layer in result.layers if hasattr(layer, "alpha")}
    assert rounded >= {"right_bn_residual", "a", "b"}
    assert "left_bn_residual" not in rounded  # which one ReLU reads
    report = to_tflite(result, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert parity(snapped, report.path, images).agreement["simulation_file"] == 100.0


def side_by_side():
    """ReLUs whose outputs come together, and with others again behind a pool, as in Inception."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    first = layers.ReLU(6.0, name="first")(conv_norm(inputs, 8, 3, name="a"))
    left = layers.ReLU(6.0, name="left")(conv_norm(first, 4, 3, name="b"))
    right = layers.ReLU(name="right")(conv_norm(first, 4, 1, name="c"))
    fused = layers.Conv2D(4, 1, activation="relu", name="fused")(first)
    x = layers.Concatenate()([left, right, fused])
    y = layers.ReLU(name="strided")(conv_norm(x, 4, 3, 2, name="d"))
    x = layers.Concatenate()([layers.MaxPooling2D(2)(x), y])
    x = layers.ReLU(name="last")(conv_norm(x, 8, 3, name="e"))
    return tf.keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("bits", "method", "kernels"),
    [
        ((8, 8), "sat", "xnnpack"),
        ((4, 4), "sat", "xnnpack"),
        ((2, 2), "sat", "builtin"),
        ((1, 2), "sat", "xnnpack"),
        ((2, 2), "lsq", "xnnpack"),
    ],
)
def test_relus_that_come_together(tmp_path, bits, method, kernels):
    """Those of 8 bits share a quantizer, the steps of others have a common one in the file."""
    tf.keras.utils.set_random_seed(0)
    source = side_by_side()
    images = alive(source, (64, 8, 8, 3))
    model, _ = quantize(source, *bits, "linear", images=images, method=method)
    together = ("left", "right", "fused_act", "strided")
    quantizers = {each.name for each in model.layers if getattr(each, "rectifies", False)}
    assert len(quantizers & set(together)) == (1 if bits == (8, 8) else 4)
    trained = {name: model.get_layer(name).grid().step for name in quantizers}
    report = to_tflite(model, tmp_path / "model.tflite", kernels=kernels)
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, images, trained=model)
    assert result.failures(trained_agreement=90) == []
    assert result.logit_difference["keras_file"] < 1e-5
    moved = {each.layer: each.relative for each in report.steps}
    assert moved.keys() <= set(together)
    assert bool(moved) == (bits != (8, 8))
    assert max(map(abs, moved.values()), default=0) < (0.07 if bits == (4, 4) else 0.01)
    for name, before in trained.items():
        after = snapped.get_layer(name).grid().step
        assert after / before - 1 == pytest.approx(moved.get(name, 0.0), abs=1e-7)
    plain = to_tflite(model, tmp_path / "plain.tflite", kernels=kernels, snap=False)
    assert plain.steps == []
    result = parity(model, plain.path, images)
    assert result.failures(keras_agreement=80) == []


def dense_block(side, end=None):
    """As behind DenseNet's stem: a ReLU's values beside those of what reads them."""
    inputs = tf.keras.Input((8, 8, 3), name="images")
    x = layers.ReLU(end, name="stem")(conv_norm(inputs, 8, 3, name="a"))
    x = layers.MaxPooling2D(2)(x)
    for i in range(2):
        y = layers.ReLU(name=f"inner{i}")(layers.BatchNormalization(name=f"norm{i}")(x))
        x = layers.Concatenate()([x, side(y)])
    x = layers.ReLU(name="last")(conv_norm(x, 16, 3, name="d"))
    return tf.keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


BESIDE = {
    "signed": lambda x: layers.Conv2D(4, 3, padding="same")(x),
    "pools": layers.AveragePooling2D(3, 1, "same"),
}


@pytest.mark.parametrize(
    ("beside", "end", "bits"),
    [("signed", None, 8), ("signed", 6.0, 8), ("pools", None, 8), ("signed", None, 4)],
)
def test_a_relu_beside_other_values(tmp_path, beside, end, bits):
    """One of 8 bits shares their quantizer, which it stays in front of."""
    tf.keras.utils.set_random_seed(0)
    source = dense_block(BESIDE[beside], end)
    images = alive(source, (64, 8, 8, 3))
    model, report = quantize(source, bits, bits, "linear", images=images)
    stem = model.get_layer("stem")
    assert isinstance(stem, layers.ReLU) == (bits == 8)
    if bits == 8:
        assert stem.max_value == end
        (reader,) = (node.layer for node in stem.outbound_nodes)
        assert reader.signed == (beside == "signed")
        assert len(reader.inbound_nodes) == 3  # the stem's, and those of two blocks
        (row,) = (row for row in report.conversions if row.layer == "stem")
        assert (row.became, row.activation_bits) == ("ReLU", 8)
    exported = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    result = parity(snapped, exported.path, images)
    assert result.failures() == []
    assert result.logit_difference["keras_file"] < 1e-5


def test_a_relu_beside_other_values_keeps_what_an_override_says():
    tf.keras.utils.set_random_seed(0)
    source = dense_block(BESIDE["signed"])
    for overrides in ({"stem": {"activation_bits": 8}}, {"stem": {"activation_bits": 5}}):
        model, _ = quantize(source, 8, 8, overrides=overrides)
        assert model.get_layer("stem").bits == overrides["stem"]["activation_bits"]
    model, _ = quantize(source, 8, 8, residual_bits=6)
    assert model.get_layer("stem").bits == 8


def test_the_last_relus_that_come_together_share_a_quantizer(tmp_path):
    """What feeds the last layer has 8 bits, whatever the others have, as in SqueezeNet."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((8, 8, 3), name="images")
    first = layers.ReLU(name="first")(conv_norm(inputs, 8, 3, name="a"))
    branches = [layers.Conv2D(4, size, 1, "same", activation="relu")(first) for size in (1, 3)]
    scores = layers.Conv2D(5, 1, name="scores")(layers.Concatenate()(branches))
    source = tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(scores))
    images = alive(source, (64, 8, 8, 3))
    model, _ = quantize(source, 4, 4, None, images=images)
    relus = [each for each in model.layers if getattr(each, "rectifies", False)]
    assert [each.bits for each in relus] == [4, 8]
    exported = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    result = parity(snapped, exported.path, images)
    assert result.failures() == []
    assert result.logit_difference["keras_file"] < 1e-5


def test_relus_that_come_together_in_front_of_float_have_a_range_each(tmp_path):
    """The last dense layer computes in float, on values of any grid."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((8, 8, 3), name="images")
    first = layers.ReLU(name="first")(conv_norm(inputs, 8, 3, name="a"))
    branches = [layers.Conv2D(4, size, 1, "same", activation="relu")(first) for size in (1, 3)]
    pooled = layers.GlobalAveragePooling2D()(layers.Concatenate()(branches))
    source = tf.keras.Model(inputs, layers.Dense(5)(layers.Dropout(0.1)(pooled)))
    images = alive(source, (64, 8, 8, 3))
    model, _ = quantize(source, 8, 8, "linear", images=images)
    assert sum(isinstance(each, dlqat_tf.CGPACT) for each in model.layers) == 3
    exported = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(exported.snapped)
    assert parity(snapped, exported.path, images).failures() == []


@pytest.mark.parametrize("merge", [layers.Add, layers.Subtract, layers.Multiply])
def test_a_result_far_smaller_than_what_it_is_made_of(merge, tmp_path):
    """Of terms that are opposite, nearly equal, or nowhere both above zero."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    terms = [conv_norm(inputs, 8, 3, name=name) for name in ("left", "right")]
    if merge is layers.Multiply:
        terms = [layers.ReLU()(term) for term in terms]
    x = layers.ReLU(name="result")(merge(name="merge")(terms))
    x = layers.Flatten()(layers.Conv2D(4, 1, activation="relu")(x))
    model = tf.keras.Model(inputs, layers.Dense(5)(x))
    images = alive(model, (32, 6, 6, 3))
    model.get_layer("right").set_weights(model.get_layer("left").get_weights())
    gamma, beta, *statistics = model.get_layer("left_bn").get_weights()
    gamma, beta = 10 * gamma, 10 * beta
    model.get_layer("left_bn").set_weights([gamma, beta, *statistics])
    sign = 1 if merge is layers.Subtract else -1
    model.get_layer("right_bn").set_weights([sign * gamma, sign * (beta - 1e-2), *statistics])
    result, _ = quantize(model, 8, 8, "linear", images=images)
    quantizers = [each.node.layer for each in result.get_layer("merge").input]
    steps = [float(each.alpha) / each.codes.highest for each in quantizers]
    unit = np.prod(steps) if merge is layers.Multiply else max(steps)
    assert float(result.get_layer("result").alpha) / 255 == pytest.approx(unit / 64)
    report = to_tflite(result, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert parity(snapped, report.path, images).agreement["simulation_file"] == 100.0


def test_terms_far_smaller_than_what_their_product_meets(tmp_path):
    """What is concatenated has one range, here 10^6 times what the product needs."""
    tf.keras.utils.set_random_seed(0)
    model = merged(
        lambda x, y, z: layers.Concatenate()(
            [layers.Multiply(name="merge")([y, z]), conv_norm(x, 8, 1)]
        )
    )
    images = alive(model, (32, 6, 6, 3))
    for name in ("left_bn", "right_bn"):
        for variable in model.get_layer(name).trainable_weights:
            variable.assign(1e-3 * variable)
    result, _ = quantize(model, 8, 8, "linear", images=images)
    report = to_tflite(result, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(report.snapped, compile=False)
    assert parity(snapped, report.path, images).agreement["simulation_file"] == 100.0
