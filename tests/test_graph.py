import numpy as np
import pytest
import tensorflow as tf

import dlqat_tf
from dlqat_tf.convert import ConversionError
from dlqat_tf.graph import apply, check_graph, copied, follow, tensors_of, training_of, unique
from dlqat_tf.packed import save_packed

layers = tf.keras.layers


def test_follow_visits_calls_in_order_and_hands_on_what_they_return():
    left, right = tf.keras.Input((2,), name="left"), tf.keras.Input((2,), name="right")
    shared = layers.Dense(2, name="shared")
    total = layers.Add(name="sum")([shared(left), shared(right)])
    model = tf.keras.Model([left, right], [layers.ReLU(name="end")(total), total])
    visited = []

    def visit(call, inputs):
        visited.append(call.layer.name)
        return [f"{call.layer.name}({', '.join(inputs)})"]

    expected = "sum(shared(a), shared(b))"
    assert follow(model, ["a", "b"], visit) == [f"end({expected})", expected]
    assert visited == ["shared", "shared", "sum", "end"]


def test_follow_hands_on_every_output():
    def halves():
        inputs = tf.keras.Input((4,))
        return tf.keras.Model(inputs, [inputs[:, :2], inputs[:, 2:]], name="halves")

    inputs = tf.keras.Input((4,))
    first, second = halves()(inputs)
    model = tf.keras.Model(inputs, [second, first])
    assert follow(model, ["x"], lambda call, inputs: ["first", "second"]) == ["second", "first"]


def test_follow_leaves_out_what_no_output_is_computed_by():
    inputs = tf.keras.Input((2,))
    outputs = layers.Dense(2, name="dense")(inputs)
    model = tf.keras.Model(inputs, outputs)
    model.add_loss(tf.reduce_mean(outputs))
    visited = []

    def visit(call, tensors):
        visited.append(call.layer.name)
        return tensors

    assert follow(model, ["x"], visit) == ["x"]
    assert visited == ["dense"]


def test_tensors_of_a_model_called_by_names_are_in_the_order_of_its_inputs():
    left, right = tf.keras.Input((2,), name="left"), tf.keras.Input((3,), name="right")
    inner = tf.keras.Model({"left": left, "right": right}, layers.Concatenate()([right, left]))
    a, b = tf.keras.Input((2,), name="a"), tf.keras.Input((3,), name="b")
    outer = tf.keras.Model([a, b], inner({"right": b, "left": a}))
    (call,) = (node for node in inner._inbound_nodes if node.outputs is outer.outputs[0])
    assert [tensor.shape[1] for tensor in tensors_of(call)] == [
        tensor.shape[1] for tensor in inner.inputs
    ]


def test_check_graph():
    check_graph(tf.keras.Sequential([tf.keras.Input((2,)), layers.Dense(1)]))

    class Subclassed(tf.keras.Model):
        pass

    with pytest.raises(TypeError, match=r"Received: Subclassed.*Model\(inputs, model\.call"):
        check_graph(Subclassed(), TypeError)


def test_what_quantize_returns_is_no_model():
    model = tf.keras.Sequential([tf.keras.Input((2,)), layers.Dense(1)])
    message = r"Received: tuple\. dlqat_tf\.quantize returns \(model, report\): pass the model"
    for take in (
        check_graph,
        dlqat_tf.quantize,
        dlqat_tf.summary,
        dlqat_tf.export.snap,
        lambda pair: dlqat_tf.export.to_tflite(pair, "model.tflite"),
        lambda pair: dlqat_tf.export.to_lce(pair, "model.tflite"),
        lambda pair: dlqat_tf.distill(pair, model),
        lambda pair: save_packed(pair, "model.npz"),
    ):
        with pytest.raises(ValueError, match=message):
            take((model, "report"))
    with pytest.raises(ValueError, match=r"Received: tuple\. Load a file"):
        check_graph((1, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("nested", [False, True])
def test_layers_of_keras_3_on_tensors_of_keras_2(nested):
    import keras

    x = inputs = tf.keras.Input((8, 8, 3))
    for i in range(4):
        x = keras.layers.Conv2D(2, 1, name=f"conv{i}")(x)
    model = tf.keras.Model(inputs, keras.layers.ReLU()(x))
    if nested:
        model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), model])
    with pytest.raises(
        ConversionError,
        match=r"Received: 'conv0', 'conv1', 'conv2' and 1 more of Keras 3.*tf\.keras",
    ):
        dlqat_tf.quantize(model)
    # Those without weights are operators like others.
    check_graph(tf.keras.Model(inputs, keras.layers.ReLU()(inputs)))


def test_variables_that_are_no_weights():
    inputs = tf.keras.Input((2,))
    model = tf.keras.Model(inputs, tf.multiply(inputs, tf.Variable([1.0, 2.0])))
    with pytest.raises(ValueError, match=r"a tf\.Variable in 'tf\.math\.multiply.*add_weight"):
        check_graph(model)
    check_graph(tf.keras.Model(inputs, tf.multiply(inputs, tf.constant([1.0, 2.0]))))


def test_training_of():
    inputs = tf.keras.Input((2,))
    model = tf.keras.Sequential([inputs, layers.BatchNormalization()])

    def mode(layer, *arguments, **keywords):
        layer(inputs, *arguments, **keywords)
        return training_of(layer.inbound_nodes[-1])

    for layer in (layers.BatchNormalization(), layers.Dropout(0.5), model):
        assert mode(layer) is None
        assert mode(layer, False) is False
        assert mode(layer, training=False) is False
        assert mode(layer, training=True) is True
        assert mode(layer, training=None) is None
    assert mode(layers.Dense(2)) is None
    call = layers.Dropout(0.5)(inputs, training=True).node
    assert training_of(call, around=False) is True
    call = layers.Dropout(0.5)(inputs).node
    assert training_of(call, around=False) is False


def test_unique():
    assert unique("a", {"b"}) == "a"
    assert unique("a", {"a", "a_2"}) == "a_3"


def test_copies_compute_with_what_normalization_layers_adapted_to():
    norm = tf.keras.layers.Normalization(name="norm")
    norm.adapt(np.float32([[1.0], [3.0]]))
    model = tf.keras.Sequential([tf.keras.Input((1,)), norm])
    copy = copied(model, lambda config: {**config, "name": "copy"})
    assert copy.name == "copy"
    assert copy(np.float32([[3.0]])).numpy().item() == pytest.approx(1.0)


class Unregistered(tf.keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_copies_find_the_classes_of_the_model():
    inputs = tf.keras.Input((2,))
    model = tf.keras.Model(inputs, Unregistered()(inputs))
    assert copied(model, dict)(tf.ones((1, 2))).numpy().tolist() == [[2, 2]]


class Accumulating(tf.keras.Model):
    """With a variable that is no layer's, and an argument that no functional model has."""

    def __init__(self, *arguments, steps=2, **keywords):
        super().__init__(*arguments, **keywords)
        self.steps = steps
        self.count = tf.Variable(0, trainable=False)


class Counting(tf.keras.Model):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.count = tf.Variable(0, trainable=False)


class CountingSequence(tf.keras.Sequential):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.count = tf.Variable(0, trainable=False)


@pytest.mark.parametrize("kind", [Accumulating, Counting, CountingSequence])
def test_copies_of_subclasses_have_their_layers_and_not_what_is_their_own(kind):
    inputs, dense = tf.keras.Input((2,)), layers.Dense(1, name="scores")
    if issubclass(kind, tf.keras.Sequential):
        model = kind([inputs, dense])
    else:
        model = kind(inputs, dense(inputs))
    dense.set_weights([np.float32([[3], [4]]), np.float32([5])])
    copy = copied(model, lambda config: config)
    assert copy(np.float32([[1, 10]])).numpy() == 48
    assert len(copy.weights) == 2


def test_slices_over_every_dimension_can_be_saved(tmp_path):
    inputs = tf.keras.Input((4, 6, 2))
    source = tf.keras.Model(inputs, [inputs[..., ::2, :], inputs[:, 1, ..., None]])
    other = tf.keras.Input((4, 6, 2))
    outputs = follow(source, [other], lambda call, tensors: apply(call, call.layer, tensors))
    model = tf.keras.Model(other, outputs)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    x = np.arange(48.0).reshape(1, 4, 6, 2)
    np.testing.assert_array_equal(loaded(x)[0], x[:, :, ::2])
    np.testing.assert_array_equal(loaded(x)[1], x[:, 1, :, :, None])


def test_a_layer_that_does_not_take_its_own_settings_is_told():
    class Odd(layers.Layer):
        def __init__(self):
            super().__init__()

        def get_config(self):
            return {"name": self.name}

    inputs = tf.keras.Input((2,))
    model = tf.keras.Model(inputs, Odd()(inputs), name="network")
    with pytest.raises(ValueError, match=r"layer of 'network' .*__init__\(\) got an"):
        copied(model, lambda config: config)
