"""What is said about models that cannot be quantized, or then not be exported."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import CGPACT, ConversionError, SATWeights, quantize
from dlqat_tf.export import ExportError, lower

layers = tf.keras.layers
Model = tf.keras.Model


def network(*middle, size=(8, 8, 3)):
    """Layers between a convolution and a classifier."""
    return tf.keras.Sequential(
        [
            tf.keras.Input(size, name="images"),
            layers.Conv2D(4, 3, name="first"),
            *middle,
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ]
    )


def message_of(source, **options):
    with pytest.raises(ConversionError) as caught:
        quantize(source, **options)
    return str(caught.value), caught.value.overrides


def test_problems_are_grouped_by_reason_with_those_that_have_advice_first():
    many = [layers.Conv2D(4, 1, activation="swish", name=f"swish{i}") for i in range(15)]
    gate = layers.Activation("sigmoid", name="gate")
    source = network(
        gate, *many, layers.Activation("swish", name="last"), layers.LeakyReLU(name="a")
    )
    message, overrides = message_of(source)
    lines = message.splitlines()
    assert lines[0] == "18 of 22 layers cannot be quantized."
    assert lines[1].startswith(
        "- 'swish0', 'swish1', 'swish2' and 13 more (Conv2D, Activation): 'swi"
    )
    assert "put one there and train the float model on" in lines[1]
    assert lines[2].startswith("- 'a' (LeakyReLU): 'LeakyReLU' has no quantized form. ReLU and")
    assert lines[3] == "- 'gate' (Activation): 'sigmoid' has no quantized form."
    assert "export then refuses them" in lines[4]
    assert lines[4].endswith("overrides=error.overrides, where error is this ConversionError.")
    assert overrides == dict.fromkeys(
        ["gate", *(f"swish{i}" for i in range(15)), "last", "a"], "float"
    )
    _, report = quantize(source, overrides=overrides)
    assert "export will refuse it. 'gate': files hold no sigmoid; 'swish0'" in report.notes[-1]
    assert len(report.notes[-1]) < 300
    assert len(message) < 1000


@pytest.mark.parametrize(
    "make",
    [
        tf.keras.applications.EfficientNetB0,
        tf.keras.applications.NASNetMobile,
    ],
)
def test_messages_about_large_models_fit_a_screen(make):
    message, overrides = message_of(make(weights=None, input_shape=(64, 64, 3), classes=10))
    assert len(message) < 1500
    assert len(message.splitlines()) < 12
    assert len(overrides) > 90


def test_operators_have_the_name_of_the_layer_that_does_the_same():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(tf.sqrt(inputs / 255))
    y = layers.Conv2D(4, 3, padding="same", name="second")(x)
    x = tf.nn.relu(tf.concat([x + y, x], -1))
    source = Model(inputs, layers.Dense(2)(layers.Flatten()(x + 1.0)))
    message, _ = message_of(source)
    for part in (
        "'math.sqrt' has no quantized form. Files hold a scale, an offset and an order of the ch",
        "'add' has no quantized form. Write it as tf.keras.layers.Add()([x, y]).",
        "'concat' has no quantized form. Write it as tf.keras.layers.Concatenate().",
        "'nn.relu' has no quantized form. Write it as tf.keras.layers.ReLU().",
        "(TFOpLambda): 'add' has no quantized form.\n",  # of a constant: no layer adds it
    ):
        assert part in message


KEPT = {
    "leaky": lambda: layers.LeakyReLU(name="odd"),
    "swish": lambda: layers.Activation("swish", name="odd"),
    "activation": lambda: layers.Conv2D(4, 1, activation="tanh", name="odd"),
    "slope": lambda: layers.ReLU(negative_slope=0.1, name="odd"),
    "end": lambda: layers.ReLU(4.0, name="odd"),
    "relu": lambda: layers.ReLU(name="odd"),
    "relu6": lambda: layers.Activation(tf.nn.relu6, name="odd"),
    "softmax": lambda: layers.Softmax(name="odd"),
    "convolution": lambda: layers.Conv2D(4, 1, activation="relu", name="odd"),
    "rescaling": lambda: layers.Rescaling(0.5, name="odd"),
    "offset": lambda: layers.Rescaling(0.5, 1.0, name="odd"),
    "rows": lambda: layers.BatchNormalization(axis=1, name="odd"),
    "transposed": lambda: layers.Conv2DTranspose(4, 2, name="odd"),
    "maximum": lambda: layers.GlobalMaxPooling2D(name="odd"),
    "reshape": lambda: layers.Reshape((36, 4, 1), name="odd"),
    "model": lambda: tf.keras.Sequential([layers.Conv2D(4, 1), layers.ReLU()], name="odd"),
    "odd model": lambda: tf.keras.Sequential([layers.Conv2D(4, 1), layers.ELU()], name="odd"),
    "quantized": lambda: lq.layers.QuantConv2D(4, 1, kernel_quantizer=SATWeights(2), name="odd"),
    "quantizer": lambda: CGPACT(2, name="odd"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_reports_say_whether_export_takes_what_is_kept(kind):
    model, report = quantize(network(KEPT[kind]()), 4, 4, overrides={"odd": "float"})
    said = any("export will refuse it. 'odd'" in note for note in report.notes)
    row = next(row for row in report.conversions if row.layer == "odd")
    assert said == ("cannot be exported" in row.note)
    assert said != is_lowered(model)


def is_lowered(model):
    try:
        lower(model)
    except ExportError:
        return False
    return True


def refused(inputs, outputs):
    """Return what reports say about export, having seen that it is true."""
    model, report = quantize(Model(inputs, outputs), 4, 4, head=None)
    said = [note for note in report.notes if "export will refuse it" in note]
    assert bool(said) != is_lowered(model)
    return said[0] if said else None


def test_reports_say_what_files_have_no_place_for():
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(2, 3, name="conv")(image)
    scores = layers.Dense(2, name="scores")(layers.Flatten()(x))
    assert refused(image, scores) is None
    assert "'the outputs': files have one output" in refused(image, [scores, x])
    soft = layers.Softmax(name="soft")(scores)
    assert "'soft': files hold no softmax" in refused(image, soft)
    decision = layers.Dense(1, activation="sigmoid", name="decision")(layers.Flatten()(x))
    assert "'decision': files hold no sigmoid" in refused(image, decision)
    vector = tf.keras.Input((4,), name="vector")
    assert refused(vector, layers.Dense(2)(vector)) is None
    free = tf.keras.Input((None, None, 3), name="free")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(free))
    _, report = quantize(Model(free, layers.Dense(2)(pooled)), 4, 4)
    assert "'free' may have any size: export asks for one size." in report.notes
    for scale, offset in ((1 / 255, 0.0), (1 / 127.5, 0.0), (1 / 255, -1.0)):
        scaled = layers.Rescaling(scale, offset, name="scaled")(image)
        scores = layers.Dense(2)(layers.Flatten()(layers.Conv2D(2, 3)(scaled)))
        assert refused(image, scores) is None


def test_one_score_needs_no_head():
    source = network(size=(4, 4, 1))
    one = Model(source.input, layers.Dense(1, name="one")(source.layers[-2].output))
    for head in ("linear", "cosine", "gml"):
        with pytest.raises(ConversionError, match=r"'one' \(Dense\) of one unit\. Pass head=None"):
            quantize(one, head=head)
    assert quantize(one, head=None)[0].output_shape == (None, 1)


def test_quantized_models_are_refused_as_such():
    model, _ = quantize(network(layers.ReLU()))
    message, overrides = message_of(model)
    assert "one with layers that are quantized already, 'first'" in message
    assert "Train or export it as it is" in message
    assert "head=None" not in message
    assert "overrides" not in message
    assert not overrides
    api = tfmot.quantization.keras
    source = network(layers.ReLU())
    for model in (
        dlqat_tf.resnet18(3, input_shape=(8, 8, 3), width=4),
        api.quantize_model(source),
        api.quantize_annotate_model(source),
    ):
        assert "quantized already" in message_of(model)[0]


def test_layers_that_are_quantized_may_stay_beside_float_ones():
    done = lq.layers.QuantConv2D(4, 1, kernel_quantizer=SATWeights(1), name="done")
    source = network(done, layers.Conv2D(4, 1, name="other"))
    message, overrides = message_of(source)
    assert message.endswith(
        """To keep these layers and quantize the rest: overrides={'done': "float"}."""
    )
    model, _ = quantize(source, 3, overrides=overrides)
    assert model.get_layer("done").kernel_quantizer.bits == 1
    assert model.get_layer("other").kernel_quantizer.bits == 3


def test_models_of_keras_3():
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    for refuse in (quantize, lower, dlqat_tf.summary):
        with pytest.raises(
            ValueError, match=r"a model of Keras 2\. Received: Sequential of Keras 3"
        ):
            refuse(model)
    assert np.shape(model(np.zeros((1, 8, 8, 3)))) == (1, 192)
