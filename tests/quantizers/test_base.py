"""What all quantizers promise, and how Larq and Keras see them."""

import functools
import logging
import math

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import (
    CGPACT,
    PACT,
    ABCNetActivations,
    ABCNetWeights,
    BWNWeights,
    DoReFaActivations,
    DoReFaWeights,
    DSQActivations,
    DSQWeights,
    HAWQActivations,
    HAWQWeights,
    INQWeights,
    IRNetWeights,
    LQNetActivations,
    LQNetWeights,
    LSQActivations,
    LSQWeights,
    QuantizationNetworksWeights,
    SATWeights,
    SymmetricWeights,
    SYQWeights,
)
from dlqat_tf.quantizers import ActivationQuantizer, WeightQuantizer
from dlqat_tf.quantizers.base import check_bits

ALL = [SATWeights, SymmetricWeights, CGPACT, PACT]


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def mixed(request):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield tf.as_dtype(request.param.removeprefix("mixed_"))
    tf.keras.mixed_precision.set_global_policy(before)


@pytest.mark.parametrize("quantizer", ALL)
@pytest.mark.parametrize("bits", [0, 9, 31, -1, True, 2.0, "2", None, np.float32(2)])
def test_unsupported_widths(quantizer, bits):
    with pytest.raises(ValueError, match=r"Expected bits to be an integer from . to 8") as error:
        quantizer(bits)
    assert str(error.value).endswith(f"Received: bits={bits!r}.")


@pytest.mark.parametrize("quantizer", ALL)
def test_an_argument_that_there_is_not_has_a_close_name(quantizer):
    with pytest.raises(TypeError, match=r"no argument 'bit'\. Did you mean 'bits'\?"):
        quantizer(bit=2)
    with pytest.raises(TypeError, match=r"no argument 'qwxz'\.$"):
        quantizer(qwxz=2)


@pytest.mark.parametrize("quantizer", ALL)
def test_supported_widths(quantizer):
    lowest = 2 if quantizer is SymmetricWeights else 1
    for bits in (*range(lowest, 9), 32, np.int64(4)):
        assert quantizer(bits).precision == bits
        assert type(quantizer(bits).bits) is int


def test_methods_without_one_bit():
    with pytest.raises(ValueError, match=r"from 2 to 8, or 32 .*bits=1\."):
        SymmetricWeights(1)
    with pytest.raises(ValueError, match=r"from 2 to 8, or 32 .*bits=1\."):
        CGPACT(1, signed=True)


def test_check_bits_can_refuse_float():
    assert check_bits(8, allow_float=False) == 8
    with pytest.raises(ValueError, match=r"from 1 to 8\. Received: bits=32\."):
        check_bits(32, allow_float=False)


@pytest.mark.parametrize(
    "quantizer",
    [
        *(SATWeights(2), SATWeights(8), SymmetricWeights(8), DoReFaWeights(1), BWNWeights()),
        *(LSQWeights(2), HAWQWeights(4), IRNetWeights(), SYQWeights(1), INQWeights(2)),
        *(LQNetWeights(2), ABCNetWeights(2), DSQWeights(1), QuantizationNetworksWeights(1)),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_nan_is_not_hidden(quantizer):
    kernel = np.float32([[1.0, np.nan], [0.5, -0.25]])
    assert np.isnan(quantizer(kernel)[0, 1])
    with pytest.raises(ValueError, match=r"finite values. Received: NaN .* of shape \(2, 2\)"):
        quantizer.grid(kernel)
    with pytest.raises(ValueError, match="finite values"):
        quantizer.grid(np.float32([[np.inf]]))


def test_integers_are_rounded_to_steps_and_not_to_integers():
    for dtype in (np.uint8, np.int32, np.int64):
        outputs = CGPACT(2, 2.0)(np.array([0, 1, 2, 3], dtype))
        assert outputs.dtype == tf.float32
        np.testing.assert_allclose(outputs, [0, 4 / 3, 2, 2], rtol=1e-6)


@pytest.mark.parametrize("quantizer", [SATWeights(32), SymmetricWeights(32)])
def test_float_weights_have_no_grid(quantizer):
    with pytest.raises(ValueError, match=r"\(bits=32\) does not round"):
        quantizer.grid(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\(bits=32\) does not round"):
        quantizer.planes(np.ones((2, 2)))


@pytest.mark.parametrize("quantizer", [SATWeights(8), SymmetricWeights(4)])
def test_a_level_at_zero_is_no_sum_of_planes(quantizer):
    with pytest.raises(ValueError, match=rf"\(bits={quantizer.bits}\) has levels other than"):
        quantizer.planes(np.float32([[1.0, 0.0]]))


def test_planes_by_hand():
    # codes -3, -1, 1, 3 in units of 1/3, which are -2-1, -2+1, 2-1, 2+1
    planes = SATWeights(2).planes(np.float32([-2.0, -0.3, 0.3, 2.0]))
    np.testing.assert_array_equal([sign for sign, _ in planes], [[-1, 1, -1, 1], [-1, -1, 1, 1]])
    np.testing.assert_allclose([scale for _, scale in planes], [1 / 3, 2 / 3])
    assert all(sign.dtype == np.int8 and scale.dtype == np.float32 for sign, scale in planes)


def test_base_classes_say_what_is_missing():
    with pytest.raises(ValueError, match="no equidistant levels; ask for planes"):
        WeightQuantizer(2).grid(np.ones(2))
    with pytest.raises(ValueError, match="no equidistant levels"):
        ActivationQuantizer(2).grid()
    with pytest.raises(NotImplementedError):
        WeightQuantizer(2)(tf.ones(2))


@pytest.mark.parametrize("layer", [lq.layers.QuantConv2D(2, 1), lq.layers.QuantDense(2)])
@pytest.mark.parametrize(
    ("identifier", "cls", "bits"),
    [
        ("sat_weights", SATWeights, 1),
        ("dlqat_tf>SATWeights", SATWeights, 1),
        (SATWeights(3), SATWeights, 3),
        ({"class_name": "dlqat_tf>SATWeights", "config": {"bits": 4}}, SATWeights, 4),
        (lq.quantizers.serialize(SATWeights(5)), SATWeights, 5),
        (lq.quantizers.serialize(SATWeights(6), use_legacy_format=True), SATWeights, 6),
        ("symmetric_weights", SymmetricWeights, 8),
    ],
)
def test_kernel_quantizer_by_object_string_and_config(layer, identifier, cls, bits):
    layer = type(layer).from_config({**layer.get_config(), "kernel_quantizer": identifier})
    layer.build((None, 1, 1, 3) if "conv" in layer.name else (None, 3))
    assert type(layer.kernel_quantizer) is cls
    assert layer.kernel.precision == bits
    with lq.context.quantized_scope(True):
        used = tf.convert_to_tensor(layer.kernel)
    np.testing.assert_array_equal(used, cls(bits)(layer.kernel.latent_variable))


@pytest.mark.parametrize(
    ("identifier", "bits"),
    [
        (SATWeights(3), 3),
        ("sat_weights", 1),
        ({"class_name": "dlqat_tf>SATWeights", "config": {"bits": 4}}, 4),
    ],
)
@pytest.mark.parametrize(
    ("layer", "kernels"),
    [
        (lq.layers.QuantDepthwiseConv2D(2), ["depthwise"]),
        (lq.layers.QuantSeparableConv2D(5, 2), ["depthwise", "pointwise"]),
    ],
)
def test_depthwise_and_pointwise_quantizers(layer, kernels, identifier, bits):
    quantizers = {f"{kernel}_quantizer": identifier for kernel in kernels}
    layer = type(layer).from_config(
        {**layer.get_config(), **quantizers, "input_quantizer": "pact", "use_bias": False}
    )
    inputs = tf.random.stateless_uniform((1, 3, 3, 2), (0, 1))
    outputs = layer(inputs)
    assert type(layer.input_quantizer) is PACT
    x = layer.input_quantizer(inputs)
    used = [
        SATWeights(bits)(getattr(layer, f"{kernel}_kernel").latent_variable) for kernel in kernels
    ]
    x = tf.nn.depthwise_conv2d(x, used[0], (1, 1, 1, 1), "VALID")
    if len(used) > 1:
        x = tf.nn.conv2d(x, used[1], 1, "VALID")
    np.testing.assert_allclose(outputs, x, rtol=1e-5, atol=1e-6)
    assert all(getattr(layer, f"{kernel}_kernel").precision == bits for kernel in kernels)


@pytest.mark.parametrize(("alias", "cls"), [("cg_pact", CGPACT), ("pact", PACT)])
def test_activation_aliases(alias, cls):
    assert type(lq.quantizers.get(alias)) is cls
    assert lq.quantizers.get(alias).bits == 2


def test_summary_shows_the_bits():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((4, 4, 3)),
            lq.layers.QuantConv2D(2, 3, kernel_quantizer=SATWeights(3), use_bias=False),
            tf.keras.layers.Flatten(),
            lq.layers.QuantDense(
                5, kernel_quantizer=SATWeights(1), input_quantizer=CGPACT(4), use_bias=False
            ),
        ]
    )
    lines = []
    lq.models.summary(model, print_fn=lines.append)
    table = "\n".join(lines)
    assert all(f"# {bits}-bit" in table for bits in (1, 3))
    conv, dense = (
        next(line for line in table.splitlines() if f"| {layer.name} " in line)
        for layer in (model.layers[0], model.layers[2])
    )
    # name, input bits, outputs, 1-bit, 3-bit and 32-bit weights
    assert [cell for cell in conv.split() if cell.isdigit()][:3] == ["0", "54", "0"]
    assert [cell for cell in dense.split() if cell.isdigit()][:4] == ["4", "40", "0", "1"]


def starvation_warnings(caplog, create):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="larq.layers_base"):
        create()
    return [record for record in caplog.records if "starved weights" in record.getMessage()]


def test_no_starvation_warning_for_our_quantizers(caplog):
    conv, depthwise = lq.layers.QuantConv2D, lq.layers.QuantDepthwiseConv2D
    ours, larqs = SATWeights(1), lq.quantizers.SteSign()
    assert not starvation_warnings(caplog, lambda: conv(2, 3, kernel_quantizer=ours))
    assert not starvation_warnings(caplog, lambda: depthwise(3, depthwise_quantizer=ours))
    assert starvation_warnings(caplog, lambda: conv(2, 3, kernel_quantizer=larqs))
    assert starvation_warnings(caplog, lambda: depthwise(3, depthwise_quantizer=larqs))
    separable = functools.partial(lq.layers.QuantSeparableConv2D, 2, 3)
    assert not starvation_warnings(caplog, lambda: separable(pointwise_quantizer=ours))
    mixed = dict(depthwise_quantizer=ours, pointwise_quantizer=larqs)
    (warning,) = starvation_warnings(caplog, lambda: separable(**mixed))
    assert "`pointwise_quantizer`" in warning.getMessage()


@pytest.mark.parametrize("create", [lambda: SATWeights(2), lambda: SATWeights(8), SymmetricWeights])
def test_weights_compute_in_float32_under_a_mixed_policy(mixed, create):
    kernel = tf.cast(tf.random.stateless_normal((40, 4), (1, 2)), mixed)
    quantized = create()(kernel)
    assert quantized.dtype == mixed
    grid = create().grid(tf.cast(kernel, tf.float32))
    np.testing.assert_array_equal(quantized, tf.cast(grid.codes * grid.step, mixed))


@pytest.mark.parametrize("bits", [2, 8])
def test_activations_compute_in_float32_under_a_mixed_policy(mixed, bits):
    x = tf.cast(tf.random.stateless_normal((200,), (1, 2)) * 3, mixed)
    quantizer = CGPACT(bits, 2.7)
    y = quantizer(x)
    assert y.dtype == mixed
    assert quantizer.alpha.dtype == tf.float32
    np.testing.assert_array_equal(
        y, tf.cast(CGPACT(bits, 2.7, dtype="float32")(tf.cast(x, tf.float32)), mixed)
    )


def test_a_quantized_network_trains_under_a_mixed_policy(mixed):
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            tf.keras.Input((5, 5, 2)),
            lq.layers.QuantConv2D(3, 3, kernel_quantizer=SATWeights(2)),
            CGPACT(2, 1.0),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile("sgd", "mse")
    before = model.get_weights()
    images = np.random.default_rng(0).normal(size=(4, 5, 5, 2))
    # several steps: float16 starts by finding a loss scale that does not overflow
    history = model.fit(images, np.ones(4), epochs=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


def test_under_a_mixed_policy_the_codes_in_use_are_those_of_the_16_bit_kernel(mixed):
    # Larq quantizes what Keras has cast already, so whoever wants the integers behind a layer's
    # outputs has to cast the latent kernel to the layer's compute type first.
    layer = lq.layers.QuantDense(
        4, kernel_quantizer=SATWeights(8), use_bias=False, kernel_initializer="random_normal"
    )
    used = np.asarray(layer(tf.eye(100)), np.float32)
    grid = layer.kernel_quantizer.grid(tf.cast(layer.kernel.latent_variable, layer.compute_dtype))
    np.testing.assert_array_equal(np.rint(used * 127), grid.codes)


class _Owner(tf.keras.layers.Layer):
    def __init__(self, quantizer, name=None):
        super().__init__(name=name)
        self.quantizer = quantizer

    def call(self, inputs):
        return self.quantizer(inputs)


@pytest.mark.parametrize(
    "second",
    [
        lambda shared: lq.layers.QuantConv2D(3, 1, input_quantizer=shared, name="second"),
        lambda shared: tf.keras.layers.Conv2D(3, 1, activation=shared, name="second"),
        lambda shared: _Owner(shared, name="second"),
    ],
)
def test_one_range_in_two_layers_is_refused_when_the_second_is_built(second):
    shared = CGPACT(2, name="shared")
    x = lq.layers.QuantConv2D(3, 1, input_quantizer=shared, name="first")(tf.keras.Input((4, 4, 3)))
    with pytest.raises(ValueError, match=r"CGPACT of its own.*'shared' in 'first' and 'second'"):
        second(shared)(x)


def test_a_quantizer_is_a_layer_or_part_of_one():
    inputs, shared = tf.keras.Input((4,)), CGPACT(2, name="shared")
    x = shared(inputs)
    with pytest.raises(ValueError, match="'shared' in 'owner' and a model"):
        _Owner(shared, name="owner")(x)
    shared = CGPACT(2, name="shared")
    x = _Owner(shared, name="owner")(inputs)
    with pytest.raises(ValueError, match="'shared' in 'owner' and a model"):
        shared(x)


def test_one_quantizer_may_stand_in_many_places_of_a_model(tmp_path):
    inputs, shared, free = tf.keras.Input((4,)), CGPACT(2), SATWeights(2)
    inner = tf.keras.Model(inputs, shared(shared(inputs)))
    dense = lq.layers.QuantDense(4, kernel_quantizer=free, input_quantizer=CGPACT(2))
    x = dense(dense(inner(inner(inputs))))
    # What learns nothing may be given to any number of layers.
    x = lq.layers.QuantDense(4, kernel_quantizer=free, input_quantizer=CGPACT(32))(x)
    model = tf.keras.Model(inputs, x)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    values = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded(values), model(values))


def last_share(quantizer, started):
    """What a batch of no images does to a quantizer, and its gradients, which are to be zero."""
    if started:
        quantizer(tf.constant([[1.0, 3.0]]), training=True)
    quantizer.build((None, 2))
    before = [variable.numpy() for variable in quantizer.variables]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(tf.zeros((0, 2)), training=True))
    for gradient in tape.gradient(total, quantizer.trainable_variables):
        assert not np.any(gradient.numpy()), gradient
    for variable, value in zip(quantizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, variable.name)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        CGPACT,
        PACT,
        DoReFaActivations,
        LSQActivations,
        HAWQActivations,
        LQNetActivations,
        ABCNetActivations,
        DSQActivations,
    ],
)
def test_a_batch_without_images_changes_nothing(kind, started):
    last_share(kind(2), started)


@pytest.mark.parametrize("kind", [LSQActivations, DSQActivations, HAWQActivations])
def test_a_batch_that_overflowed_starts_nothing(kind):
    quantizer, other, values = kind(2), kind(2), tf.constant([[1.0, 3.0]])
    quantizer(tf.constant([[math.inf, 1.0]]), training=True)
    with pytest.raises(ValueError, match="train it for a step first"):
        quantizer.grid()
    quantizer(values, training=True)
    other(values, training=True)
    assert quantizer.grid() == other.grid()
