"""What is said about models that cannot be quantized, or then not be exported."""

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import dlqat_tf
from dlqat_tf import CGPACT, ConversionError, SATWeights, quantize
from dlqat_tf.export import ExportError, lower
from dlqat_tf.export.integer.snap import snap
from tests.convert.networks import detector

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


def test_what_stays_float_is_grouped_by_reason_with_those_that_have_advice_first():
    many = [layers.LayerNormalization(name=f"norm{i}") for i in range(16)]
    gate = layers.Activation("softmax", name="gate")
    source = network(gate, *many, layers.GroupNormalization(2, name="a"))
    model, report = quantize(source, 4, 4)
    (note,) = (note for note in report.notes if "stay float" in note)
    lines = note.splitlines()
    assert lines[0].startswith("18 of 22 layers stay float, for want of a quantized form")
    assert lines[1] == (
        "- 'norm0', 'norm1', 'norm2' and 13 more: 'LayerNormalization' has no quantized form. "
        "BatchNormalization has."
    )
    assert lines[2].startswith("- 'a': 'GroupNormalization' has no quantized form. Batch")
    assert lines[3].startswith("- 'gate': A softmax that is not the end of the model has no")
    assert len(note) < 1000
    rows = {row.layer: row for row in report.conversions}
    assert rows["gate"].note.startswith("stays float: A softmax that is not the end")
    assert rows["norm3"].became == "LayerNormalization"
    assert lower(model)


def test_operators_without_a_layer_that_does_the_same_are_named():
    inputs = tf.keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(tf.sqrt(inputs / 255))
    y = layers.Conv2D(4, 3, padding="same", name="second")(x)
    x = tf.nn.relu(tf.concat([x + y, x], -1))
    source = Model(inputs, layers.Dense(2)(layers.Flatten()(x + 1.0)))
    _, report = quantize(source, 4, 4)
    (note,) = (note for note in report.notes if "stay float" in note)
    assert note.startswith("2 of 11 layers stay float")
    for part in (
        "'math.sqrt' has no quantized form. Files hold a scale, an offset and an order of the ch",
        ": 'add' has no quantized form.",  # of a constant: no layer adds it
    ):
        assert part in note


class Inverse(layers.Layer):
    """Of the channels' products, which TFLite has no operation for."""

    def call(self, x):
        return tf.matmul(x, tf.linalg.inv(tf.matmul(x, x, transpose_a=True)))


class Odd(Model):
    """A subclassed model."""

    def call(self, x):
        return x + 1.0


def test_what_no_file_can_hold_is_said_before_training():
    random = layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)), name="random")
    source = network(
        layers.LeakyReLU(name="fine"),
        Inverse(name="inverse"),
        Inverse(name="again"),
        random,
        Odd(name="odd"),
    )
    message, overrides = message_of(source)
    lines = message.splitlines()
    assert lines[0] == "4 of 9 layers can neither be quantized nor stored in float."
    assert lines[1] == (
        "- 'odd' (Odd): Subclassed models have no list of layers. With block.call(x) in place of "
        "block(x) its layers are those of the network."
    )
    assert lines[2] == (
        "- 'random' (Lambda): It draws random numbers in inference. GaussianNoise and Dropout do "
        "in training only."
    )
    assert lines[3] == "- 'inverse', 'again' (Inverse): TFLite has no operation MatrixInverse."
    assert "without a file of the result" in lines[4]
    assert set(overrides) == {"inverse", "again", "random", "odd"}


class Block(layers.Layer):
    """Layers within a layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = layers.Conv2D(4, 3), layers.BatchNormalization()

    def call(self, x):
        return tf.nn.relu(self.norm(self.conv(x)))


def of_python(function):
    def call(x):
        y = tf.py_function(function, [x], tf.float32)
        y.set_shape(x.shape)
        return y

    return layers.Lambda(call, name="odd")


def of_patches(x, size=2, stride=2, padding="VALID"):
    window, steps = [1, size, size, 1], [1, stride, stride, 1]
    return tf.image.extract_patches(x, window, steps, [1, 1, 1, 1], padding)


def test_patches_have_a_form_in_the_same_order():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(of_patches(images), tf.nn.space_to_depth(images, 2))
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    slices = [padded[:, i : i + 4, j : j + 6] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(of_patches(images, 3, 1, "SAME"), tf.concat(slices, -1))


GENERATOR = tf.random.Generator.from_seed(1)
UNSTORED = {
    "loop": (
        lambda: layers.Lambda(
            lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 9.0, lambda y: y + 1, [x])[0],
            name="odd",
        ),
        "It has loops or branches that depend on values. Choices by value have a form with "
        "tf.where.",
    ),
    "generator": (
        lambda: layers.Lambda(lambda x: x + GENERATOR.normal(tf.shape(x)), name="odd"),
        "It draws random numbers in inference. GaussianNoise and Dropout do in training only.",
    ),
    "Python": (
        lambda: of_python(lambda x: 2 * x),
        "TFLite has no operation EagerPyFunc. Python functions are in no file: use TensorFlow's "
        "operators.",
    ),
    "patches": (
        lambda: layers.Lambda(of_patches, name="odd"),
        "TFLite has no operation ExtractImagePatches. Patches that do not overlap have one, in the "
        "same order, as tf.nn.space_to_depth(x, size), others as slices of the padded image, "
        "joined by tf.concat.",
    ),
    "boxes": (
        lambda: layers.Lambda(
            lambda x: tf.image.combined_non_max_suppression(
                tf.reshape(x, [-1, 36, 1, 4]), tf.reshape(x, [-1, 36, 4]), 5, 5
            )[0],
            name="odd",
        ),
        "TFLite has no operation CombinedNonMaxSuppression. Choose boxes from the file's outputs, "
        "behind it.",
    ),
    "cubic": (
        lambda: layers.Lambda(lambda x: tf.image.resize(x, (9, 9), "bicubic"), name="odd"),
        "TFLite has no operation ResizeBicubic. Bilinear and nearest neighbours have one, without",
    ),
    "spectrum": (
        lambda: layers.Lambda(
            lambda x: tf.math.real(tf.signal.fft2d(tf.cast(x, tf.complex64))), name="odd"
        ),
        "TFLite has no operation FFT2D. Products with matrices of cosines and sines have one.",
    ),
    "batch": (
        lambda: layers.Lambda(lambda x: tf.reshape(x, [-1, 2]), name="odd"),
        "for 1 images. Keep the first axis, that of the images, as tf.reshape(x, [-1, size])",
    ),
    "mask": (
        lambda: layers.Lambda(lambda x: tf.boolean_mask(x, x[:, 0, 0, 0] > 0), name="odd"),
        "are known at run time only. Files have fixed sizes, so multiply by zeros and ones",
    ),
}


@pytest.mark.parametrize("kind", UNSTORED)
def test_the_rewrite_that_helps_is_said(kind):
    make, expected = UNSTORED[kind]
    message, overrides = message_of(network(make()))
    assert message.splitlines()[1].startswith("- 'odd' (Lambda): ")
    assert expected in message.splitlines()[1]
    assert set(overrides) == {"odd"}


def test_categories():
    inputs = tf.keras.Input((1,), dtype="int64")
    x = layers.CategoryEncoding(5, "one_hot", name="first")(inputs)
    message, _ = message_of(Model(inputs, layers.Dense(2)(layers.Dense(3)(x))))
    assert (
        "- 'first' (CategoryEncoding): TFLite has no operation DenseBincount. One-hot vectors have "
        "one as tf.one_hot(x, size)."
    ) in message


def test_recurrent_layers_and_strings():
    inputs = tf.keras.Input((6, 2), batch_size=1)
    x = layers.GRU(2, stateful=True, name="first")(inputs)
    message, _ = message_of(Model(inputs, layers.Dense(2)(x)))
    assert "- 'first' (GRU): It keeps a state from one image to the next. With stateful" in message
    text = tf.keras.Input((1,), dtype="string")
    words = layers.TextVectorization(9, output_sequence_length=4, vocabulary=["a"])(text)
    message, _ = message_of(Model(text, layers.Dense(2)(tf.cast(words, tf.float32))))
    assert " more. Prepare strings outside of the model, in tf.data." in message
    assert len(message) < 500


def test_what_a_layer_raises_is_told_without_the_heading_of_keras():
    class Raising(layers.Layer):
        def call(self, x):
            if hasattr(self, "was_called"):
                raise RuntimeError("no such thing " * 100)
            self.was_called = True
            return x + 0.0

    message, _ = message_of(network(Raising(name="odd")))
    assert "- 'odd' (Raising): It cannot be traced: " in message
    assert "no such thing no such thing" in message
    assert "Exception encountered" not in message
    assert len(message) < 600


class Gated(layers.Layer):
    """As keras_cv's squeeze-and-excitation: its settings hold a layer."""

    def __init__(self, gate=None, **kwargs):
        super().__init__(**kwargs)
        self.gate = gate or Gate()

    def call(self, x):
        return x * self.gate(x)

    def get_config(self):
        return {**super().get_config(), "gate": tf.keras.layers.serialize(self.gate)}

    @classmethod
    def from_config(cls, config):
        return cls(tf.keras.layers.deserialize(config.pop("gate")), **config)


class Gate(layers.Layer):
    """Takes no name, which its settings give."""

    def __init__(self):
        super().__init__()

    def call(self, x):
        return tf.exp(x)

    def get_config(self):
        return {"name": self.name}


class Nameless(layers.Layer):
    """Keras gives it settings without its name, since its __init__ has no **kwargs of that name."""

    def __init__(self, **options):
        super().__init__(**options)

    def call(self, x):
        return tf.exp(x)


class Named(Nameless):
    def get_config(self):
        return super().get_config()


def test_layers_that_lose_their_names_are_said_before_training():
    message, _ = message_of(network(Nameless(name="own")))
    assert "- 'own' (Nameless): It cannot be made again from its settings" in message
    assert quantize(network(Named(name="own")), 4, 4)


def test_layers_that_no_file_could_be_loaded_with_are_said_before_training():
    message, overrides = message_of(network(layers.LeakyReLU(), Gated(name="gated")))
    assert "- 'gated' (Gated): It cannot be made again from its settings" in message
    assert "Let its get_config give what its __init__ takes, and super().get_config()" in message
    assert list(overrides) == ["gated"]
    quantize(network(layers.LeakyReLU(), Gated(layers.Activation("exponential"))), 4, 4)


def test_operators_that_no_file_could_be_loaded_with_are_said_before_training():
    inputs = tf.keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="first")(inputs)
    x = layers.Flatten()(tf.einsum("bhwc,bhwd->bcd", x, x, name="products"))
    message, overrides = message_of(Model(inputs, layers.Dense(3)(x)))
    assert "Keras saves operators of any number of arguments, and cannot load them." in message
    assert "Put it into a Lambda layer." in message
    assert len(overrides) == 1


def test_layers_in_a_layer_can_be_those_of_the_network():
    block = Block(name="block")
    _, report = quantize(network(block), 4, 4)
    note = next(row.note for row in report.conversions if row.layer == "block")
    assert "ith block.call(x) in place of block(x) its layers are those of the network" in note
    inputs = tf.keras.Input((8, 8, 4))
    flat = layers.Flatten()(block.call(inputs))
    model, report = quantize(Model(inputs, layers.Dense(3)(flat)), 4, 4)
    assert not [note for note in report.notes if "stay float" in note]
    assert lower(model)


def test_models_without_a_list_of_layers():
    class Subclassed(Model):
        def __init__(self):
            super().__init__()
            self.conv, self.scores = layers.Conv2D(4, 3), layers.Dense(3)

        def call(self, x):
            return self.scores(tf.reduce_mean(tf.nn.relu(self.conv(x)), [1, 2]))

    source = Subclassed()
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    expected = source(images)
    message, _ = message_of(source)
    assert "rebuild the network as tf.keras.Model(inputs, model.call(inputs))" in message
    inputs = tf.keras.Input((8, 8, 3))
    same = Model(inputs, source.call(inputs))
    np.testing.assert_array_equal(same(images), expected)
    assert lower(quantize(same, 4, 4, images=images)[0])
    unbuilt = tf.keras.Sequential([layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
    assert "model.build((None, height, width, channels))" in message_of(unbuilt)[0]
    unbuilt.build((None, 8, 8, 3))
    assert quantize(unbuilt, 4, 4)
    assert "Received: Dense. Put the layer into a model" in message_of(layers.Dense(3))[0]
    assert "Received: str. Load a file with tf.keras" in message_of("model.keras")[0]


def test_sequences_of_any_length_are_refused():
    inputs = tf.keras.Input((None, 2), name="sound")
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(2, 3, activation="relu")(inputs))
    message, _ = message_of(Model(inputs, layers.Dense(2)(x)))
    assert message.startswith("Expected inputs of known lengths. Received: 'sound' (None, 2). ")


def test_shapes_of_many_images_are_refused_with_what_to_put_there():
    inputs = tf.keras.Input((2, 4, 3), batch_size=16)
    x = layers.Conv2D(4, 1, activation="relu")(inputs)
    refused, accepted = (
        Model(inputs, layers.Dense(2)(tf.reshape(x, (count, 32)))) for count in (16, -1)
    )
    message, _ = message_of(refused)
    assert "It takes 16 images at once, as the model's Input says, and files take one. " in message
    assert "Put -1 in place of 16 where a shape has it." in message
    assert lower(quantize(accepted, 4, 4)[0])


def test_computing_with_sizes_is_refused_with_where_they_are_known():
    inputs = tf.keras.Input((2, 4, 3))
    x = layers.Conv2D(4, 1, activation="relu")(inputs)
    x = tf.image.resize(x, 2 * tf.shape(inputs)[1:3], name="double")
    message, overrides = message_of(Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    assert len(overrides) == 4
    (line,) = [line for line in message.splitlines() if line.startswith("- ")]
    assert "(TFOpLambda, SlicingOpLambda): It computes with sizes, which files have as" in line
    assert "Those that are known are x.shape[1:3], and -1 in a shape stands for the images" in line


class WithSettings(layers.Layer):
    """Its settings hold a regularizer, and no attribute of its has that name."""

    def get_config(self):
        return {**super().get_config(), "kernel_regularizer": None}

    @classmethod
    def from_config(cls, config):
        config.pop("kernel_regularizer")
        return cls(**config)

    def call(self, x):
        return tf.sin(x)


def test_settings_need_not_be_attributes():
    _, report = quantize(network(WithSettings(name="sine")), 4, 4)
    assert [row.became for row in report.conversions if row.layer == "sine"] == ["WithSettings"]


def test_biases_of_a_last_layer_that_reads_several_grids_are_said():
    model, report = quantize(detector("linear"), 8, 8, head=None)
    assert "export will refuse it. 'objects': its calls read codes of several" in report.notes[-1]
    with pytest.raises(ExportError, match=r"'objects' is called more than once, and its biases"):
        snap(model)
    model, report = quantize(detector("linear", use_bias=False), 8, 8, head=None)
    assert not any("refuse" in note for note in report.notes)
    snap(model)


def test_what_only_trains_is_said_where_an_override_keeps_it():
    source = network(Inverse(name="inverse"), layers.GaussianNoise(1.0, name="noise"))
    model, report = quantize(source, 4, 4, overrides={"inverse": "float"})
    assert "export will refuse it. 'inverse': TFLite has no operation" in report.notes[-1]
    row = next(row for row in report.conversions if row.layer == "inverse")
    assert "cannot be exported: TFLite has no operation MatrixInverse" in row.note
    with pytest.raises(ExportError, match=r"'inverse'.*MatrixInverse"):
        lower(model)


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
    "inverse": lambda: Inverse(name="odd"),
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


def is_stored(inputs, outputs):
    """Return whether files hold the result, having seen that reports say so."""
    model, report = quantize(Model(inputs, outputs), 4, 4, head=None)
    said = [note for note in report.notes if "export will refuse it" in note]
    assert bool(said) != is_lowered(model)
    return not said


def test_every_ending_is_stored():
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(2, 3, name="conv")(image)
    scores = layers.Dense(2, name="scores")(layers.Flatten()(x))
    assert is_stored(image, scores)
    assert is_stored(image, [scores, x])
    assert is_stored(image, layers.Softmax(name="soft")(scores))
    decision = layers.Dense(1, activation="sigmoid", name="decision")(layers.Flatten()(x))
    assert is_stored(image, decision)
    vector = tf.keras.Input((4,), name="vector")
    assert is_stored(vector, layers.Dense(2)(vector))
    free = tf.keras.Input((None, None, 3), name="free")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(free))
    _, report = quantize(Model(free, layers.Dense(2)(pooled)), 4, 4)
    assert "'free' may have any size: export asks for one size." in report.notes
    for scale, offset in ((1 / 255, 0.0), (1 / 127.5, 0.0), (1 / 255, -1.0)):
        scaled = layers.Rescaling(scale, offset, name="scaled")(image)
        scores = layers.Dense(2)(layers.Flatten()(layers.Conv2D(2, 3)(scaled)))
        assert is_stored(image, scores)


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
    ):
        assert "quantized already" in message_of(model)[0]


def test_losses_and_metrics_of_the_model_are_added_to_the_result():
    source = network(layers.ReLU(name="features"))
    features = source.get_layer("features").output
    with_loss = Model(source.input, source.output)
    with_loss.add_loss(0.5 * tf.reduce_mean(features))
    with_metric = Model(source.input, source.output)
    with_metric.add_metric(tf.reduce_mean(features), name="mean")
    for model in (with_loss, with_metric):
        message, overrides = message_of(model)
        assert "a model that adds no losses or metrics. Received: one with 'add_" in message
        assert not overrides
    result, _ = quantize(Model(with_loss.input, with_loss.output))
    lowered = lower(result).nodes
    result.add_loss(0.5 * tf.reduce_mean(result.get_layer("features").output))
    assert len(result.losses) == 1
    assert [node.name for node in lower(result).nodes] == [node.name for node in lowered]


def test_reports_say_which_regularizers_and_constraints_are_gone():
    bound = tf.keras.constraints.MaxNorm(1.0)
    inputs = x = tf.keras.Input((8, 8, 3))
    for name, options in {
        "hidden": {"activity_regularizer": "l1", "kernel_constraint": bound},
        "plain": {"kernel_regularizer": "l2"},
    }.items():
        x = layers.ReLU(name=f"{name}_relu")(layers.Conv2D(4, 3, name=name, **options)(x))
    x = layers.ReLU(name="twice", activity_regularizer="l2")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(3, bias_constraint="non_neg", bias_regularizer="l2", name="end")(x)
    model, report = quantize(Model(inputs, x))
    notes = {each.layer: each.note for each in report.conversions if "without" in each.note}
    assert list(notes) == ["hidden", "twice", "end"]
    assert notes["hidden"].endswith("without its activity_regularizer, kernel_constraint")
    assert notes["twice"].endswith("without its activity_regularizer")
    assert notes["end"].endswith("without its bias_regularizer, bias_constraint")
    model(np.zeros((1, 8, 8, 3), np.float32))
    assert len(model.losses) == 1  # of the kernel of "plain"
    assert model.get_layer("hidden").kernel_constraint is None


class Trained(tf.keras.Model):
    def train_step(self, data):
        return {"calls": tf.constant(3.0)}


def test_reports_say_what_a_class_of_models_has_beside_layers():
    source = network(layers.ReLU())
    own = Trained(source.input, source.output)
    model, report = quantize(own)
    (note,) = (each for each in report.notes if "Trained" in each)
    assert "without train_step of Trained. To keep them: Trained(result.input, result" in note
    assert not any("train_step" in each for each in quantize(source)[1].notes)
    kept = Trained(model.input, model.output)
    kept.compile("sgd")
    images = np.zeros((1, 8, 8, 3), np.float32)
    assert kept.fit(images, verbose=0).history == {"calls": [3.0]}
    assert [each.name for each in lower(kept).nodes] == [each.name for each in lower(model).nodes]


@pytest.mark.parametrize(
    ("wrap", "name", "advice"),
    [
        (
            tfmot.quantization.keras.quantize_annotate_model,
            "quantize_annotate",
            "annotates: give the model before it was annotated, or call quantize_apply(",
        ),
        (
            tfmot.sparsity.keras.prune_low_magnitude,
            "prune_low_magnitude_first",
            "prunes: give what tfmot.sparsity.keras.strip_pruning(model) returns.",
        ),
        (
            lambda model: tfmot.clustering.keras.cluster_weights(
                model, 2, tfmot.clustering.keras.CentroidInitialization.LINEAR
            ),
            "cluster_first",
            "clusters: give what tfmot.clustering.keras.strip_clustering(model) returns.",
        ),
    ],
)
@pytest.mark.parametrize("overrides", [None, {"*": "float"}])
def test_wrappers_of_tfmot_that_do_not_quantize_are_to_be_taken_off(wrap, name, advice, overrides):
    message, _ = message_of(wrap(network(layers.ReLU())), overrides=overrides)
    assert f"Received: one with '{name}" in message
    assert f"which TF-MOT {advice}" in message


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
