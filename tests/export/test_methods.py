"""Every method of the registry, at the widths of its rows: what was trained is what files compute.

A method joins by its entry. ``make test-long`` takes all widths that a method defines.
"""

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import methods, quantize
from dlqat_tf.export import ExportError, parity, to_lce, to_tflite
from dlqat_tf.export.files.lce import PLANE_LIMIT
from dlqat_tf.quantizers import NoGrid, unwrapped
from tests.export.networks import randomize
from tests.quantizers.methods import images, network

UNPUBLISHED = {"dorefa": [(1, 2), (2, 2)]}  # methods without rows


def widths_of_rows():
    for name in methods.names():
        rows = [(row.weight_bits, row.activation_bits) for row in methods.get(name).rows]
        for weight_bits, activation_bits in rows or UNPUBLISHED[name]:
            yield name, weight_bits, activation_bits


def defined(make, bits, **settings):
    try:
        make(bits, **settings)
    except ValueError:
        return False
    return True


def all_widths():
    settings = dict(alpha_init=1.0, regularizer=None, name="any")
    for name in methods.names():
        method = methods.get(name)
        for weight_bits in range(1, 9):
            for activation_bits in (1, 2, 3, 4, 8, 32):
                if defined(method.weights, weight_bits) and defined(
                    method.activations, activation_bits, **settings
                ):
                    yield name, weight_bits, activation_bits


def ready(name, weight_bits, activation_bits):
    """A network of a method as it is after training, in random norms."""
    tf.keras.utils.set_random_seed(0)
    method = methods.get(name)
    model = network(method, weight_bits, activation_bits)
    model(images(16), training=True)  # what starts from data has started
    for layer in model.layers:
        quantizer = getattr(layer, "kernel_quantizer", None)
        if hasattr(quantizer, "advance"):
            quantizer.advance(1.0, layer.kernel)
    if method.prepare is not None:
        method.prepare(model, images(16))
    return randomize(model)


def hidden(model):
    """The second convolution, and the activation quantizer that it reads."""
    convolutions = [each for each in model.layers if hasattr(each, "kernel_quantizer")][:2]
    return convolutions[1], model.get_layer("act_1")


def on_a_grid(quantizer):
    try:
        quantizer.grid()
    except NoGrid:
        return False
    return True


def is_binary(layer, activation):
    """Whether binary kernels have the layer's levels."""
    if layer.kernel_quantizer.bits * activation.bits > PLANE_LIMIT:
        return False
    try:
        planes = layer.kernel_quantizer.planes(layer.kernel.latent_variable)
    except ValueError:
        return False
    return all(np.size(scale) in (1, layer.filters) for _, scale in planes)


def check(model, report):
    pixels = np.uint8(255 * images(16))
    snapped = tf.keras.models.load_model(report.snapped)
    result = parity(snapped, report.path, pixels, trained=model)
    assert result.agreement["simulation_file"] == 100.0
    assert result.agreement["keras_file"] >= 99.5
    assert result.first_diverging is None
    assert result.other_constants == []


def check_files(name, weight_bits, activation_bits, folder):
    model = ready(name, weight_bits, activation_bits)
    layer, activation = hidden(model)
    options = dict(activations="float32") if activation_bits == 32 else {}
    stock = folder / "stock.tflite"
    if activation_bits == 32 or on_a_grid(activation):
        check(model, to_tflite(model, stock, **options))
    else:
        with pytest.raises(ExportError, match=r"levels that are no grid.*\(LCE\).*to_lce\."):
            to_tflite(model, stock, **options)
    if activation_bits == 32:
        return
    report = to_lce(model, folder / "lce.tflite")
    nothing = any("nothing runs on binary kernels" in each for each in report.warnings)
    assert nothing is not is_binary(layer, activation)
    assert nothing or report.levels == []  # as trained
    check(model, report)


@pytest.mark.parametrize(("name", "weight_bits", "activation_bits"), [*widths_of_rows()])
def test_files_compute_what_was_trained(name, weight_bits, activation_bits, tmp_path):
    check_files(name, weight_bits, activation_bits, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("name", "weight_bits", "activation_bits"), [*all_widths()])
def test_files_of_all_widths(name, weight_bits, activation_bits, tmp_path):
    check_files(name, weight_bits, activation_bits, tmp_path)


def test_levels_that_no_int8_grid_holds_are_moved_and_said(tmp_path):
    model = ready("lqnet", 2, 8)
    layer, _ = hidden(model)
    trained = layer.kernel_quantizer(layer.kernel.latent_variable).numpy()
    report = to_tflite(model, tmp_path / "model.tflite")
    check(model, report)
    (level,) = report.levels
    snapped = tf.keras.models.load_model(report.snapped)
    other, _ = hidden(snapped)
    moved = other.kernel_quantizer(other.kernel.latent_variable).numpy() - trained
    assert level.layer == layer.name
    assert level.largest == pytest.approx(np.abs(moved).max(), 1e-4)
    largest = np.abs(trained).max(axis=(0, 1, 2))
    assert level.relative == pytest.approx((np.abs(moved) / largest).max(), 1e-4)
    assert 0 < level.relative <= 0.5 / 127 * 1.001
    assert other.kernel_quantizer.bits == 2
    said = [line for line in report.tables() if isinstance(line, str)]
    assert any(f"moved by at most {level.relative:.2%}" in line for line in said)
    # The model as trained stays so.
    same = layer.kernel_quantizer(layer.kernel.latent_variable).numpy()
    np.testing.assert_array_equal(same, trained)


def test_float_activations_get_ranges_from_images(tmp_path):
    model = ready("abcnet", 2, 32)
    with pytest.raises(ExportError, match=r"'act_1', 'act_2', of 32 bits: .*float32"):
        to_tflite(model, tmp_path / "model.tflite")
    report = to_tflite(model, tmp_path / "model.tflite", calibration=images(16))
    assert len(report.calibrated) == 2
    assert not any("FLOAT" in each.kernel.upper() for each in report.census.layers[:-1])
    result = parity(tf.keras.models.load_model(report.snapped), report.path, images(16))
    assert result.agreement["simulation_file"] == 100.0


def test_float_activations_store_codes(tmp_path):
    sizes = {}
    for weights in ("int8", "int4"):
        model = ready("bwn", 1, 32)
        path = tmp_path / f"{weights}.tflite"
        report = to_tflite(model, path, weights=weights, activations="float32")
        check(model, report)
        assert {each.stored_bits for each in report.census.layers[1:2]} == {int(weights[3:])}
        sizes[weights] = report.census.layers[1].bytes
    assert sizes == {"int8": 9 * 8 * 8, "int4": 9 * 8 * 4}
    with pytest.raises(ExportError, match="activations to be one of int8, float32"):
        to_tflite(model, path, activations="int4", force=True)


@pytest.mark.parametrize("kind", ["transposed", "depthwise"])
@pytest.mark.parametrize(
    ("name", "bits"), [("bwn", 1), ("irnet", 1), ("hawq", 3), ("lqnet", 2), ("syq", 1)]
)
def test_kernels_have_steps_of_output_channels(name, bits, kind, tmp_path):
    """As quantize makes them; two methods' on no grid, so that they are snapped."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = tf.keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    if kind == "transposed":
        x = tf.keras.layers.Conv2DTranspose(6, 2, 2, activation="relu", name="odd")(x)
    else:
        layer = tf.keras.layers.DepthwiseConv2D(
            2, depth_multiplier=2, activation="relu", name="odd"
        )
        x = layer(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    source = tf.keras.Model(inputs, tf.keras.layers.Dense(5)(x))
    model, _ = quantize(source, bits, 2, method=name, images=images(16))
    parts = unwrapped(model.get_layer("odd"))
    quantizer = methods.get(name).weights(bits)
    if kind == "transposed":
        kernel = np.swapaxes(source.get_layer("odd").kernel, 2, 3)
        quantizer.start(kernel)
        expected = np.swapaxes(quantizer(kernel), 2, 3)
    else:  # each of four channels has two filters of one channel
        kernel = source.get_layer("odd").depthwise_kernel.numpy().reshape(2, 2, 1, 8)
        quantizer.groups = 4
        quantizer.start(kernel)
        expected = quantizer(kernel).numpy().reshape(2, 2, 4, 2)
    latent = parts.kernel.latent_variable
    np.testing.assert_allclose(parts.kernel_quantizer(latent), expected, 1e-5, 1e-6)
    model(images(16), training=True)
    check(model, to_lce(model, tmp_path / "lce.tflite"))
