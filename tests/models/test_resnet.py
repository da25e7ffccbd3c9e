import functools
import subprocess
import sys

import larq as lq
import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf import CGPACT, CosineHead, GaussianMixtureHead, LinearHead, SATWeights, resnet18
from dlqat_tf.export import parity, to_lce, to_tflite


@functools.cache
def small(**settings):
    """A network that is cheap to build; shared by tests that only look at it."""
    return resnet18(**{"num_classes": 5, "input_shape": (8, 8, 3), "width": 8, **settings})


def layers(model, cls):
    return [layer for layer in model.layers if isinstance(layer, cls)]


def test_parameter_counts_at_imagenet_size():
    model = resnet18(1000, (224, 224, 3), stem="imagenet")
    kernels = [layer.kernel for layer in layers(model, lq.layers.QuantConv2D)]
    shortcuts = sum(int(np.prod(kernel.shape)) for kernel in kernels if kernel.shape[0] == 1)
    others = sum(int(np.prod(kernel.shape)) for kernel in kernels if kernel.shape[0] != 1)
    # 7 * 7 * 3 * 64 + 9 * (4 * 64^2 + (64 + 3 * 128) * 128 + (128 + 3 * 256) * 256
    #   + (256 + 3 * 512) * 512) + 512 * 1000
    assert others + model.get_layer("head").kernel.shape.num_elements() == 11_506_880
    assert shortcuts == 64 * 128 + 128 * 256 + 256 * 512 == 172_032
    # 17 alphas, 1000 biases, and four values for each of 4800 batch-norm channels
    assert model.count_params() == 11_506_880 + 172_032 + 17 + 1000 + 4 * 4800
    assert model.get_layer("features").output_shape == (None, 512)
    assert model.output_shape == (None, 1000)


def test_20_convolutions_and_17_activations_with_their_bits():
    model = small(weight_bits=3, activation_bits=4)
    convolutions = layers(model, lq.layers.QuantConv2D)
    assert len(convolutions) == 20
    assert not any(layer.use_bias for layer in convolutions)
    assert all(isinstance(layer.kernel_quantizer, SATWeights) for layer in convolutions)
    assert not any(layer.kernel_quantizer.scale_adjust for layer in convolutions)
    assert {layer.name: layer.kernel.precision for layer in convolutions} == {
        layer.name: 8 if layer.name == "stem_conv" else 3 for layer in convolutions
    }
    assert sum(layer.kernel_size == (1, 1) for layer in convolutions) == 3
    activations = layers(model, CGPACT)
    assert [layer.bits for layer in activations] == [4] * 16 + [8]
    assert activations[-1] is model.layers[-3]
    assert not any(layer.signed for layer in activations)
    assert model.get_layer("head").weight_bits == 8
    assert len(layers(model, tf.keras.layers.BatchNormalization)) == 20


def test_the_activation_follows_each_add():
    model = small()
    for layer in layers(model, tf.keras.layers.Add):
        (node,) = layer.outbound_nodes
        assert node.outbound_layer.name == layer.name.replace("_add", "_act")


def test_default_bits():
    model = small()
    assert model.get_layer("stage1_block1_1_conv").kernel.precision == 1
    assert model.get_layer("stage1_block1_1_act").bits == 2


def test_the_float_stage_has_clamped_weights_and_no_alpha():
    model = small(weight_bits=32, activation_bits=32)
    assert {layer.bits for layer in layers(model, CGPACT)} == {32}
    assert {layer.kernel.precision for layer in layers(model, lq.layers.QuantConv2D)} == {32}
    assert model.get_layer("head").weight_bits == 32
    assert not [weight.name for weight in model.weights if "alpha" in weight.name]


def test_the_plain_float_network_has_no_quantizer():
    model = small(weight_bits=None, activation_bits=None)
    assert not layers(model, (CGPACT, lq.layers.QuantConv2D))
    assert len(layers(model, tf.keras.layers.Conv2D)) == 20
    assert len(layers(model, tf.keras.layers.ReLU)) == 17
    assert model.get_layer("head").kernel_quantizer is None


def test_residual_bits_round_both_inputs_of_every_add():
    model = small(residual_bits=6)
    signed = [layer for layer in layers(model, CGPACT) if layer.signed]
    assert len(signed) == 8 + 3
    assert {layer.bits for layer in signed} == {6}
    assert {float(layer.alpha) for layer in signed} == {8.0}
    for add in layers(model, tf.keras.layers.Add):
        (node,) = add.inbound_nodes
        assert all(isinstance(layer, CGPACT) for layer in node.inbound_layers)


def test_ranges():
    alphas = [
        float(layer.alpha) for layer in layers(small(alpha_init=3.0, last_alpha_init=5.0), CGPACT)
    ]
    assert alphas == [3.0] * 16 + [5.0]
    assert [float(layer.alpha) for layer in layers(small(), CGPACT)] == [8.0] * 16 + [10.0]


@pytest.mark.parametrize("name", ["alpha_init", "last_alpha_init"])
def test_a_range_of_zero_is_an_error(name):
    with pytest.raises(ValueError, match=r"alpha_init=0\.0"):
        resnet18(5, (8, 8, 3), width=8, **{name: 0.0})


def test_final_gain():
    gains = {
        layer.name: float(layer.gamma[0])
        for layer in layers(small(final_gain=0.25), tf.keras.layers.BatchNormalization)
    }
    ends = {"stage4_block1_2_bn", "stage4_block1_shortcut_bn", "stage4_block2_2_bn"}
    assert gains == {name: 0.25 if name in ends else 1.0 for name in gains}


def test_kernel_regularizer():
    assert small().losses == []
    model = small(kernel_regularizer=tf.keras.regularizers.L2(0.5))
    kernels = [weight for weight in model.trainable_weights if "kernel" in weight.name]
    assert len(model.losses) == len(kernels) == 21
    expected = sum(0.5 * np.square(kernel).sum() for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)


def test_stems():
    cifar, imagenet = small(), small(stem="imagenet")
    assert cifar.get_layer("stem_conv").kernel_size == (3, 3)
    assert cifar.get_layer("stem_conv").output_shape == (None, 8, 8, 8)
    assert cifar.get_layer("stage1_block1_add").output_shape == (None, 8, 8, 8)
    assert cifar.get_layer("stage4_block2_add").output_shape == (None, 1, 1, 64)
    assert imagenet.get_layer("stem_conv").kernel_size == (7, 7)
    assert imagenet.get_layer("stem_conv").output_shape == (None, 4, 4, 8)
    assert imagenet.get_layer("stage1_block1_add").output_shape == (None, 2, 2, 8)
    assert not layers(cifar, tf.keras.layers.MaxPool2D)
    assert len(layers(imagenet, tf.keras.layers.MaxPool2D)) == 1


def test_width_input_shape_and_classes():
    model = small(width=4, input_shape=(16, 8, 1), num_classes=7)
    assert model.input_shape == (None, 16, 8, 1)
    assert model.output_shape == (None, 7)
    filters = [layer.filters for layer in layers(model, lq.layers.QuantConv2D)]
    assert filters == [4] * 5 + [8] * 5 + [16] * 5 + [32] * 5
    assert model.get_layer("features").output_shape == (None, 32)


@pytest.mark.parametrize(
    ("head", "cls"), [("linear", LinearHead), ("cosine", CosineHead), ("gml", GaussianMixtureHead)]
)
def test_heads(head, cls):
    assert type(small(head=head).get_layer("head")) is cls


def test_kernels_start_uniform_by_fan_out():
    kernel = small(width=8).get_layer("stage4_block2_2_conv").kernel.numpy()
    limit = np.sqrt(3 / (9 * 64))
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert np.var(kernel) == pytest.approx(limit**2 / 3, rel=0.05)


def test_batch_norm_settings():
    layer = small().get_layer("stem_bn")
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "softmax"}, r"head to be one of linear, cosine, gml\. Received: head='softmax'"),
        ({"stem": "mnist"}, r"stem to be one of cifar, imagenet\. Received: stem='mnist'"),
        ({"weight_bits": 9}, "bits=9"),
        ({"weight_bits": True}, "bits=True"),
        ({"activation_bits": 0}, "bits=0"),
        ({"residual_bits": 1}, "bits=1"),
        ({"num_classes": 0}, "units=0"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**{"num_classes": 5, "input_shape": (8, 8, 3), "width": 4, **settings})


@pytest.fixture(scope="module")
def trained():
    """A network after a few steps, so that its ranges and batch norms have moved; the losses."""
    tf.keras.utils.set_random_seed(0)
    model = resnet18(
        3, (8, 8, 3), weight_bits=2, head="gml", width=4, residual_bits=8, alpha_init=2.0
    )
    model.compile(tf.keras.optimizers.SGD(0.02, 0.9), dlqat_tf.GMLoss(fit_power=4))
    history = model.fit(training_images(), np.arange(12) % 3, epochs=12, verbose=0)
    return model, history.history["loss"]


def training_images():
    return np.random.default_rng(0).random((12, 8, 8, 3), np.float32)


def test_it_trains(trained):
    model, losses = trained
    assert losses[-1] < losses[0] / 2
    assert all(float(layer.alpha) != layer.alpha_init for layer in layers(model, CGPACT))


IN_ANOTHER_PROCESS = """
import sys
import dlqat_tf
import numpy as np
import tensorflow as tf

model, images, logits = sys.argv[1:]
np.save(logits, tf.keras.models.load_model(model).predict(np.load(images), verbose=0))
"""


def test_saved_here_and_loaded_in_another_process(trained, tmp_path):
    model, _ = trained
    paths = [tmp_path / name for name in ("model.keras", "images.npy", "logits.npy")]
    model.save(paths[0])
    np.save(paths[1], training_images())
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, *paths], check=True, timeout=300, cwd=tmp_path
    )
    expected = model.predict(training_images(), verbose=0)
    np.testing.assert_array_equal(np.load(paths[2]), expected)


def test_no_starvation_warning(caplog):
    resnet18(5, (8, 8, 3), width=4, weight_bits=1)
    assert "starved" not in caplog.text
    lq.layers.QuantConv2D(2, 3, kernel_quantizer="ste_sign")
    assert "starved" in caplog.text


def test_pre_activation_blocks():
    model = small(block="pre", residual_bits=8)
    assert len(layers(model, lq.layers.QuantConv2D)) == 20
    acts = [layer for layer in layers(model, CGPACT) if not layer.signed]
    assert [layer.bits for layer in acts] == [2] * 16 + [8]
    # One batch norm for each activation, none behind the branches and the shortcuts.
    assert len(layers(model, tf.keras.layers.BatchNormalization)) == 17
    for layer in acts:
        (node,) = layer.inbound_nodes
        assert node.inbound_layers.name == layer.name.replace("_act", "_bn")
    # 8 branches, 3 shortcuts, 8 sums
    signed = [layer for layer in layers(model, CGPACT) if layer.signed]
    assert len(signed) == 8 + 3 + 8
    for name in ("stage1_block2", "stage2_block1"):
        readers = model.get_layer(f"{name}_pre_act").outbound_nodes
        is_first = name == "stage2_block1"
        expected = {f"{name}_1_conv"} | ({f"{name}_shortcut_conv"} if is_first else set())
        assert {node.outbound_layer.name for node in readers} == expected
    (node,) = model.get_layer("stage1_block2_add").inbound_nodes
    expected = ["stage1_block2_residual", "stage1_block1_sum_residual"]
    assert [layer.name for layer in node.inbound_layers] == expected
    (node,) = model.get_layer("features").inbound_nodes
    assert node.inbound_layers.name == "final_act"


def test_what_no_batch_norm_follows_is_rescaled():
    model = small(block="pre")
    rescaled = {
        layer.name
        for layer in layers(model, lq.layers.QuantConv2D)
        if layer.kernel_quantizer.scale_adjust
    }
    blocks = [f"stage{stage}_block{block}_2_conv" for stage in range(1, 5) for block in (1, 2)]
    assert rescaled == {*blocks, *(f"stage{stage}_block1_shortcut_conv" for stage in (2, 3, 4))}


def test_shortcuts_of_zeros():
    model = small(shortcut="A", weight_bits=None, activation_bits=None)
    assert not [
        layer for layer in layers(model, tf.keras.layers.Conv2D) if layer.kernel_size == (1, 1)
    ]
    before, after = ("stage1_block2_act", "stage2_block1_shortcut_out")
    outputs = [model.get_layer(name).output for name in (before, after)]
    x, y = tf.keras.Model(model.input, outputs)(np.random.default_rng(0).random((2, 8, 8, 3)))
    assert y.shape == (2, 4, 4, 16)
    np.testing.assert_array_equal(y[..., :8], x[:, ::2, ::2])
    assert np.all(y[..., 8:] == 0)
    assert np.any(x)


def test_float_ends():
    model = small(end_bits=32)
    assert type(model.get_layer("stem_conv")) is tf.keras.layers.Conv2D
    assert model.get_layer("head").weight_bits is None
    assert type(model.get_layer("stage4_block2_act")) is tf.keras.layers.ReLU
    assert model.get_layer("stem_act").bits == 2
    stage = small(end_bits=32, weight_bits=32, activation_bits=32)
    assert (
        model.get_layer("stem_conv").weights[0].shape == stage.get_layer("stem_conv").kernel.shape
    )


@pytest.mark.parametrize(
    "variant",
    [
        {"block": "pre", "shortcut": "A"},
        {"block": "pre", "shortcut": "B", "end_bits": 32},
        {"block": "post", "shortcut": "A", "end_bits": 32},
    ],
    ids=str,
)
def test_files_of_the_variants_compute_what_keras_does(tmp_path, variant):
    tf.keras.utils.set_random_seed(0)
    model = resnet18(
        5, (8, 8, 3), width=4, residual_bits=8, alpha_init=2.0, last_alpha_init=3.0, **variant
    )
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    for _ in range(20):  # statistics of batch norms
        model(images / np.float32(255), training=True)
    for write in (
        (to_tflite, to_lce) if variant == {"block": "pre", "shortcut": "A"} else (to_tflite,)
    ):
        file = tmp_path / f"{write.__name__}.tflite"
        write(model, file)
        agreement = parity(model, file, images).agreement
        assert agreement["simulation_file"] == agreement["keras_file"] == 100.0


def test_overrides():
    rules = {
        "stage1_block1_1_conv": {"weight_bits": 4},
        "stage1_block1_1_act": {"activation_bits": 3},
    }
    model = small_with(rules)
    assert model.get_layer("stage1_block1_1_conv").kernel_quantizer.bits == 4
    assert model.get_layer("stage1_block1_1_act").bits == 3
    assert model.get_layer("stage1_block1_2_conv").kernel_quantizer.bits == 1
    assert model.get_layer("stage1_block1_act").bits == 2


def small_with(rules):
    return resnet18(5, (8, 8, 3), width=4, overrides=rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"stage1_block1_conv": {"weight_bits": 4}}, r"fits no convolution.* Close names: stage1_"),
        (
            {"stem_act": {"weight_bits": 4}},
            r"'stem_act' to set activation_bits. Received: {'weight",
        ),
        (["stem_conv"], "a dict of dicts by layer name"),
        ({"stem_conv": 4}, "a dict of dicts by layer name"),
    ],
)
def test_overrides_without_effect(rules, message):
    with pytest.raises(ValueError, match=message):
        small_with(rules)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "mid"}, "Expected block to be one of post, pre. Received: block='mid'"),
        ({"shortcut": "C"}, "Expected shortcut to be one of A, B"),
        ({"end_bits": 4}, "Expected end_bits to be one of 8, 32"),
        ({"block": "pre", "final_gain": 0.5}, "final_gain=1 with block='pre'"),
    ],
)
def test_variants_that_there_are_not(change, message):
    with pytest.raises(ValueError, match=message):
        resnet18(5, **change)


def test_an_image_of_one_pixel_has_no_stride():
    model = small(input_shape=(8, 8, 3), stem="imagenet")  # 8, 4, 2, 2, 1, 1 pixels
    for name in ("1", "shortcut"):
        assert model.get_layer(f"stage2_block1_{name}_conv").strides == (2, 2)
        assert model.get_layer(f"stage4_block1_{name}_conv").strides == (1, 1)
