"""Networks in little space: what comes back, how large it is, and what is refused."""

import json

import larq as lq
import numpy as np
import pytest

import dlqat_tf
from dlqat_tf.loading import ModelFileError
from dlqat_tf.packed import load_packed, save_packed
from tests.test_levels import nested

import tensorflow as tf  # isort: skip


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale_adjust", [False, True])
def test_sat_has_latent_weights_of_its_codes(bits, scale_adjust):
    quantizer = dlqat_tf.SATWeights(bits, scale_adjust=scale_adjust)
    kernel = np.random.default_rng(bits).normal(0, 2, (3, 3, 4, 5)).astype(np.float32)
    grid = quantizer.grid(kernel)
    again = quantizer.grid(quantizer.latent(grid))
    np.testing.assert_array_equal(again.codes, grid.codes)
    np.testing.assert_array_equal(again.step, grid.step)


def test_latent_weights_by_hand():
    # Two bits: levels -1, -1/3, 1/3, 1, where the largest magnitude stands at 1.
    quantizer = dlqat_tf.SATWeights(2)
    grid = quantizer.grid(np.array([[-2.0, 0.1], [-0.1, 0.9]], np.float32))
    assert grid.codes.tolist() == [[-3, 1], [-1, 3]]
    third = np.arctanh(np.tanh(1.0) / 3)
    np.testing.assert_allclose(quantizer.latent(grid), [[-1, third], [-third, 1]], rtol=1e-6)
    symmetric = dlqat_tf.SymmetricWeights(3)
    grid = symmetric.grid(np.array([[1.5, -0.6]], np.float32))
    np.testing.assert_allclose(symmetric.latent(grid), [[1.5, -0.5]])


def same(model, again, shape):
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    np.testing.assert_array_equal(
        model.predict(images, verbose=0), again.predict(images, verbose=0)
    )


@pytest.mark.parametrize(
    ("bits", "method"), [(1, "sat"), (3, "sat"), (2, "lsq"), (1, "bwn"), (1, "syq"), (32, "sat")]
)
def test_a_network_computes_the_same(tmp_path, bits, method):
    model = dlqat_tf.resnet18(4, (8, 8, 3), bits, 2, "gml", width=2, method=method)
    images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    model(images, training=True)  # so that steps start and averages move
    save_packed(model, tmp_path / "x.npz")
    again = load_packed(tmp_path / "x.npz")
    assert again.optimizer is None
    assert [each.name for each in again.layers] == [each.name for each in model.layers]
    same(model, again, (8, 8, 3))


def test_a_weight_takes_its_bits(tmp_path):
    def size(bits):
        inputs = tf.keras.Input((64, 64, 16))
        layer = lq.layers.QuantConv2D(
            256, 3, use_bias=False, kernel_quantizer=dlqat_tf.SATWeights(bits)
        )
        save_packed(tf.keras.Model(inputs, layer(inputs)), tmp_path / "x.npz")
        return (tmp_path / "x.npz").stat().st_size

    weights = 3 * 3 * 16 * 256
    for bits in (1, 2):
        assert bits * weights / 8 < size(bits) < 1.05 * bits * weights / 8 + 2000
    assert size(32) > 3 * weights


def of_one_kernel(quantizer, started=True):
    """A network of one kernel that was trained for a step, and its number of weights."""
    tf.keras.utils.set_random_seed(0)
    inputs = tf.keras.Input((4, 4, 64))
    conv = lq.layers.QuantConv2D(128, 3, use_bias=False, kernel_quantizer=quantizer)
    model = tf.keras.Model(inputs, conv(inputs))
    model(np.ones((1, 4, 4, 64), np.float32), training=started)
    if hasattr(quantizer, "advance"):
        quantizer.advance(1.0, conv.kernel)
    return model, 3 * 3 * 64 * 128


def stored(model, path):
    """Return the size of a network's file; what is read from it computes the same."""
    save_packed(model, path)
    same(model, load_packed(path), model.input_shape[1:])
    return path.stat().st_size


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        *((dlqat_tf.SATWeights(bits), bits) for bits in (1, 2, 4)),
        *((dlqat_tf.SATWeights(bits, keep_scale=True), bits) for bits in (1, 2, 3, 4)),
        *((dlqat_tf.DoReFaWeights(bits), bits) for bits in (1, 2, 4)),
        (dlqat_tf.SymmetricWeights(4), 4),
        (dlqat_tf.BWNWeights(1), 1),
        (dlqat_tf.IRNetWeights(1), 1),
        *((dlqat_tf.LSQWeights(bits), bits) for bits in (2, 4)),
        *((dlqat_tf.HAWQWeights(bits), bits) for bits in (2, 4)),
        *((dlqat_tf.DSQWeights(bits), bits) for bits in (1, 4)),
        *((dlqat_tf.QuantizationNetworksWeights(bits), bits) for bits in (1, 2, 3)),
        (dlqat_tf.LQNetWeights(1), 1),
        (dlqat_tf.ABCNetWeights(1), 1),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_weight_of_a_method_takes_its_bits(tmp_path, quantizer, bits):
    model, weights = of_one_kernel(quantizer)
    assert stored(model, tmp_path / "x.npz") < 1.05 * bits * weights / 8 + 3000


def test_steps_are_met_though_channels_differ(tmp_path):
    for quantizer in (dlqat_tf.BWNWeights(), dlqat_tf.SATWeights(2, keep_scale=True)):
        model, weights = of_one_kernel(quantizer)
        kernel = model.layers[1].kernel.latent_variable
        kernel.assign(kernel * np.geomspace(0.3, 3, 128).astype(np.float32))
        assert stored(model, tmp_path / "x.npz") < weights


def test_irnet_has_latent_weights_of_any_exponent():
    quantizer = dlqat_tf.IRNetWeights()
    generator = np.random.default_rng(0)
    kernel = generator.standard_t(1.2, (3, 3, 32, 16)).astype(np.float32)
    kernel[..., 0] = np.abs(kernel[..., 0]) ** 3
    grid = quantizer.grid(kernel)
    assert len(np.unique(grid.step)) > 2
    again = quantizer.grid(quantizer.latent(grid))
    np.testing.assert_array_equal(again.codes, grid.codes)
    np.testing.assert_array_equal(again.step, grid.step)


@pytest.mark.parametrize(
    ("quantizer", "started"),
    [
        (dlqat_tf.LQNetWeights(2), True),
        (dlqat_tf.ABCNetWeights(2), True),
        (dlqat_tf.SYQWeights(1), True),  # a scale for each position
        (dlqat_tf.LSQWeights(2), False),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_latent_weights_are_kept_where_codes_would_not_do(tmp_path, quantizer, started):
    model, weights = of_one_kernel(quantizer, started)
    assert stored(model, tmp_path / "x.npz") > 3 * weights
    again = load_packed(tmp_path / "x.npz")
    np.testing.assert_array_equal(again.layers[-1].kernel, model.layers[-1].kernel)


def test_inq_stores_codes_and_the_levels_that_are_frozen(tmp_path):
    model, weights = of_one_kernel(dlqat_tf.INQWeights(2))
    assert stored(model, tmp_path / "x.npz") < weights


def test_nested_models_come_back(tmp_path):
    body = dlqat_tf.resnet18(4, (8, 8, 3), 1, 2, width=2)
    model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), body, tf.keras.layers.Softmax()])
    save_packed(model, tmp_path / "x.npz")
    same(model, load_packed(tmp_path / "x.npz"), (8, 8, 3))


def test_layers_of_equal_names_in_nested_models_are_packed(tmp_path):
    save_packed(nested(), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as stored:
        assert sum(name.endswith(".codes") for name in stored) == 3
    same(nested(), load_packed(tmp_path / "x.npz"), (2,))


def test_code_is_refused(tmp_path):
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Lambda(lambda x: x + 1)])
    save_packed(model, tmp_path / "x.npz")
    with pytest.raises(ModelFileError, match="a model with a Lambda layer"):
        load_packed(tmp_path / "x.npz")


def test_damage_is_named(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"found none at .*x.npz"):
        load_packed(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelFileError, match=r"x.npz is damaged or no packed network"):
        load_packed(path)
    np.savez(path, configuration=np.frombuffer(json.dumps({"a": 1}).encode(), np.uint8))
    with pytest.raises(ModelFileError, match=r"x.npz is damaged or no packed network"):
        load_packed(path)


def test_random_damage_is_named(tmp_path):
    path = tmp_path / "x.npz"
    save_packed(nested(), path)
    data, generator, messages = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(200):
        start, length = generator.integers(len(data)), generator.integers(1, 20)
        path.write_bytes(data[:start] + generator.bytes(length) + data[start + length :])
        try:
            load_packed(path)  # some damage is to what nothing reads, or to the values of a weight
        except ModelFileError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all(f"{path} is damaged or no packed network" in message for message in messages)


@pytest.mark.parametrize("part", ["levels", "codes"])
def test_codes_without_levels_are_named(tmp_path, part):
    path = tmp_path / "x.npz"
    save_packed(nested(), path)
    with np.load(path) as stored:
        arrays = {name: each[:0] if name.endswith(part) else each for name, each in stored.items()}
    np.savez(path, **arrays)
    with pytest.raises(ModelFileError, match=r"x.npz is damaged or no packed network"):
        load_packed(path)


def test_what_cannot_be_packed(tmp_path):
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"ends in .npz. Received: .*x.keras"):
        save_packed(model, tmp_path / "x.keras")

    class Own(tf.keras.Model):
        pass

    with pytest.raises(ValueError, match="Received: Own"):
        save_packed(Own(), tmp_path / "x.npz")
