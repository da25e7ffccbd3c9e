"""Pictures: what their bars, lines and labels say."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import dlqat_tf
from dlqat_tf import plots
from dlqat_tf.costs import LayerSummary, Macs
from dlqat_tf.export.files.assembly import ExportReport
from dlqat_tf.export.files.census_report import Census, LayerStorage
from dlqat_tf.export.parity_report import LayerParity, ParityReport
from dlqat_tf.summary import StorageSummary, SummaryReport

import tensorflow as tf  # isort: skip


def line(axes, label):
    (found,) = (each for each in axes.get_lines() if each.get_label() == label)
    return found.get_ydata()


def bars(axes, count):
    """Widths of bars by series, in the order in which they were drawn, for ``count`` rows."""
    widths = [patch.get_width() for patch in axes.patches]
    return [widths[i : i + count] for i in range(0, len(widths), count)]


def rows(axes):
    return [each.get_text() for each in axes.get_yticklabels()]


def texts(axes):
    return [each.get_text().strip() for each in axes.texts]


def test_quantizer_with_its_gradients():
    quantizer = dlqat_tf.CGPACT(2, alpha_init=3.0)
    figure = plots.quantizer(quantizer, lowest=-1.0, highest=5.0, points=13)
    above, below = figure.axes
    x = np.arange(-1, 5.5, 0.5)
    np.testing.assert_allclose(above.get_lines()[0].get_xdata(), x)
    # Levels 0, 1, 2, 3; halves are rounded to even: 0.5 to 0, 1.5 to 2, 2.5 to 2.
    assert line(above, "Q(x)").tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    assert line(below, "∂Q/∂x").tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    # Inside the range (rounded - x) / alpha, from alpha on 1.
    expected = np.array([0, 0, 0, -0.5, 0, 0.5, 0, -0.5, 3, 3, 3, 3, 3]) / 3
    np.testing.assert_allclose(line(below, "∂Q/∂alpha"), expected, atol=1e-6)
    assert figure._suptitle.get_text() == "CGPACT, 2 bits"


def test_quantizer_of_weights_and_a_number_that_has_not_started():
    figure = plots.quantizer(dlqat_tf.BWNWeights(), lowest=-2.0, highest=2.0, points=5)
    above, below = figure.axes
    assert line(above, "Q(x)").tolist() == pytest.approx([-1.2, -1.2, 1.2, 1.2, 1.2])  # mean |x|
    assert line(below, "∂Q/∂x").tolist() == pytest.approx([0.2, 1.4, 1.4, 1.4, 0.2])  # + 1 / n
    _, below = plots.quantizer(dlqat_tf.LSQWeights(2)).axes
    assert [each.get_label() for each in below.get_lines()] == ["∂Q/∂x"]


def test_what_cannot_be_drawn_is_named():
    for draw in (plots.quantizer, plots.export_report, plots.summary, plots.parity):
        with pytest.raises(ValueError, match=r"^Expected .*\. Received: Sequential\.$"):
            draw(tf.keras.Sequential())


@pytest.mark.parametrize("wrong", [{"lowest": 2.0}, {"points": 1}])
def test_quantizer_refuses(wrong):
    with pytest.raises(ValueError, match=r"lowest below highest.*Received: lowest="):
        plots.quantizer(dlqat_tf.SATWeights(1), **wrong)


CENSUS = Census(
    path="x.tflite",
    file_bytes=2000,
    deflated_bytes=1500,
    predicted_bytes=1900,
    peak_activation_bytes=10,
    operators={},
    constants={},
    inputs=[],
    layers=[
        LayerStorage("first", 800, 1, 8, "CONV_2D int8", 800),
        LayerStorage("second", 100, None, 32, "FULLY_CONNECTED float32", 400),
    ],
    warnings=[],
)


@pytest.mark.parametrize(
    "report", [CENSUS, ExportReport("x.tflite", None, CENSUS, [], {}, [])], ids=["census", "export"]
)
def test_export_report_is_bytes_by_layer(report):
    (axes,) = plots.export_report(report).axes
    assert rows(axes) == ["first", "second", "everything else"]
    stored, declared = bars(axes, 3)
    assert stored == [800, 400, 800]
    assert declared == [100, 400, 800]  # 800 weights of 1 bit; unknown ones as they are
    assert texts(axes)[0] == "800 B, 8 bits, CONV_2D int8"
    assert axes.get_title() == "2 kB, deflated 1.5 kB"
    assert [each.get_text() for each in axes.get_legend().get_texts()] == ["1 bit declared"]


def test_summary_is_macs_by_width_and_bytes():
    def layer(name, weight_bits, macs, sizes):
        return LayerSummary(name, "Conv2D", (1,), weight_bits, 8, 32, 1, macs, sizes)

    narrow, wide = Macs(1, 2, 300, 600), Macs(8, 2, 100, 1600)
    report = SummaryReport(
        model="net",
        layers=[
            layer("low", (1,), (narrow,), {"float32": 320, "declared": 10}),
            layer("norm", (), (), {"float32": 8, "declared": 8}),
            layer("both", (1, 8), (narrow, wide), {"float32": 640, "declared": 90}),
        ],
        parameters=3,
        trainable_parameters=3,
        macs=[narrow, wide],
        bit_operations=2200,
        storage=[StorageSummary("float32", 968), StorageSummary("declared", 108)],
        notes=[],
    )
    left, right = (figure := plots.summary(report)).axes
    assert rows(left) == ["low", "both"]  # what neither computes nor has weights is left out
    assert bars(left, 2) == [[300, 300], [0, 100]]
    assert [patch.get_x() for patch in left.patches] == [0, 0, 300, 300]
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["W1A2", "W8A2"]
    assert bars(right, 2) == [[320, 640], [10, 90]]
    assert right.get_title() == "968 B in float32 (pale), 108 B at the declared widths"
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer is above


def test_parity_is_agreement_by_layer_and_of_decisions():
    report = ParityReport(
        path="x.tflite",
        kernels="",
        images=1000,
        top1={"file": 70.0},
        agreement={"keras_file": 99.5},
        logit_difference={},
        layers=[LayerParity("a", 200, 0, 0.0), LayerParity("b", 400, 100, 2.0)],
        first_diverging="b",
    )
    left, right = plots.parity(report).axes
    assert rows(left) == ["a", "b"]
    assert bars(left, 2) == [[100, 75]]
    assert texts(left) == ["all 200 equal", "100 of 400 differ, by 2 at most"]
    assert left.patches[0].get_facecolor() != left.patches[1].get_facecolor()
    assert rows(right) == ["keras - file", "top-1 file"]
    assert bars(right, 2) == [[99.5, 70.0]]
    assert "1,000 images" in right.get_title()


def test_text_of_a_short_bar_stands_behind_it():
    report = ParityReport(
        path="x.tflite",
        kernels="",
        images=10,
        top1={},
        agreement={"keras_file": 10.0, "simulation_file": 100.0},
        logit_difference={},
        layers=[],
        first_diverging=None,
    )
    short, long = plots.parity(report).axes[1].texts
    assert (short.get_position()[0], short.get_color()) == (11.0, "black")
    assert (long.get_position()[0], long.get_color()) == (1, "white")


@pytest.fixture
def head():
    model = tf.keras.Sequential(
        [tf.keras.Input((4,)), dlqat_tf.LinearHead(1, weight_bits=1, name="head")]
    )
    model.get_layer("head").kernel.assign([[-0.5], [-0.25], [-0.125], [0.5]])
    return model


def test_latent_weights_are_coloured_by_level(head):
    (axes,) = plots.latent_weights(head).axes
    assert axes.get_title() == "head, 1 bit"
    labels = [each.get_text() for each in axes.get_legend().get_texts()]
    assert sorted(labels) == ["+1: 25%", "-1: 75%"]
    low, high = axes.get_xlim()
    assert low < -0.5 < 0.5 < high
    colours = {tuple(each.get_facecolor()) for each in axes.patches}
    assert len(colours) == 2


def test_latent_weights_of_some_layers():
    model = dlqat_tf.resnet18(4, (8, 8, 3), 2, 2, width=2)
    names = ["stage1_block1_1_conv", "head"]
    figure = plots.latent_weights(model, names)
    assert [each.get_title() for each in figure.axes] == [
        "stage1_block1_1_conv, 2 bits",
        "head, 8 bits",
    ]
    assert figure.axes[1].get_legend() is None  # 255 levels have no colours of their own
    with pytest.raises(ValueError, match=r"stem_conv.*Received: stem_act"):
        plots.latent_weights(model, ["stem_act"])


def test_activation_ranges_before_and_after():
    before, after = {"a": (0.0, 1.0), "b": (-1.0, 1.0)}, {"a": (0.0, 3.0), "b": (-2.0, 2.0)}
    (axes,) = plots.activation_ranges(before, after).axes
    assert rows(axes) == ["a", "b"]
    assert bars(axes, 2) == [[1, 2], [3, 4]]
    assert [patch.get_x() for patch in axes.patches] == [0, -1, 0, -2]
    assert texts(axes) == ["1.00", "1.00", "3.00", "2.00"]
    low, high = axes.get_xlim()
    assert low < -2 < 3 < high  # no bar ends at the frame
    assert axes.get_legend() is None  # it stands outside: a search for its place takes seconds
    with pytest.raises(ValueError, match="layers a, b and a"):
        plots.activation_ranges(before, {"a": (0.0, 1.0)})


def test_embeddings_are_panels_in_rows():
    points = np.array([[0.0, 1], [2, 3], [4, 5]])
    figure = plots.embeddings(
        [("one", points), ("two", -points), ("three", points)], np.array([7, 3, 7]), columns=2
    )
    assert [each.get_title() for each in figure.axes] == ["one", "two", "three"]
    one, two, three = figure.axes
    assert one.collections[0].get_offsets().tolist() == points.tolist()
    colours = one.collections[0].get_array()
    assert colours[0] == colours[2] != colours[1]
    tops = [each.get_subplotspec().rowspan.start for each in (one, two, three)]
    assert tops == [0, 0, 1]
    tall = plots.embeddings([("one", points), ("two", points)], np.arange(3), columns=1)
    width, height = tall.get_size_inches()
    assert height == 2 * width


def test_figures_show_themselves_in_notebooks(head):
    figure = plots.latent_weights(head)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
