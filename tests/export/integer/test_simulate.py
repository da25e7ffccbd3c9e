import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dlqat_tf import CGPACT, SATWeights
from dlqat_tf.export import ExportError, lower, snap
from dlqat_tf.export.files.flatbuffer import parsed
from dlqat_tf.export.files.tflite import build
from dlqat_tf.export.integer.binary import binary_parts
from dlqat_tf.export.integer.integers import (
    add_multipliers,
    fixed_point,
    integers,
    product_ratio,
)
from dlqat_tf.export.integer.network import IntegerNetwork
from dlqat_tf.export.integer.nodes import (
    Activation,
    Add,
    AveragePool,
    Concatenate,
    Dense,
    GlobalAveragePool,
    Input,
    Maximum,
    MaxPool,
    Minimum,
    Multiply,
    Output,
    Pad,
    ReLU,
    Reshape,
    Sign,
    Subtract,
)
from dlqat_tf.export.integer.plan import plan
from dlqat_tf.export.integer.rounding import XNNPACK, Accumulator, Merged
from dlqat_tf.export.integer.simulate import Simulation, measured_ranges
from dlqat_tf.export.runtimes.host import runner
from dlqat_tf.quantizers import ActivationGrid
from tests.export.integer.nodes import convolution, dense, transposed
from tests.export.networks import images_for, small_network


def test_codes_are_stretched_and_the_step_shrinks():
    node = dense([[1, 3], [-1, 1]], [0.5, 0.1], [1.0, -0.2])
    numbers = integers(node, ActivationGrid(0, 3, 1.0), ActivationGrid(0, 3, 1.0))
    assert numbers.codes.tolist() == [[127, 126], [-127, 42]]  # times 127 and 127 // 3
    np.testing.assert_allclose(numbers.scale, [0.5 / 127, 0.1 / 42], rtol=1e-6)
    assert numbers.bias.tolist() == [254, -84]  # 1.0 / (0.5 / 127) and -0.2 / (0.1 / 42)


def test_a_scale_that_no_kernel_holds_is_refused():
    node = dense([[1], [1]], [1e6], [0])
    with pytest.raises(ExportError, match="collapsed or exploded"):
        integers(node, ActivationGrid(0, 255, 1.0), ActivationGrid(0, 255, 1.0))


def test_a_gain_that_decayed_to_nothing_leaves_the_bias():
    node = dense([[1], [1]], [1e-20], [2.0])
    numbers = integers(node, ActivationGrid(0, 255, 1.0), ActivationGrid(0, 255, 1.0))
    assert numbers.codes.tolist() == [[0], [0]]
    np.testing.assert_allclose(numbers.bias * numbers.scale, [2.0])


def codes_of(node, images, step=1 / 255, highest=10**6):
    """Run one integer node on images, rounded to a grid whose codes are the pixels' by default."""
    images = np.asarray(images, np.uint8)
    act = Activation(
        name="act",
        inputs=(node.name,),
        grid=ActivationGrid(0, highest, np.float32(step)),
        bits=8,
    )
    network = IntegerNetwork((Input(name="images", shape=images.shape[1:]), node, act))
    return Simulation(network).run(images)["act"]


def test_same_windows_are_padded_by_the_code_of_the_value():
    ones = np.ones((1, 3, 1, 1))
    same = convolution(ones, padding="same")
    assert codes_of(same, [[[[10], [20]]]]).ravel().tolist() == [30, 30]
    white = convolution(ones, padding="same", pad_value=1.0)  # code 255
    assert codes_of(white, [[[[10], [20]]]]).ravel().tolist() == [285, 285]
    # Of an even window and one column missing, that is after the last.
    even = convolution(np.ones((1, 2, 1, 1)), padding="same", pad_value=1.0)
    assert codes_of(even, [[[[10], [20]]]]).ravel().tolist() == [30, 275]


def test_biases_are_added_to_the_sums():
    node = dense([[1], [2]], [1.0], [3 / 255])
    node = convolution(node.weights[np.newaxis, np.newaxis], bias=node.bias)
    assert codes_of(node, [[[[10, 20]]]]).ravel().tolist() == [10 + 40 + 3]


def accumulator(sums, ratio, int4=False):
    source = ActivationGrid(0, 255, np.float32(1))
    return Accumulator(np.array(sums), np.float32([ratio]), source, int4)


def test_xnnpack_rounds_once_half_to_even():
    act = Activation(name="act", inputs=("x",), grid=ActivationGrid(-3, 3, np.float32(1)), bits=3)
    network = IntegerNetwork((Input(name="x", shape=(1, 1, 1)), act))
    simulation = Simulation(network)
    sums = [1, 2, 3, 5, -1, -3, -5, 60, -60]
    expected = [0, 1, 2, 2, 0, -2, -2, 3, -3]  # 0.5, 1.0, 1.5, 2.5 and so on, clipped to the grid
    assert simulation.evaluate(act, [accumulator(sums, 0.5)]).tolist() == expected
    floats = np.array(sums, np.float32) / 2
    assert simulation.evaluate(act, [floats]).tolist() == expected


def test_built_in_kernels_round_twice_half_up():
    # A quarter is 2^30 / 2^31 and a shift of 1: to halves first, then to whole ones, ties upwards.
    multiplier, exponent = fixed_point(np.array([0.25]))
    assert (multiplier.tolist(), exponent.tolist()) == ([2**30], [-1])
    sums = {1: 1, -1: 0, 2: 1, -2: 0, 3: 1, -3: 0, 5: 2, -5: -1, 6: 2, -6: -1, 8: 2}
    rounded = XNNPACK().product(
        accumulator(list(sums), 0.25, True), ActivationGrid(-128, 127, np.float32(1))
    )
    assert rounded.tolist() == list(sums.values())
    # Three is 0.75 * 2^2: shifted to the left before the product.
    rounded = XNNPACK().product(
        accumulator([1, -2], 3.0, True), ActivationGrid(-128, 127, np.float32(1))
    )
    assert rounded.tolist() == [3, -6]


def test_a_multiplier_that_rounds_to_one_is_a_half_of_the_next_power():
    multiplier, exponent = fixed_point(np.array([1 - 2.0**-40, 0.75]))
    assert multiplier.tolist() == [2**30, 3 * 2**29]
    assert exponent.tolist() == [1, 0]


def test_an_add_has_multipliers_of_21_bits():
    steps = [ActivationGrid(0, 3, np.float32(step)) for step in (1.0, 0.5)]
    third = ActivationGrid(0, 255, np.float32(3))
    # 2^22 / 3 and 2^22 / 6, and the larger lies between 2^20 and 2^21.
    assert add_multipliers("sum", steps, third) == (1_398_101, 699_051, 22)
    assert add_multipliers("sum", steps, steps[0]) == (2**20, 2**19, 20)
    assert add_multipliers("sum", steps, steps[1]) == (2**20, 2**19, 19)
    # Three sixths: 3 * 699051 = 2^21 + 1 rounds up, where 21 bits of shift give 2^20 - 1.
    codes = (np.array([0, 0, 3]), np.array([3, 2, 0]))
    node = Add(name="sum", inputs=("x", "y"))
    assert XNNPACK().merged(Merged(node, codes, tuple(steps)), third).tolist() == [1, 0, 1]
    # Six sixths minus one, two and three: the last is 2^20 - 1 of the 2^21 that would round up.
    node, codes = Subtract(name="difference", inputs=("x", "y")), (np.full(3, 3), np.arange(1, 4))
    assert XNNPACK().merged(Merged(node, codes, tuple(steps)), third).tolist() == [1, 1, 0]
    assert XNNPACK().merged(Merged(node, codes[::-1], tuple(steps)), third).tolist() == [0, 0, 0]


def test_products_of_codes_are_rounded_once_half_to_even():
    halves = ActivationGrid(0, 255, np.float32(0.5))
    merged = Merged(
        Multiply(name="product", inputs=("x", "y")),
        (np.array([1, 3, 5, -3, 9]), np.array([2, 2, 2, 2, 1])),
        (halves, halves),
    )
    # A product counts quarters, of an output step of one: 0.5, 1.5, 2.5, -1.5 and 2.25.
    assert XNNPACK().merged(merged, ActivationGrid(-128, 127, np.float32(1))).tolist() == [
        0,
        2,
        2,
        -2,
        2,
    ]


def test_what_multiplications_hold_is_checked():
    one = ActivationGrid(0, 255, np.float32(1))
    tiny = ActivationGrid(0, 255, np.float32(2.0**-17))
    assert product_ratio("product", (one, tiny), tiny) == 1
    for grids, target in (((one, one), tiny), ((one, tiny), one)):
        with pytest.raises(ExportError, match=r"'product' multiplies .* collapsed or exploded"):
            product_ratio("product", grids, target)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_files_hold_transposed_convolutions_as_simulated(size, padding):
    generator = np.random.default_rng(size)
    weights = generator.integers(-127, 128, (size, size, 3, 4))
    bias = generator.normal(size=4)
    grid = ActivationGrid(-8, 7, np.float32(0.5))  # which an operation of its own clips
    nodes = (
        Input(name="images", shape=(4, 5, 3)),
        transposed(weights, (2, 2), padding, bias=bias),
        Activation(name="act", inputs=("grow",), grid=grid, bits=4),
        Output(name="out", inputs=("act",)),
    )
    images = generator.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    built = build(IntegerNetwork(nodes))
    assert built.planned["grow"].kernel == "int8"
    computed = runner(parsed(built.data, "the file"), 2)([images])[0]
    np.testing.assert_array_equal(computed, Simulation(built.planned).outputs(images)[0])


MERGED = st.sampled_from([Add, Subtract, Multiply, Maximum, Minimum])


@settings(max_examples=20, deadline=None)
@given(MERGED, st.floats(-5, 0), st.booleans(), st.integers(1, 8), st.integers(0, 10_000))
def test_files_merge_codes_as_the_simulation_does(kind, exponent, signed, bits, seed):
    """Of an image and of one value for each channel, to a grid of any step."""
    shapes = {"images": (4, 5, 3), "gates": (1, 1, 3)}
    lowest = -(2 ** (bits - 1)) if signed else 0
    grid = ActivationGrid(lowest, lowest + 2**bits - 1, np.float32(2.0**exponent))
    nodes = [Input(name=name, shape=shape) for name, shape in shapes.items()]
    nodes += [
        kind(name="merged", inputs=tuple(shapes)),
        Activation(name="act", inputs=("merged",), grid=grid, bits=bits),
        Output(name="out", inputs=("act",)),
    ]
    generator = np.random.default_rng(seed)
    images = [generator.integers(0, 256, (1, *shape)).astype(np.uint8) for shape in shapes.values()]
    built = build(IntegerNetwork(tuple(nodes)))
    expected = Simulation(built.planned).outputs(images)[0]
    run = runner(parsed(built.data, "the file"), 1)
    np.testing.assert_array_equal(run(images)[0], expected)


def test_a_network_of_moves():
    """What moves codes: padding by the code of a value, pooling, concatenation, reshaping."""
    act = ActivationGrid(0, 255, np.float32(1 / 255))
    nodes = (
        Input(name="images", shape=(2, 2, 1)),
        Pad(name="pad", inputs=("images",), amounts=((0, 1), (1, 0)), value=1.0),
        MaxPool(name="max", inputs=("pad",), size=(2, 2), strides=(1, 1), padding="valid"),
        Concatenate(name="both", inputs=("max", "images")),
        Reshape(name="flat", inputs=("both",), shape=(8,)),
    )
    simulation = Simulation(IntegerNetwork(nodes))
    assert simulation.grids["flat"] == act
    found = simulation.run(np.uint8([[[[1], [2]], [[3], [4]]]]), ["pad", "max"])
    assert found["pad"][0, :, :, 0].tolist() == [[255, 1, 2], [255, 3, 4], [255, 255, 255]]
    assert found["max"][0, :, :, 0].tolist() == [[255, 4], [255, 255]]
    assert found["flat"].tolist() == [[255, 1, 4, 2, 255, 3, 255, 4]]


def test_a_network_of_floats():
    nodes = (
        Input(name="images", shape=(2, 2, 1)),
        AveragePool(name="mean", inputs=("images",), size=(2, 2), strides=(1, 1), padding="same"),
        GlobalAveragePool(name="all", inputs=("mean",), keepdims=True),
        convolution(
            [[[[-10.0, 10.0, 5.0]]]],
            name="float",
            inputs=("all",),
            kernel="float",
            step=None,
            bias=np.array([0.0, 1.0, 0.0]),
        ),
        ReLU(name="relu", inputs=("float",), highest=6.0),
        Sign(name="sign", inputs=("float",)),
        Pad(name="pad", inputs=("relu",), amounts=((0, 0), (1, 0)), value=2.0),
    )
    simulation = Simulation(IntegerNetwork(nodes))
    found = simulation.run(np.uint8([[[[255], [0]], [[0], [255]]]]), [node.name for node in nodes])
    # Two white pixels of four, of two of two, and one of two twice: padding does not count.
    assert found["mean"][0, :, :, 0].tolist() == [[0.5, 0.5], [0.5, 1.0]]
    assert found["all"].tolist() == [[[[0.625]]]]
    assert found["float"].ravel().tolist() == [-6.25, 7.25, 3.125]
    assert found["relu"].ravel().tolist() == [0.0, 6.0, 3.125]
    assert found["sign"].ravel().tolist() == [-1.0, 1.0, 1.0]
    assert found["pad"][0, 0].tolist() == [[2.0, 2.0, 2.0], [0.0, 6.0, 3.125]]


def test_a_sign_of_zero_is_one():
    sign = Sign(name="sign", inputs=("x",))
    simulation = Simulation(IntegerNetwork((Input(name="x", shape=(1, 1, 1)), sign)))
    assert simulation.evaluate(sign, [np.float32([0.0, -0.0, -1e-9])]).tolist() == [1, 1, -1]


def test_ranges_are_of_all_images_and_reach_zero():
    node = convolution([[[[-2]]]], bias=np.array([0.5]))
    network = IntegerNetwork((Input(name="images", shape=(1, 1, 1)), node))
    images = np.zeros((100, 1, 1, 1), np.uint8)
    images[3], images[90] = 255, 51
    # 0.5 - 2 p, with p at most 1 in the first 64 images.
    assert measured_ranges(images)(network, ["conv"]) == {"conv": (-1.5, 0.5)}
    assert measured_ranges(images[3:4])(network, ["conv"]) == {"conv": (-1.5, 0.0)}


@pytest.mark.parametrize(("pad_value", "expected"), [(1.0, [3, 3]), (0.0, [1, 2])])
def test_binary_planes_of_signs_pad_as_they_are_told(pad_value, expected):
    node = convolution(
        np.ones((1, 2, 1, 1)), name="conv", inputs=("sign",), kernel="planes", padding="same",
        pad_value=pad_value, bits=1, bias=np.array([1.0]),
    )  # fmt: skip
    sign = Sign(name="sign", inputs=("images",))
    network = IntegerNetwork((Input(name="images", shape=(1, 2, 1)), sign, node))
    # Signs of pixels are +1; two of them give 3, one beside a zero gives 2.
    found = Simulation(network).run(np.zeros((1, 1, 2, 1), np.uint8))["conv"].ravel()
    assert found.tolist() == [3.0, expected[1]]


def test_zeros_around_signs_are_taken_off_after_the_sum_with_ones():
    """As LCE's kernel does: 2 + 2^-23 is 2 in float32, so that 1 remains and not 1 + 2^-23."""
    node = convolution(
        np.ones((1, 2, 1, 1)), name="conv", inputs=("sign",), kernel="planes", padding="same",
        pad_value=0.0, bits=1, bias=np.array([2.0**-23]),
    )  # fmt: skip
    sign = Sign(name="sign", inputs=("images",))
    network = IntegerNetwork((Input(name="images", shape=(1, 2, 1)), sign, node))
    found = Simulation(network).run(np.zeros((1, 1, 2, 1), np.uint8))["conv"].ravel()
    assert found.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(("given", "taken"), [(1e-6, True), (1e-4, False)])
def test_floats_are_added_up_as_the_kernel_does_unless_it_computes_something_else(given, taken):
    node = Dense(
        name="dense", inputs=("values",), weights=np.float32([[1], [2]]), bias=np.zeros(1),
        step=None, bits=32, kernel="float",
    )  # fmt: skip
    values = Input(name="values", shape=(2,), preprocessing=None)
    relu = ReLU(name="relu", inputs=("dense",))
    seen = []

    def run_node(node, value):
        seen.append((node.name, value.tolist()))
        return np.float32([[3 * (1 + given)]])

    simulation = Simulation(IntegerNetwork((values, node, relu)), run_node=run_node)
    found = simulation.run(np.float32([[1, 1]]))["relu"]
    assert seen == [("dense", [[1.0, 1.0]])]
    assert found.tolist() == [[np.float32(3 * (1 + given)) if taken else 3.0]]
    assert simulation.evaluate(node, [np.float32([[1, 1]])]) == 3.0


def test_binary_planes_of_codes_pad_with_code_zero():
    act = Activation(
        name="act", inputs=("images",), grid=ActivationGrid(0, 3, np.float32(1 / 255)), bits=2
    )
    node = convolution(
        np.full((1, 2, 1, 1), 3), inputs=("act",), kernel="planes", padding="same", bits=2
    )
    network = IntegerNetwork((Input(name="images", shape=(1, 2, 1)), act, node))
    found = Simulation(network).evaluate(node, [np.array([[[[1], [3]]]])]).ravel()
    np.testing.assert_allclose(found, [3 * 4 / 255, 3 * 3 / 255], rtol=1e-6)


def test_sums_round_half_up():
    # Steps 1 and 1 to a step of 2: (0 + 1) / 2 = 0.5 and (1 + 2) / 2 = 1.5 round up.
    one = ActivationGrid(-128, 127, np.float32(1))
    codes = (np.array([0, 1, -1, 3]), np.array([1, 2, 0, 0]))
    merged = Merged(Add(name="sum", inputs=("x", "y")), codes, (one, one))
    rounded = XNNPACK().merged(merged, ActivationGrid(0, 3, np.float32(2)))
    assert rounded.tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize("ratio", [2.0**8, 0.99 * 2.0**-10])
def test_steps_that_an_add_cannot_hold_are_refused_before_the_file_is_built(ratio):
    model = small_network()
    residual, total = (lower(model)[name].grid for name in ("second_residual", "sum_act"))
    model.get_layer("second_residual").alpha.assign(127 * ratio * total.step)
    with pytest.raises(ExportError, match=r"'sum' adds inputs of steps.*1/1024 to 256"):
        plan(lower(model))
    model.get_layer("second_residual").alpha.assign(127 * 1.02 * 2.0**-10 * total.step)
    plan(lower(model))
    assert residual.step != total.step


@pytest.mark.parametrize(
    ("alpha", "pad_value", "held"),
    [
        (3.0, 1.0, True),
        (3.0, 4.0, False),  # beyond the highest of 0, 1, 2 and 3
        (3.0, -1.0, False),
        (2.0, 1.0, False),  # between 2 / 3 and 4 / 3
        (3.02, 1.0, False),
    ],
)
def test_a_padding_that_the_input_cannot_hold_is_refused(alpha, pad_value, held):
    options = dict(kernel_quantizer=SATWeights(2), pad_values=pad_value, padding="same")
    inputs = tf.keras.Input((6, 6, 3))
    x = CGPACT(2, alpha)(lq.layers.QuantConv2D(4, 3, kernel_quantizer=SATWeights(8))(inputs))
    x = CGPACT(2, 2.0)(lq.layers.QuantConv2D(4, 3, name="conv", **options)(x))
    network = lower(tf.keras.Model(inputs, tf.keras.layers.Flatten()(x)))
    for limit in (0, 9):  # planes of codes pad with code 0 only
        if held:
            assert plan(network, plane_limit=limit)["conv"].kernel == "int8"
            continue
        with pytest.raises(ExportError, match=rf"'conv' pads with {pad_value:g}, .* from 0 to 3"):
            plan(network, plane_limit=limit)


def test_binary_parts_sum_to_the_layer():
    network = plan(lower(small_network(weight_bits=2, activation_bits=3)), plane_limit=9)
    node, grid = network["second"], network["first_act"].grid
    parts = binary_parts(node, grid)
    assert len(parts) == 6
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, node.weights.shape[:3])
    total = sum(
        part.multiplier * np.tensordot(1 - 2 * (x >> part.activation_bit & 1), part.signs, 3)
        + part.bias
        for part in parts
    )
    expected = np.tensordot(x * float(grid.step), node.values, 3) + node.bias
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


def test_batches_do_not_change_the_result():
    model = small_network()
    simulation = Simulation(plan(lower(model)))
    images = images_for(model, 10)
    np.testing.assert_array_equal(simulation.logits(images, 3), simulation.logits(images, 10))


def test_snapping_keeps_the_integers_and_moves_keras_to_them():
    model = small_network()
    images = images_for(model, 64)
    network = plan(lower(model))
    snapped, report = snap(model)
    again = plan(lower(snapped))
    np.testing.assert_array_equal(
        Simulation(network).logits(images), Simulation(again).logits(images)
    )
    expected = snapped(images.astype(np.float32) / np.float32(255)).numpy()
    np.testing.assert_allclose(Simulation(again).logits(images), expected, rtol=1e-4, atol=1e-4)
    assert {shift.layer for shift in report.shifts} == {"first", "second"}
    assert 0 < report.largest_steps < 0.5
    # Snapping what is snapped moves nothing but float32 rounding.
    assert snap(snapped)[1].largest_steps < 1e-5
