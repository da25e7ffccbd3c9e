"""Bits by layer: traces against whole Hessians, choices against all that there are."""

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import choose_bits, methods, quantize, resnet18
from dlqat_tf.convert import ConversionError
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.overrides import Overrides
from dlqat_tf.mixed_precision import BIT_OPERATIONS
from dlqat_tf.mixed_precision.candidates import Candidates, _errors, _kernel_error
from dlqat_tf.mixed_precision.sensitivity import Curvature, Trace, estimate
from dlqat_tf.summary import predict

layers = tf.keras.layers
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.random((12, 6, 6, 3)).astype(np.float32)
LABELS = GENERATOR.integers(0, 3, 12)
WEIGHTS, ACTIVATIONS = (1, 2, 4), (2, 4)
# Multiply-accumulates: 4x4 positions of 3x3x3 to 4, then 1x1 from 4 to 8, from 8 to 4; 4 to 3 once.
MACS = {"first": 16 * 27 * 4, "a": 16 * 32, "b": 16 * 32, "scores": 12}


def source(softmax=False):
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.ReLU(name="first_relu")(layers.Conv2D(4, 3, name="first")(inputs))
    x = layers.Conv2D(8, 1, activation="relu", name="a")(x)
    x = layers.Conv2D(4, 1, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    activation = "softmax" if softmax else None
    return tf.keras.Model(inputs, layers.Dense(3, activation=activation, name="scores")(x))


def network(model, activation_bits=2, overrides=None):
    widths = {"weight_bits": 2, "activation_bits": activation_bits, "residual_bits": 8}
    return Network(model, Overrides(overrides or {}), None, widths)


def test_estimates():
    """Of 1, 2 and 3: mean 2, deviation 1, error 1 / sqrt(3)."""
    trace = estimate(np.array([1.0, 2.0, 3.0]))
    assert trace.mean == 2
    assert trace.standard_error == pytest.approx(3**-0.5)
    assert trace.curvature == 2
    assert Trace(-1.0, 0.5).curvature == 0.5


@pytest.mark.parametrize("softmax", [False, True])
def test_traces_are_those_of_the_whole_hessian(softmax):
    images, labels = IMAGES[:3], LABELS[:3]
    model = source(softmax)
    kernel = model.get_layer("b").kernel
    calls = network(model)
    (place,) = [call for call in calls.calls if call.name == "a"]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            outputs = model(images)
            entropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
            loss = entropy(labels, outputs)
        gradient = inner.gradient(loss, kernel)
    hessian = outer.jacobian(gradient, kernel)
    expected = float(tf.linalg.trace(tf.reshape(hessian, (32, 32))))
    rest = tf.keras.Sequential([model.get_layer(name) for name in ("b", "features", "scores")])
    values = tf.keras.Model(model.input, model.get_layer("a").output)(images)
    traces = []
    for value, label in zip(values, labels, strict=True):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(value)
            with tf.GradientTape() as inner:
                inner.watch(value)
                loss = entropy([label], rest(value[None]))
            gradient = inner.gradient(loss, value)
        hessian = outer.jacobian(gradient, value, experimental_use_pfor=False)
        traces.append(float(tf.linalg.trace(tf.reshape(hessian, (128, 128)))))
    curvature = Curvature(calls, images, labels, {"b": kernel}, [place])
    samples = curvature.samples(150, seed=0)
    for key, whole in (("b", expected), (place, np.mean(traces))):
        trace = estimate(np.array(samples[key]))
        assert trace.standard_error < 0.2 * abs(whole)
        assert abs(trace.mean - whole) < 4 * trace.standard_error
    np.testing.assert_allclose(curvature.values[place], values, rtol=1e-5)
    assert curvature.samples(2, seed=1)["b"] != samples["b"][:2]


def branches():
    """Functions with and without codes below zero, and two ReLUs of unlike size that meet."""
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.Activation("swish", name="swish")(layers.Conv2D(4, 1, name="first")(inputs))
    x = layers.Activation("tanh", name="tanh")(layers.Conv2D(4, 1, name="second")(x))
    left = layers.Conv2D(3, 1, activation="relu", name="left")(x)
    right = layers.Conv2D(3, 1, activation="relu", name="right")(x)
    right.node.layer.kernel.assign(right.node.layer.kernel * 50)
    x = layers.Conv2D(4, 1, activation="relu", name="joined")(layers.Concatenate()([left, right]))
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, layers.Dense(3, name="scores")(x))


def repeated(is_output=False):
    """One ReLU behind two hidden kernels and at the end, where values are 10 times as large."""
    tf.keras.utils.set_random_seed(1)
    relu = layers.ReLU(name="relu")
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = relu(layers.Conv2D(4, 3, name="first")(inputs))
    x = relu(layers.Conv2D(4, 1, name="a")(x))
    x = layers.Conv2D(4, 1, name="b")(x)
    x.node.layer.kernel.assign(x.node.layer.kernel * 10)
    x = layers.GlobalAveragePooling2D()(relu(x))
    x = layers.Dense(3, name="scores")(x)
    return tf.keras.Model(inputs, relu(x) if is_output else x)


def returned():
    return repeated(is_output=True)


def errors_of_conversion(model, calls, bits, overrides, images=IMAGES):
    """Return the errors of the outputs of some calls by the quantizers of the converted network."""
    options = dict(overrides=overrides, images=images, head=None, preprocessing="values")
    quantized, _ = quantize(model, 2, bits, **options)
    outputs = []
    for name, same in itertools.groupby(calls, lambda call: call.name):
        outputs += [model.get_layer(name).get_output_at(i) for i, _ in enumerate(same)]
    values = tf.keras.Model(model.input, outputs)(images)
    found = {}
    for (call, place), value in zip(calls.items(), tf.nest.flatten(values), strict=True):
        rounded = quantized.get_layer(place.name)(value).numpy()
        found[call] = np.square(rounded - value.numpy()).mean(), value
    return found


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (branches, ["swish", "tanh", "left", "right"]),
        (repeated, ["relu", "relu", "relu"]),
        (returned, ["relu", "relu", "relu"]),
    ],
)
def test_errors_of_activations_are_those_of_the_converted_network(make, names, bits):
    images = np.tile(IMAGES, (2, 1, 1, 1))
    images[0] *= 1000  # of another size, which ranges leave out
    model = make()
    overrides = {"relu": {"activation_bits": bits}} if make is not branches else {}
    other = network(model, bits, overrides)
    calls = {call: place for call, place in other.places.items() if call.name in names}
    expected = errors_of_conversion(model, calls, bits, overrides, images)
    before = network(model, 3)
    places = [call for call in before.places if call.name in names]
    found = _errors(
        before,
        other,
        {call: value for call, (_, value) in zip(places, expected.values(), strict=True)},
    )
    assert [call.name for call in found] == names
    for error, (converted, _) in zip(found.values(), expected.values(), strict=True):
        assert error == pytest.approx(converted, 1e-4)


@pytest.mark.parametrize(
    ("make", "names", "hidden", "kernels"),
    [
        (
            branches,
            ["left", "right"],
            ["swish", "tanh", "left", "right"],
            ["second", "left", "right", "joined"],
        ),
        (repeated, ["relu"], ["relu"], ["a", "b"]),
    ],
)
def test_activations_of_one_width_have_an_increase_each(make, names, hidden, kernels):
    """What meets, or is of one layer; in the latter case also where that is called last."""
    model = make()
    overrides = {name: {"activation_bits": 2} for name in hidden}
    calls = network(model, 2, overrides)
    variables = {name: model.get_layer(name).kernel for name in kernels}
    places = [call for name in hidden for call in calls.places if call.name == name]
    together = {call: calls.places[call] for call in places if call.name in names}
    curvature = Curvature(calls, IMAGES, LABELS, variables, places)
    samples = curvature.samples(4, seed=0)
    errors = errors_of_conversion(model, together, 2, overrides)
    _, report = choose_bits(
        model,
        IMAGES,
        LABELS,
        weight_bits=(2,),
        activation_bits=(1, 2, 4, 8),
        bit_operations=1e9,
        probes=4,
    )
    (found,) = [each for each in report.layers if each.layer == " + ".join(names)]
    traces = [np.array(samples[call]) for call in together]
    assert found.trace == pytest.approx(np.mean(sum(traces)), 1e-4)
    increases = [
        estimate(trace).curvature * error / 2
        for trace, (error, _) in zip(traces, errors.values(), strict=True)
    ]
    assert found.increase[2] == pytest.approx(sum(increases), 1e-4)
    by_bits = list(found.increase.values())
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_bits[0] > 10 * by_bits[-1]


def test_one_width_for_all_calls_of_a_layer():
    """One ReLU that a sum reads with another one, and that is behind one more kernel besides."""
    tf.keras.utils.set_random_seed(1)
    relu = layers.ReLU(name="relu")
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.Conv2D(4, 1, activation="relu", name="left")(inputs)
    meeting = layers.Concatenate()([x, relu(layers.Conv2D(4, 1, name="right")(inputs))])
    x = relu(layers.Conv2D(4, 1, name="a")(meeting))
    x = layers.Conv2D(4, 1, activation="relu", name="b")(x)
    x = layers.Flatten()(relu(layers.Conv2D(2, 6, name="c")(x)))
    model = tf.keras.Model(inputs, layers.Dense(3, name="scores")(x))
    _, report = choose_bits(
        model,
        IMAGES,
        LABELS,
        weight_bits=(2,),
        activation_bits=(2, 4),
        bit_operations=1e9,
        probes=2,
    )
    chosen = [each.layer for each in report.layers if each.width == "activation_bits"]
    assert chosen == ["left + relu", "b"]
    for label, bits in (("W2A2", 2), ("W2A4", 4)):
        widths = {name: {"activation_bits": bits} for name in ("left", "relu", "b")}
        quantized, _ = quantize(model, 2, bits, overrides=widths)
        (point,) = [each for each in report.uniform if each.label == label]
        assert point.costs[BIT_OPERATIONS] == predict(quantized, []).bit_operations


def test_errors_of_kernels_are_those_of_conversion():
    """By BWN, exact once each output channel has its factor: of depthwise, of transposed ones."""
    depthwise, transposed = layers.DepthwiseConv2D(1), layers.Conv2DTranspose(2, 1)
    depthwise.build((None, 1, 1, 2))
    depthwise.depthwise_kernel.assign([[[[1.0], [3.0]]]])
    transposed.build((None, 1, 1, 3))
    transposed.kernel.assign([[[[1.0, -1.0, 1.0], [2.0, 2.0, -2.0]]]])
    for layer in (depthwise, transposed):
        assert _kernel_error(layer, methods.get("bwn"), 1) == pytest.approx(0, abs=1e-12)
    dense = layers.Dense(1, use_bias=False)
    dense.build((None, 2))
    dense.kernel.assign([[1.0], [3.0]])
    # Less their mean -1 and 1, whose factor is (3 - 1) / 2: both are off by 2.
    assert _kernel_error(dense, methods.get("bwn"), 1) == pytest.approx(4)


@pytest.fixture(scope="module")
def chosen():
    budget = 121_000  # between those of W1A2, 115,712, and W4A4, 130,048
    return budget, *choose_bits(
        source(),
        IMAGES,
        LABELS,
        weight_bits=WEIGHTS,
        activation_bits=ACTIVATIONS,
        bit_operations=budget,
        size={"declared": 10_000},
        probes=8,
    )


def bit_operations(a, b, first_relu, a_relu):
    ends = MACS["first"] * 64 + MACS["scores"] * 8 * 32  # the mean of the features is float
    return ends + MACS["a"] * a * first_relu + MACS["b"] * b * a_relu


def test_the_choice_is_the_best_of_all(chosen):
    budget, overrides, report = chosen
    budget = report.budgets[BIT_OPERATIONS]
    rises = {(each.layer, each.width): each.increase for each in report.layers}
    names = [("a", "weight_bits"), ("b", "weight_bits")]
    names += [("first_relu", "activation_bits"), ("a", "activation_bits")]
    assert list(rises) == names
    best = min(
        (sum(rises[name][bits] for name, bits in zip(names, each, strict=True)), each)
        for each in itertools.product(WEIGHTS, WEIGHTS, ACTIVATIONS, ACTIVATIONS)
        if bit_operations(*each) <= budget
    )
    assert report.chosen.increase == pytest.approx(best[0])
    a, b, first_relu, a_relu = best[1]
    assert overrides == {
        "a": {"weight_bits": a, "activation_bits": a_relu},
        "b": {"weight_bits": b},
        "first_relu": {"activation_bits": first_relu},
    }
    assert report.chosen.costs[BIT_OPERATIONS] == bit_operations(*best[1])


def test_its_costs_are_those_of_the_converted_network(chosen):
    _, overrides, report = chosen
    model, _ = quantize(source(), head=None, overrides=overrides)
    prediction = predict(model, [])
    assert prediction.bit_operations == report.chosen.costs[BIT_OPERATIONS]
    declared = {way.name: way.weight_bytes for way in prediction.storage}["declared"]
    assert declared == report.chosen.costs["declared"]


def test_the_report(chosen, tmp_path):
    _, _, report = chosen
    labels = [f"W{weight}A{activation}" for weight in WEIGHTS for activation in ACTIVATIONS]
    assert [point.label for point in report.uniform] == labels
    uniform = {point.label: point for point in report.uniform}
    assert uniform["W2A4"].costs[BIT_OPERATIONS] == bit_operations(2, 2, 4, 4)
    assert uniform["W4A4"].increase < uniform["W1A2"].increase
    for each in report.layers:
        widths = list(each.increase)
        assert widths == list(WEIGHTS if each.width == "weight_bits" else ACTIVATIONS)
        assert each.increase[widths[-1]] < each.increase[widths[0]]
        assert each.standard_error > 0
    curve = report.curve[BIT_OPERATIONS]
    assert curve[-1].increase == pytest.approx(uniform["W4A4"].increase)
    assert json.loads(report.to_json())["chosen"]["label"] == "chosen"
    report.print()
    report.draw(tmp_path / "trade_off.png")
    assert (tmp_path / "trade_off.png").read_bytes().startswith(b"\x89PNG")


def test_resnet18_takes_the_choice():
    float_model = resnet18(3, (8, 8, 3), None, None, width=2)
    images = GENERATOR.random((4, 8, 8, 3)).astype(np.float32)
    overrides, report = choose_bits(
        float_model,
        images,
        np.array([0, 1, 2, 0]),
        weight_bits=(1, 4),
        activation_bits=(2,),
        size={"declared": 25_000},
        probes=2,
    )
    assert len([each for each in report.layers if each.width == "weight_bits"]) == 19
    model = resnet18(3, (8, 8, 3), width=2, overrides=overrides)
    for name, rule in overrides.items():
        layer = model.get_layer(name)
        bits = layer.kernel_quantizer.bits if "weight_bits" in rule else layer.bits
        assert bits == rule.get("weight_bits", rule.get("activation_bits"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Expected a budget: size, bit_operations or latency"),
        ({"size": {"flash": 1}}, "of declared, int8, int4, lce. Received: 'flash'"),
        ({"size": 1}, "Expected size to be a dict .* Received: 1"),
        ({"size": {"lce": "1"}}, "budget for lce to be a number. Received: '1'"),
        ({"bit_operations": float("nan")}, "for bit operations to be a number. Received: nan"),
        ({"bit_operations": 1e9, "weight_bits": 4}, "weight_bits to be widths to choose from"),
        ({"bit_operations": 1}, r"at least 115,712 for bit operations.*Received: 1\."),
        ({"bit_operations": 1e9, "weight_bits": ()}, "Expected weight_bits to choose from"),
        ({"bit_operations": 1e9, "activation_bits": (9,)}, "activation_bits: Expected bits"),
        ({"bit_operations": 1e9, "method": "lsq"}, "weight_bits with method='lsq'"),
        ({"bit_operations": 1e9, "probes": 1}, "at least 2 probes"),
        (
            {"latency": (1.0, {"c": {}})},
            "by layer, of first, a, b, scores. Received: 'c'",
        ),
        ({"latency": (1.0, {"a": {}})}, r"latency of 'a' at \(1, 2\)"),
        ({"latency": (1.0, {"a": {(1, 2): np.nan}})}, r"at \(1, 2\) to be a finite .*: nan"),
        ({"latency": (1.0, {"a": {(1, 2): -1.0}})}, r"number of at least zero. Received: -1\.0"),
        ({"latency": 1.0}, r"a time and a dict of each layer's times. Received: 1\.0"),
        ({"latency": (1.0, {"a": 3})}, r"a time and a dict of each layer's times. .*'a': 3"),
        ({"bit_operations": 1e9, "seed": "0"}, "seed to be an integer of at least 0.*: '0'"),
        ({"bit_operations": 1e9, "seed": -1}, "seed to be an integer of at least 0.*: -1"),
        ({"bit_operations": 1e9, "method": []}, r"method to be one of sat, .*method=\[\]"),
        ({"size": {"flash": 1, 3: 1}}, "of declared, int8, int4, lce. Received: 'flash', 3"),
        ({"size": 1000}, r"a dict by way to store weights, of .*lce\. Received: 1000\."),
        ({"bit_operations": "1"}, "budget for bit operations to be a number. Received: '1'"),
        ({"bit_operations": 1e9, "probes": 2.5}, r"2 probes, an integer, .*Received: 2\.5"),
        ({"bit_operations": 1e9, "weight_bits": 1}, "Expected weight_bits to be widths to choose"),
    ],
    ids=str,
)
def test_bad_input(options, message):
    defaults = {"weight_bits": (1,), "activation_bits": (2,)}
    with pytest.raises(ValueError, match=message):
        choose_bits(source(), IMAGES, LABELS, **{**defaults, **options})


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS + 1, "labels from 0 to 2. Received: 1 to 3"),
        (IMAGES, LABELS - 1, "labels from 0 to 2. Received: -1 to 1"),
        (IMAGES, np.eye(3)[LABELS], r"one integer class per image, shape \(12,\)"),
        (IMAGES, None, r"one integer class per image, shape \(12,\)"),
        (iter(IMAGES), LABELS, "arrays of images of shapes"),
        (IMAGES[:0], LABELS[:0], "arrays of images of shapes"),
        (IMAGES * np.nan, LABELS, "images of finite values"),
    ],
    ids=range(7),
)
def test_bad_images_and_labels(images, labels, message):
    with pytest.raises(ConversionError, match=message):
        choose_bits(source(), images, labels, bit_operations=1e9)


def test_a_dataset_of_images_and_labels():
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(5)
    options = dict(weight_bits=(2,), activation_bits=(2,), bit_operations=1e9, probes=2)
    given = (dataset, None), (IMAGES, LABELS)
    found = [choose_bits(source(), *each, **options)[1] for each in given]
    assert found[0].chosen.increase == pytest.approx(found[1].chosen.increase, 1e-5)


def test_sizes_of_files_where_weights_follow_training():
    """INQ has no level of a weight before it is frozen, at the end."""
    costs = {
        method: candidates(source(), (2,), (2,), {"int8": 1e6}, method).costs(2, 2)[0]["int8"]
        for method in ("inq", "sat")
    }
    assert costs["inq"] == costs["sat"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_16_bits_has_the_traces_of_its_float32_weights(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = source()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    options = dict(weight_bits=(2,), activation_bits=(2,), bit_operations=1e9, probes=2)
    (_, found), (_, expected) = (
        choose_bits(m, IMAGES, LABELS, **options) for m in (model, source())
    )
    assert [each.trace for each in found.layers] == [each.trace for each in expected.layers]


def test_latencies_are_a_budget():
    """Two bits cost 3 where one costs 1, and there is time for one of the two.

    The widths are iterators, which can be read once.
    """
    table = {name: {(1, 2): 1.0, (2, 2): 3.0} for name in ("a", "b")}
    overrides, report = choose_bits(
        source(),
        IMAGES,
        LABELS,
        weight_bits=iter((1, 2)),
        activation_bits=iter((2,)),
        latency=(4.0, table),
        probes=2,
    )
    assert report.chosen.costs["latency"] == 4.0
    assert sorted(overrides[name]["weight_bits"] for name in ("a", "b")) == [1, 2]


def test_several_outputs():
    inputs = tf.keras.Input((4,))
    model = tf.keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(ConversionError, match="one input and one output"):
        choose_bits(model, np.ones((2, 4)), np.zeros(2, int), bit_operations=1)


def test_layers_without_planes_count_as_int8():
    """W2A8 has 16 planes, more than binary kernels run: such a network has no file of its own."""
    model = source()
    overrides, report = choose_bits(
        model,
        IMAGES,
        LABELS,
        weight_bits=(1, 2),
        activation_bits=(2, 8),
        size={"lce": 1e6},
        probes=2,
    )
    uniform = {point.label: point.costs["lce"] for point in report.uniform}
    for label, name in (("W1A2", "lce"), ("W2A8", "int8")):
        weight_bits, activation_bits = map(int, label[1:].split("A"))
        quantized, _ = quantize(model, weight_bits, activation_bits)
        (stored,) = [way for way in predict(quantized, [name]).storage if way.name == name]
        assert uniform[label] == stored.weight_bytes
    assert report.chosen.costs["lce"] == uniform["W2A8"]  # the best, which the budget has room for
    assert {each for choice in overrides.values() for each in choice.values()} == {2, 8}


def candidates(model, weight_bits, activation_bits, budgets, method="sat"):
    settings = dict(head=None, residual_bits=8, preprocessing=None, method=method)
    made = methods.get(method)
    return Candidates(model, weight_bits, activation_bits, made, settings, budgets, {})


@pytest.mark.parametrize("name", ["lsq", "hawq"])
def test_sizes_of_files_where_activations_start_from_a_batch(name):
    sizes = {
        method: candidates(source(), (2,), (2,), {"int8": 1e6}, method).costs(2, 2)[0]["int8"]
        for method in (name, "sat")
    }
    assert sizes[name] == sizes["sat"]


def test_layers_of_more_than_4_bits_count_as_int8():
    """Uniform networks of them have no int4 file of their own."""
    budgets = {"int4": 1e6, "int8": 1e6}
    mixed = candidates(source(), (2, 8), (2,), budgets)
    costs = {bits: mixed.costs(bits, 2)[0] for bits in (2, 8)}
    assert costs[2]["int4"] < costs[2]["int8"] == costs[8]["int8"] == costs[8]["int4"]
    with pytest.raises(ValueError, match=r"'int4', for its budget. With weights of 8 .*no conv"):
        candidates(source(), (8,), (2,), budgets).costs(8, 2)


def test_a_layer_of_few_bits_that_has_no_planes():
    """The only one of at most 9 planes is depthwise."""
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = layers.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depth")(x)
    x = layers.Conv2D(4, 1, activation="relu", name="hidden")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = tf.keras.Model(inputs, layers.Dense(3, name="scores")(x))
    rules = {"depth": {"weight_bits": 1}, "first": {"activation_bits": 2}}
    costs, _ = candidates(model, (1, 8), (2, 8), {"lce": 1e6, "int8": 1e6}).costs(8, 8, rules)
    assert costs["lce"] == costs["int8"]
