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


def test_latent_weights_are_kept_where_codes_would_not_do(tmp_path):
    inputs = tf.keras.Input((4,))
    layer = lq.layers.QuantDense(3, kernel_quantizer=dlqat_tf.SATWeights(2, keep_scale=True))
    model = tf.keras.Model(inputs, layer(inputs))
    save_packed(model, tmp_path / "x.npz")
    again = load_packed(tmp_path / "x.npz")
    np.testing.assert_array_equal(again.layers[-1].kernel, layer.kernel)


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
