import json

import larq as lq
import pytest
import tensorflow as tf

from dlqat_tf import CGPACT, InputQuantizer, LinearHead, SATWeights, resnet18, summary
from dlqat_tf.export import ExportError, to_lce, to_tflite
from tests.export.networks import (
    convolution,
    depthwise,
    images_for,
    randomize,
    siamese_network,
)

layers = tf.keras.layers


@pytest.fixture(scope="module")
def chain():
    """W8A8, W4A2 depthwise, W1A3, and a head of 8 bits on float features."""
    inputs = tf.keras.Input((6, 6, 4), name="images")
    x = CGPACT(2, 2.0, name="act1")(
        convolution(inputs, 16, 3, padding="valid", weight_bits=8, name="conv1", use_bias=False)
    )
    x = CGPACT(3, 2.0, name="act2")(depthwise(x, 3, 1, "valid", 2, 4))
    x = convolution(x, 8, 1, weight_bits=1, name="conv3", use_bias=True)
    x = layers.GlobalAveragePooling2D(name="features")(CGPACT(8, 2.0, name="act3")(x))
    return randomize(tf.keras.Model(inputs, LinearHead(5, name="head")(x), name="chain"))


@pytest.fixture(scope="module")
def report(chain):
    return summary(chain)


def by_name(report):
    return {layer.layer: layer for layer in report.layers}


def storage(report):
    return {each.name: each for each in report.storage}


def macs(layer):
    return [(each.weight_bits, each.activation_bits, each.number) for each in layer.macs]


def test_layers_by_hand(report):
    rows = by_name(report)
    assert [(row.input_bits, row.output_bits) for row in report.layers] == [
        (None, 8),  # images
        *[(8, 32), (32, 32), (32, 2)],
        *[(2, 32), (32, 32), (32, 3)],
        *[(3, 32), (32, 32), (32, 8)],
        *[(8, 32), (32, 32)],  # mean, head
    ]
    first, second, third = (row for row in report.layers if "Conv2D" in row.kind)
    assert (first.output_shape, second.output_shape) == ((4, 4, 16), (2, 2, 32))
    assert (first.weight_bits, second.weight_bits, third.weight_bits) == ((8,), (4,), (1,))
    assert macs(first) == [(8, 8, 3 * 3 * 4 * 16 * 4 * 4)]
    assert macs(second) == [(4, 2, 3 * 3 * 16 * 2 * 2 * 2)]
    assert macs(third) == [(1, 3, 32 * 8 * 2 * 2)]
    assert macs(rows["head"]) == [(8, 32, 8 * 5)]
    assert [row.parameters for row in report.layers] == [
        0,
        *[3 * 3 * 4 * 16, 4 * 16, 1],
        *[3 * 3 * 16 * 2, 4 * 32, 1],
        *[32 * 8 + 8, 4 * 8, 1],
        0,
        8 * 5 + 5,
    ]
    assert rows["conv3"].bytes == {
        "float32": 4 * (32 * 8 + 8),
        "declared": 32 * 8 // 8 + 4 * 8,
        "int8": 32 * 8,
        "int4": 32 * 8 // 2,
        "lce": 32 * 8 // 8,
    }
    assert second.bytes["declared"] == 3 * 3 * 16 * 2 // 2
    assert second.bytes["int8"] == second.bytes["lce"] == 3 * 3 * 16 * 2
    assert rows["act1"].bytes == {"float32": 4, "declared": 4}


def test_totals_by_hand(chain, report):
    numbers = {(8, 8): 9216, (4, 2): 1152, (1, 3): 1024, (8, 32): 40}
    assert {(m.weight_bits, m.activation_bits): m.number for m in report.macs} == numbers
    assert report.bit_operations == 9216 * 64 + 1152 * 8 + 1024 * 3 + 40 * 256
    assert report.bit_operations == sum(each.bit_operations for each in report.macs)
    assert report.parameters == sum(row.parameters for row in report.layers)
    assert report.parameters - report.trainable_parameters == 2 * (16 + 32 + 8)
    found = storage(report)
    assert found["float32"].weight_bytes == 4 * report.parameters
    assert found["int8"].weight_bytes == 576 + 288 + 256 + 40
    assert found["int4"].weight_bytes == 576 + 288 + 256 / 2 + 40
    assert found["lce"].weight_bytes == 576 + 288 + 256 / 8 + 40


def test_peak_activations_by_hand(report):
    found = {name: each.peak_activation_bytes for name, each in storage(report).items()}
    # The first convolution's input and its output, which is rounded in place.
    assert found["float32"] == 4 * (6 * 6 * 4 + 4 * 4 * 16)
    assert found["declared"] == 6 * 6 * 4 + 4 * 4 * 16 * 2 // 8
    assert found["int8"] == found["int4"] == 6 * 6 * 4 + 4 * 4 * 16
    # Planes are packed from int8 codes of 2 * 2 * 32 values, which is less than that.
    assert found["lce"] == 6 * 6 * 4 + 4 * 4 * 16


def test_a_shortcut_is_live_until_the_add():
    inputs = tf.keras.Input((4, 4, 2))
    x = shortcut = CGPACT(2, 2.0)(convolution(inputs, 8, 3, weight_bits=8))
    x = CGPACT(8, 2.0, signed=True)(convolution(x, 8, 3, weight_bits=1))
    x = CGPACT(2, 2.0)(layers.Add()([x, shortcut]))
    found = storage(summary(tf.keras.Model(inputs, layers.Flatten()(x))))
    values = 4 * 4 * 8
    assert found["float32"].peak_activation_bytes == 4 * 3 * values
    assert found["declared"].peak_activation_bytes == values * (2 + 8 + 2) // 8
    assert found["int8"].peak_activation_bytes == 4 * values + values  # the flat output is float32


def test_sizes_are_those_of_the_files(tmp_path):
    model = resnet18(10, width=8, residual_bits=8, head="gml")
    untrained = storage(summary(model))
    trained = storage(summary(randomize(model)))
    for name, write, options in (
        ("int8", to_tflite, {}),
        ("int4", to_tflite, {"weights": "int4"}),
        ("lce", to_lce, {}),
    ):
        content = write(model, tmp_path / f"{name}.tflite", **options).census
        assert trained[name].file_bytes == content.file_bytes
        assert untrained[name].file_bytes == pytest.approx(content.file_bytes, rel=0.02)
        assert trained[name].weight_bytes == sum(layer.bytes for layer in content.layers)
        assert trained[name].peak_activation_bytes == content.peak_activation_bytes


def test_calls_of_a_layer_share_their_constants(tmp_path):
    model = siamese_network()
    found = storage(summary(model))
    for name, write in (("int8", to_tflite), ("lce", to_lce)):
        content = write(randomize(model), tmp_path / f"{name}.tflite", snap=False).census
        assert found[name].file_bytes == pytest.approx(content.file_bytes, rel=0.005)


def test_files_that_need_images_have_a_size_and_say_so(tmp_path):
    model = randomize(resnet18(10, width=8))
    report = summary(model)
    (note,) = report.notes
    assert "need calibration images" in note
    assert "stage4_block2_2_conv" in note
    path = tmp_path / "model.tflite"
    written = to_tflite(model, path, calibration=images_for(model, 4), snap=False)
    predicted = storage(report)["int8"].file_bytes
    assert predicted == pytest.approx(written.census.file_bytes, rel=0.02)


@pytest.fixture(scope="module")
def imagenet():
    model = resnet18(1000, (224, 224, 3), head="gml", stem="imagenet")
    return model, summary(model)


def test_resnet18_at_imagenet_size(imagenet):
    _, report = imagenet
    found = {(each.weight_bits, each.activation_bits): each.number for each in report.macs}
    stages = [
        4 * 9 * 64 * 64 * 56**2,
        (9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128) * 28**2,
        (9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256) * 14**2,
        (9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512) * 7**2,
    ]
    assert found == {
        (1, 2): sum(stages),
        (8, 8): 7 * 7 * 3 * 64 * 112**2,
        (8, 32): 512 * 1000,
    }
    kernels = [row for row in report.layers if row.weight_bits]
    assert sum(row.bytes["int8"] for row in kernels) == 11_506_880 + 172_032
    ends = 7 * 7 * 3 * 64 + 512 * 1000
    hidden = 11_506_880 + 172_032 - ends
    assert sum(row.bytes["lce"] for row in kernels) == hidden / 8 + ends
    assert sum(row.bytes["int4"] for row in kernels) == hidden / 2 + ends
    batch_norms_and_ranges = 4 * (4 * 4800 + 17)
    assert storage(report)["declared"].weight_bytes == hidden / 8 + ends + batch_norms_and_ranges


def test_larq_sees_bits_memory_and_macs_of_resnet18(imagenet):
    model, report = imagenet
    profile = lq.models.ModelProfile(model)
    ends = 7 * 7 * 3 * 64 + 512 * 1000
    hidden = 11_506_880 + 172_032 - ends
    assert profile.weight_count(1) == hidden
    assert profile.weight_count(8) == ends
    assert profile.weight_count(32) == 2 * 4800 + 17  # Larq folds a batch norm to two vectors
    assert profile.memory == hidden + 8 * ends + 32 * (2 * 4800 + 17)
    assert profile.op_count("mac") == sum(each.number for each in report.macs)
    assert profile.layer_profiles[-1].op_count("mac") == 512 * 1000
    lines = []
    lq.models.summary(model, print_fn=lines.append)
    (head,) = (line.split() for line in lines[0].splitlines() if line.startswith("| head "))
    # name, input bits, outputs, 1-bit, 8-bit and 32-bit weights, kB, MACs
    assert head[-6:-1] == ["0", "512000", "0", "500.00", "512000"]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # grouped: each output channel reads 4 / 2 channels
        (layers.Conv2D(6, 3, groups=2), (5, 5, 4), [(32, 8, 3 * 3 * 2 * 6 * 3 * 3)]),
        (layers.Conv2D(6, 3, 2, "same"), (5, 5, 4), [(32, 8, 3 * 3 * 4 * 6 * 3 * 3)]),
        # every input pixel is multiplied by the whole kernel
        (layers.Conv2DTranspose(6, 3, 2), (5, 5, 4), [(32, 8, 3 * 3 * 4 * 6 * 5 * 5)]),
        (layers.Conv1D(6, 3), (5, 4), [(32, 32, 3 * 4 * 6 * 3)]),
        (layers.Dense(6), (5, 5, 4), [(32, 8, 4 * 6 * 5 * 5)]),
        (
            lq.layers.QuantSeparableConv2D(
                6,
                3,
                input_quantizer=CGPACT(4),
                depthwise_quantizer=SATWeights(3),
                pointwise_quantizer=SATWeights(2),
            ),
            (5, 5, 4),
            [(3, 4, 3 * 3 * 4 * 3 * 3), (2, 32, 4 * 6 * 3 * 3)],
        ),
        (
            lq.layers.QuantDense(
                6, input_quantizer="ste_sign", kernel_quantizer="ste_sign", activation=CGPACT(4)
            ),
            (7,),
            [(1, 1, 7 * 6)],
        ),
        (layers.MaxPool2D(), (4, 4, 2), []),
    ],
)
def test_macs_of_other_layers(layer, shape, expected):
    report = summary(tf.keras.Sequential([tf.keras.Input(shape), layer]))
    assert macs(report.layers[1]) == expected
    assert report.notes == []
    output = {"QuantDense": 4, "MaxPooling2D": 8}
    assert report.layers[1].output_bits == output.get(type(layer).__name__, 32)


def test_widths_that_are_handed_on():
    inputs = tf.keras.Input((4, 4, 2))
    pixels = layers.Rescaling(1 / 255)(inputs)
    low = layers.ZeroPadding2D(1)(layers.ReLU()(CGPACT(4, signed=True)(pixels)))
    x = layers.Concatenate()([layers.MaxPool2D()(low), CGPACT(2)(layers.MaxPool2D()(low))])
    report = summary(tf.keras.Model(inputs, layers.Activation("tanh")(layers.Flatten()(x))))
    found = [(row.kind, row.output_bits) for row in report.layers]
    assert found == [
        ("InputLayer", 8),
        ("Rescaling", 8),
        ("CGPACT", 4),
        ("ReLU", 4),
        ("ZeroPadding2D", 4),
        ("MaxPooling2D", 4),
        ("MaxPooling2D", 4),
        ("CGPACT", 2),
        ("Concatenate", 4),
        ("Flatten", 4),
        ("Activation", 32),
    ]


def test_nested_models_and_layers_called_twice():
    inner = tf.keras.Sequential([tf.keras.Input((4, 4, 2)), layers.Conv2D(2, 1, name="conv")])
    inner._name = "inner"
    inputs = tf.keras.Input((4, 4, 2))
    report = summary(tf.keras.Model(inputs, inner(inner(inputs))))
    rows = by_name(report)
    assert set(rows) - {inputs.node.layer.name} == {"inner/conv", "inner/conv_2"}
    assert (rows["inner/conv"].parameters, rows["inner/conv_2"].parameters) == (2 * 2 + 2, 0)
    assert rows["inner/conv_2"].bytes["declared"] == 0
    assert macs(rows["inner/conv_2"]) == [(32, 32, 2 * 2 * 4 * 4)]
    assert report.parameters == 6


def test_the_float_stage_has_a_table_and_says_why_it_has_no_file(capsys):
    model = resnet18(5, (8, 8, 3), 32, 32, width=4)
    report = summary(model)
    found = storage(report)
    assert [each.name for each in report.storage if each.reason] == ["int8", "int4", "lce"]
    assert "SATWeights(bits=32) does not round" in found["int8"].reason
    assert found["int8"].file_bytes is None
    assert found["declared"].weight_bytes == found["float32"].weight_bytes == 4 * report.parameters
    assert {(each.weight_bits, each.activation_bits) for each in report.macs} == {
        (32, 8),
        (32, 32),
    }
    printed = capsys.readouterr().out
    assert "no file of int8, int4, lce: Layer 'stem_conv'" in " ".join(printed.split())


def test_widths_that_one_file_does_not_carry():
    found = storage(summary(resnet18(5, (8, 8, 3), 8, 8, width=4, residual_bits=8)))
    assert found["int8"].file_bytes
    assert "codes from -7 to 7" in found["int4"].reason
    assert "nothing runs on binary kernels" in found["lce"].reason


def test_signs_have_both_files():
    inputs = tf.keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(32, 3)(inputs))
    x = lq.layers.QuantConv2D(8, 3, input_quantizer="ste_sign", kernel_quantizer="ste_sign")(x)
    found = storage(summary(tf.keras.Model(inputs, layers.GlobalAveragePooling2D()(x))))
    assert found["lce"].file_bytes < found["int8"].file_bytes


class Mixing(layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight("matrix", shape=(shape[-1], shape[-1]))

    def call(self, inputs):
        return tf.matmul(inputs, self.matrix)


def test_a_layer_that_nothing_is_known_of():
    inputs = tf.keras.Input((7,))
    report = summary(tf.keras.Model(inputs, Mixing(name="mixing")(inputs)))
    row = by_name(report)["mixing"]
    assert (row.parameters, row.weight_bits, row.macs) == (49, (32,), ())
    assert report.notes == ["MACs of 'mixing' (Mixing) are not counted"]
    assert storage(report)["int8"].file_bytes > 4 * 49  # it runs in float


def test_it_prints_and_returns_the_same(chain, report, capsys):
    assert summary(chain) == report
    printed = capsys.readouterr().out
    assert "?" not in printed
    for text in ("chain: 1,", "9,216", f"{storage(report)['lce'].file_bytes:,}", "W4A2"):
        assert text in printed
    assert len(repr(report)) < 100
    assert json.loads(report.to_json())["layers"][1]["macs"][0]["number"] == 9216


def test_models_without_connections_or_sizes():
    with pytest.raises(ExportError, match=r"Subclassed models.*tf\.keras\.Model\(inputs"):
        summary(tf.keras.Model())
    inputs = tf.keras.Input((None, None, 3))
    with pytest.raises(ExportError, match=r"fixed size.*\(None, None, 3\)"):
        summary(tf.keras.Model(inputs, layers.Conv2D(2, 3)(inputs)))


def test_the_plain_float_network_has_a_float_file():
    found = storage(summary(resnet18(5, (8, 8, 3), None, None, width=4)))
    kernels = [9 * 3 * 4, 4 * 9 * 4 * 4]
    kernels += [9 * c * 2 * c + 3 * 9 * 4 * c * c + 2 * c * c for c in (4, 8, 16)]
    assert found["int8"].weight_bytes == 4 * (sum(kernels) + 32 * 5)
    assert found["int8"].file_bytes


@pytest.mark.parametrize(("preprocessing", "bits"), [("tf", 8), (None, 32)])
def test_width_of_inputs(preprocessing, bits):
    """Pixels have 8 bits, other values 32, until they are rounded."""
    inputs = tf.keras.Input((4, 4, 3), name="images")
    x = InputQuantizer(8, preprocessing=preprocessing, name="codes")(inputs)
    rows = by_name(summary(tf.keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(x))))
    assert [rows["images"].output_bits, rows["conv"].input_bits] == [bits, 8]
