"""What goes into a file: prepared pixels, measurements, and the two of them."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf import CGPACT, InputQuantizer, Preprocessing
from dlqat_tf._litert import tflite_interpreter
from dlqat_tf.export import ExportError, lower, parity, to_lce, to_tflite
from dlqat_tf.export.files.inputs import arrays_of, check_lookups, input_types
from dlqat_tf.export.files.tflite import _opened, build
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import Lookup
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.simulate import Simulation
from dlqat_tf.preprocessing import NAMED, ChannelAffine
from tests.export.networks import convolution, quantized

layers = tf.keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
PREPARED = {
    "offset": lambda x: layers.Rescaling(1 / 127.5, -1.0)(x),
    "positive": lambda x: layers.Rescaling(1 / 127.5, 1.0)(x),
    "channels": lambda x: layers.Rescaling([0.1, 0.2, 0.3], [0.0, -20.0, 3.0])(x),
    "normalization": lambda x: layers.Normalization(mean=[9.0, 99.0, 120.0], variance=3000.0)(x),
    "two": lambda x: layers.Normalization(mean=0.5, variance=0.0625)(layers.Rescaling(1 / 255)(x)),
    "caffe": tf.keras.applications.resnet50.preprocess_input,
    "tf": tf.keras.applications.mobilenet_v2.preprocess_input,
    "torch": tf.keras.applications.densenet.preprocess_input,
}


def float_network(prepare=lambda x: x):
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="first")(prepare(image))
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    return tf.keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def only_rounded(prepare, alpha, signed, channels=1, preprocessing=Preprocessing(scale=1)):  # noqa: B008
    """A model that outputs what an input quantizer makes of images."""
    image = tf.keras.Input((16, 16, channels), name="image")
    quantizer = InputQuantizer(8, alpha, signed, preprocessing, name="codes")
    return tf.keras.Model(image, layers.Flatten()(quantizer(prepare(image))))


def file_codes(model, to=to_tflite):
    """Return the codes (256, channels) that the file makes of pixels of 0 to 255."""
    network = plan(lower(model))
    (lookup,) = (node for node in network if isinstance(node, Lookup))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    interpreter = tflite_interpreter(build(network).data)
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.repeat(pixels, len(lookup.order), -1)
    )
    interpreter.invoke()
    values = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return np.rint(values.reshape(256, -1) / lookup.grid.step).astype(int), lookup


def test_each_pixel_by_hand():
    """Codes of 1 / 127 for (p - 127.5) / 127.5."""
    codes, lookup = file_codes(only_rounded(layers.Rescaling(1 / 127.5, -1.0), 1.0, True))
    assert codes[[0, 1, 126, 127, 128, 129, 254, 255], 0].tolist() == [
        *(-127, -126, -1, 0),  # -1, -0.992, -0.0118 * 127 = -1.49, -0.498
        *(0, 1, 126, 127),
    ]
    np.testing.assert_array_equal(codes[:, 0], np.rint((np.arange(256) - 127.5) / 127.5 * 127))
    np.testing.assert_array_equal(codes, lookup.codes)


def test_channels_are_reversed_before_the_means_are_taken():
    reverse = ChannelAffine([1, 1, 1], [-10, -100, -200], [2, 1, 0])
    image = np.uint8([[[[201, 102, 13]]]])
    codes, lookup = file_codes(only_rounded(reverse, 127.0, True, 3))  # codes of one pixel
    np.testing.assert_array_equal(codes, lookup.codes)
    assert lookup.order == (2, 1, 0)
    simulated = Simulation(plan(lower(only_rounded(reverse, 127.0, True, 3))))
    image = np.broadcast_to(image, (1, 16, 16, 3))
    assert simulated.logits(image)[0, :3].tolist() == [3, 2, 1]


@given(st.data())
def test_the_file_looks_up_what_keras_computes(data):
    channels = data.draw(st.integers(1, 3))
    number = st.floats(-2, 2, width=16)
    gain = [data.draw(number) for _ in range(channels)]
    offset = [data.draw(st.integers(-200, 200)) / 2 for _ in range(channels)]
    # Gains of halves and ranges of 127 or 255 put many values halfway between two codes.
    prepare = layers.Rescaling(gain, offset)
    alpha = data.draw(st.sampled_from([1.0, 127.0, 255.0, 300.7]))
    model = only_rounded(prepare, alpha, data.draw(st.booleans()), channels)
    codes, lookup = file_codes(model)
    pixels = np.repeat(np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1), channels, -1)
    expected = model(pixels).numpy().reshape(256, channels)
    np.testing.assert_array_equal(np.float32(codes) * lookup.grid.step, expected)


def test_files_that_prepare_otherwise_than_keras_are_refused():
    built = build(lower(only_rounded(layers.Rescaling(1 / 255, 1.0), 2.0, False)))
    check_lookups(built.data, built.planned, built.input_types, _opened)
    codes = built.planned["codes"].codes.copy()
    codes[200, 0] -= 1
    nodes = (replace(n, codes=codes) if n.name == "codes" else n for n in built.planned)
    with pytest.raises(ExportError, match="prepare pixels of 'image' otherwise than Keras"):
        check_lookups(built.data, IntegerNetwork(tuple(nodes)), built.input_types, _opened)


@pytest.mark.parametrize(
    ("kind", "to"), [*((kind, to_tflite) for kind in PREPARED), ("caffe", to_lce), ("two", to_lce)]
)
def test_images_prepared_in_the_model(tmp_path, kind, to):
    source = float_network(PREPARED[kind])
    model, report = dlqat_tf.quantize(source, 1, 2, images=PIXELS, labels=np.arange(8) % 4)
    (note,) = report.notes
    assert "starts from the means" in note
    quantizer, first = model.get_layer("image_codes"), source.get_layer("first")
    rounded, expected = (
        tf.keras.Model(each.input, tensor)(PIXELS.astype(np.float32)).numpy()
        for each, tensor in ((model, quantizer.output), (source, first.input))
    )
    assert np.abs(rounded - expected).max() <= 0.501 * quantizer.grid().step
    model.compile("sgd", dlqat_tf.GMLoss())
    model.fit(PIXELS, np.arange(8) % 4, verbose=0)
    model.save(tmp_path / "model.keras")
    model = tf.keras.models.load_model(tmp_path / "model.keras", compile=False)
    path = tmp_path / "model.tflite"
    for input_type in ("uint8", "int8", "float32"):
        written = to(model, path, input_type=input_type, force=True)
        snapped = tf.keras.models.load_model(written.snapped, compile=False)
        assert not parity(snapped, path, PIXELS).failures()
    assert not parity(snapped, path, PIXELS.astype(np.float32)).failures()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("divide", [lambda x: x / 255.0, lambda x: x * 2.0 / 510.0])
def test_pixels_divided_by_operators_are_codes(tmp_path, dtype, divide):
    image = tf.keras.Input((8, 8, 3), dtype=dtype, name="image")
    x = layers.Conv2D(4, 3, activation="relu")(divide(tf.cast(image, "float32")))
    source = tf.keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    for images in (PIXELS, None):
        model, report = dlqat_tf.quantize(source, images=images, head=None)
        assert not any(isinstance(layer, InputQuantizer) for layer in model.layers)
        assert not any("pixels" in note for note in report.notes)
    if dtype == "float32":
        with pytest.raises(dlqat_tf.ConversionError, match="rescales by 1 / 255 itself"):
            dlqat_tf.quantize(source, images=PIXELS / 255, head=None)
    (node,) = lower(model).inputs
    assert node.preprocessing == Preprocessing(scale=1)
    written = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(written.snapped, compile=False)
    assert not parity(snapped, written.path, PIXELS).failures()


@pytest.mark.parametrize("name", NAMED)
def test_images_prepared_outside_of_the_model(tmp_path, name):
    images = NAMED[name](PIXELS)
    model, _ = dlqat_tf.quantize(float_network(), 1, 2, images=images, preprocessing=name)
    assert not model.get_layer("image_codes").trainable
    for to in (to_tflite, to_lce):
        written = to(model, tmp_path / f"{to.__name__}.tflite")
        snapped = tf.keras.models.load_model(written.snapped, compile=False)
        for given_images in (PIXELS, images):
            assert not parity(snapped, written.path, given_images, trained=model).failures()
        with pytest.raises(ExportError, match="Expected uint8 images or float ones prepared as"):
            parity(snapped, written.path, images * 2)


VECTORS = np.random.default_rng(1).normal(0, 3, (16, 12)).astype(np.float32)
DENSE = dict(activation="relu")
MEASURED = {
    "vector": (12,),
    "sequence": (3, 4),
    "spectrogram": (3, 4, 1),
    "video": (1, 2, 3, 2),
}


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("norm", ["none", "first", "between", "behind"])
def test_measurements_of_any_rank(tmp_path, kind, norm):
    values = VECTORS.reshape(16, *MEASURED[kind])
    source = tf.keras.Sequential([tf.keras.Input(MEASURED[kind], name="values")])
    if norm == "first":
        source.add(layers.BatchNormalization())
    source.add(layers.Dense(8))
    if norm == "between":
        source.add(layers.BatchNormalization())
    source.add(layers.ReLU())
    if norm == "behind":
        source.add(layers.BatchNormalization())
    source.add(layers.Flatten())
    source.add(layers.Dense(4))
    model, _ = dlqat_tf.quantize(source, 4, 4, images=values, labels=np.arange(16) % 4)
    model.compile("sgd", dlqat_tf.GMLoss())
    model.fit(values, np.arange(16) % 4, verbose=0)
    for input_type in (None, "int8") if norm != "first" else (None,):
        path = tmp_path / f"{input_type}.tflite"
        written = to_tflite(model, path, input_type=input_type)
        snapped = tf.keras.models.load_model(written.snapped, compile=False)
        assert not parity(snapped, path, values).failures()


def test_measurements_by_hand(tmp_path):
    """8 bits of a range of 12.7: steps of 0.1, from -12.8."""
    x = tf.keras.Input((3,), name="values")
    dense = layers.Dense(1, kernel_initializer="ones", name="sum")
    model = tf.keras.Model(x, dense(InputQuantizer(8, 12.7, name="codes")(x)))
    report = to_tflite(model, tmp_path / "model.tflite", input_type="int8", snap=False)
    (taken,) = report.census.inputs
    assert (taken.name, taken.shape, taken.type, taken.zero_point) == ("values", (3,), "int8", 0)
    assert taken.scale == pytest.approx(0.1)
    assert "input 'values': int8, of shape 3, value = 0.1 * code" in "".join(
        map(str, report.census.tables())
    )
    interpreter = tflite_interpreter(report.path)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.int8([[10, -128, 1]]))
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert output[0, 0] == pytest.approx(1.0 - 12.8 + 0.1, abs=1e-5)


@pytest.mark.parametrize("to", [to_tflite, to_lce])
def test_an_image_and_a_vector(tmp_path, to):
    image, vector = tf.keras.Input((8, 8, 3), name="image"), tf.keras.Input((12,), name="vector")
    x = layers.Conv2D(8, 3, activation="relu")(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    x = layers.Dense(8, activation="relu")(layers.Concatenate()([x, vector]))
    source = tf.keras.Model([image, vector], layers.Dense(4)(x))
    images = [np.float32(PIXELS / 255), VECTORS[:8]]
    model, _ = dlqat_tf.quantize(source, 1, 2, images=images, labels=np.arange(8) % 4)
    for i, types in enumerate((None, "int8", {"image": "int8"}, {"vector": "int8"})):
        written = to(model, tmp_path / f"{i}.tflite", input_type=types)
        snapped = tf.keras.models.load_model(written.snapped, compile=False)
        assert not parity(snapped, written.path, [PIXELS, VECTORS[:8]]).failures()
    found = [each.type for each in written.census.inputs]
    assert found == ["uint8", "int8"]


def test_types_are_checked():
    measured = tf.keras.Input((4,), name="values")
    network = lower(tf.keras.Model(measured, layers.Dense(2)(measured)))
    assert input_types(network) == {"values": "float32"}
    for wanted, message in (
        ("uint8", r"'values' takes values that are no pixels.*preprocessing="),
        ("int8", r"'values' has no codes.*input_type=\"float32\""),
        ("int16", "input_type='int16'"),
        ({"value": "int8"}, r"by input name, of values\. Received: value"),
    ):
        with pytest.raises(ExportError, match=message):
            input_types(network, wanted)


def test_float_kernels_round_ties_otherwise():
    """Half a step a pixel: they multiply by another float32 than Keras, which has 127 / 1.9."""
    network = lower(only_rounded(layers.Rescaling(1.9 / 127 / 2), 1.9, True))
    with pytest.raises(ExportError, match="halfway between two codes"):
        input_types(network, "float32")
    assert input_types(network, "int8") == {"image": "int8"}


def test_measurements_are_checked():
    measured = tf.keras.Input((2,), name="values")
    network = lower(tf.keras.Model(measured, layers.Dense(2)(measured)))
    (array,) = arrays_of(np.int16([[-7, 300]]), network)
    assert array.dtype == np.float32
    assert array.tolist() == [[-7, 300]]
    for values, message in (
        ([[np.nan, 1]], "Expected finite numbers for the input 'values'"),
        ([["a", "b"]], "Expected finite numbers"),
        ([[1, 2, 3]], r"shape \(images, 2\) for the input 'values'\. Received: shape \(1, 3\)"),
    ):
        with pytest.raises(ExportError, match=message):
            arrays_of(np.array(values), network)


def test_two_preparations_of_one_image(tmp_path):
    image = tf.keras.Input((8, 8, 3), name="image")
    raw = Preprocessing(scale=1)
    parts = [
        CGPACT(2, 2.0)(
            convolution(InputQuantizer(8, 1.0, True, raw)(prepare(image)), 4, 3, weight_bits=8)
        )
        for prepare in (layers.Rescaling(1 / 127.5, -1.0), layers.Rescaling(1 / 255, -0.3))
    ]
    x = CGPACT(2, 2.0)(quantized(8, 2)(layers.Concatenate()(parts)))
    x = dlqat_tf.LinearHead(4)(layers.GlobalAveragePooling2D()(x))
    model = tf.keras.Model(image, x)
    written = to_tflite(model, tmp_path / "model.tflite")
    snapped = tf.keras.models.load_model(written.snapped, compile=False)
    assert not parity(snapped, written.path, PIXELS).failures()
    with pytest.raises(ExportError, match="Several layers prepare the image 'image'"):
        to_tflite(model, tmp_path / "other.tflite", input_type="int8")


def test_preprocessing_said_at_export(tmp_path):
    """The range of the images was seen in conversion, how they were prepared was not said."""
    images = np.float32(PIXELS / 127.5 - 1)
    model, report = dlqat_tf.quantize(float_network(), 4, 4, images=images)
    assert 'preprocessing="tf"' in report.notes[0]
    assert to_tflite(model, tmp_path / "values.tflite").census.inputs[0].type == "float32"
    written = to_tflite(model, tmp_path / "pixels.tflite", preprocessing="tf")
    assert written.census.inputs[0].type == "uint8"
    assert not written.warnings
    snapped = tf.keras.models.load_model(written.snapped, compile=False)
    assert snapped.get_layer("image_codes").preprocessing == NAMED["tf"]
    assert model.get_layer("image_codes").preprocessing is None
    for given_images in (PIXELS, images):  # the file has told the trained model
        assert not parity(snapped, written.path, given_images, trained=model).failures()
        assert not parity(model, written.path, given_images).failures(keras_agreement=0)
    narrow = to_tflite(model, tmp_path / "narrow.tflite", preprocessing="caffe")
    assert "of the 256 pixel values are outside of its range" in narrow.warnings[0]


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ("imagenet", "For the input 'image': Expected preprocessing to be one of"),
        (Preprocessing((1.0, 2.0)), "For the input 'image': Expected mean to be one number or 3"),
        ("tf", "'image' takes pixels by Preprocessing.*Say it to dlqat_tf.quantize"),
        ({"picture": "tf"}, "preprocessing by input name, of image. Received: picture"),
    ],
)
def test_preprocessing_is_checked_at_export(tmp_path, preprocessing, message):
    model, _ = dlqat_tf.quantize(float_network(), 4, 4, images=PIXELS / 255)
    with pytest.raises(ExportError, match=message):
        to_tflite(model, tmp_path / "model.tflite", preprocessing=preprocessing)


@pytest.mark.parametrize("to", [to_tflite, to_lce])
def test_models_of_any_size_are_exported_for_one(tmp_path, to):
    image = tf.keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 127.5, -1)(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    source = tf.keras.Model(image, layers.Dense(4)(x))
    model, report = dlqat_tf.quantize(source, 1, 2, images=PIXELS)
    assert report.notes == ["'image' may have any size: export asks for one size."]
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"\(None, None, 3\)\. Say which: size=\(height, width\)"):
        to(model, path)
    for size in ((8,), (8, 0), (8.0, 8), 8, "88"):
        with pytest.raises(ExportError, match=r"'image', of shape .* to be 2 positive integers"):
            to(model, path, size=size)
    written = to(model, path, size=(8, 8))
    assert written.census.inputs[0].shape == (8, 8, 3)
    snapped = tf.keras.models.load_model(written.snapped, compile=False)
    assert snapped.input_shape == (None, 8, 8, 3)
    assert not parity(snapped, path, PIXELS, trained=model).failures()
    with pytest.raises(ExportError, match="to be none, since it is fixed"):
        to(snapped, path, size=(8, 8), force=True)


def test_inputs_and_outputs_have_their_names(tmp_path):
    """For get_signature_runner, and Android's runSignature."""
    image, vector = tf.keras.Input((8, 8, 3), name="image"), tf.keras.Input((12,), name="vector")
    x = layers.Concatenate()([layers.Flatten()(image), vector])
    source = tf.keras.Model([image, vector], layers.Dense(4, name="scores")(x))
    images = [np.float32(PIXELS / 255), VECTORS[:8]]
    model, _ = dlqat_tf.quantize(source, 4, 4, images=images)
    written = to_tflite(model, tmp_path / "model.tflite")
    runner = tflite_interpreter(written.path).get_signature_runner()
    (output,) = runner(vector=VECTORS[:1], image=PIXELS[:1]).values()
    assert output.shape == (1, 4)
    assert list(runner.get_output_details()) == ["scores"]


def test_augmentation_in_front_of_what_prepares_pixels(tmp_path):
    """As in TensorFlow's tutorial on image classification."""
    stack = [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    ]
    source = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), *stack])
    model, _ = dlqat_tf.quantize(source, 8, 8, head="linear")
    report = to_tflite(model, tmp_path / "model.tflite")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    result = parity(model, report.path, pixels)
    assert result.agreement["simulation_file"] == 100.0
    assert result.logit_difference["keras_file"] < 0.05
