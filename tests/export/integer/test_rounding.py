import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.files.file_builder import FileBuilder
from dlqat_tf.export.files.micro import is_installed
from dlqat_tf.export.files.moving import add_merge
from dlqat_tf.export.integer.nodes import Add, Multiply, Subtract
from dlqat_tf.export.integer.rounding import RUNTIMES, Accumulator, Merged, Sloped
from dlqat_tf.export.runtimes.host import runner
from dlqat_tf.quantizers import ActivationGrid

CODES = np.arange(-128, 128)
MICRO = pytest.param(
    "micro", marks=pytest.mark.skipif(not is_installed(), reason="tflite-micro is not installed")
)
EACH_RUNTIME = pytest.mark.parametrize("runtime", ["tflite", "builtin", MICRO])


def grid(step):
    return ActivationGrid(-128, 127, np.float32(step))


def product(runtime, sums, scale, int4=False):
    value = Accumulator(np.array(sums), np.float32([scale]), grid(1), int4)
    return RUNTIMES[runtime].product(value, grid(1)).tolist()


@pytest.mark.parametrize(
    ("runtime", "int4", "expected"),
    [
        ("tflite", False, [0, 2, 0, -2]),  # to even
        ("tflite", True, [1, 2, 0, -1]),  # up
        ("builtin", False, [1, 2, 0, -1]),
        ("builtin", True, [1, 2, 0, -1]),
        ("micro", False, [1, 2, -1, -2]),  # away from zero
        ("micro", True, [1, 2, -1, -2]),
    ],
)
def test_halves(runtime, int4, expected):
    """Of eighths the first rounding changes nothing, and the second decides about halves."""
    assert product(runtime, [4, 12, -4, -12], 1 / 8, int4) == expected


@pytest.mark.parametrize(("runtime", "expected"), [("tflite", 0), ("builtin", 1), ("micro", 1)])
def test_the_first_rounding_reaches_a_half(runtime, expected):
    """39 / 79 is less than a half, but 31.6 of 64ths, the nearest of which is one: 32."""
    assert product(runtime, [39], 1 / 79) == [expected]
    assert product(runtime, [38], 1 / 79) == [0]  # 30.8 of 64ths


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_products_of_large_ratios(runtime):
    assert product(runtime, [5, -7], 3.0) == [15, -21]


def run(file, inputs, output, arrays, runtime):
    data = file.finish(inputs, [("output", output)], {})
    content = flatbuffer.parsed(data, "the file")
    (found,) = runner(content, len(arrays[0]), runtime=runtime)([np.asarray(a) for a in arrays])
    return found.astype(int)


def builder():
    file = FileBuilder()
    return file, lambda name, shape, step: file.tensor(name, shape, np.int8, scale=step)


@EACH_RUNTIME
@pytest.mark.parametrize("kind", [Add, Subtract, Multiply])
@pytest.mark.parametrize("steps", [(0.5, 0.25, 1.0), (0.3, 0.17, 0.61), (0.01, 0.7, 0.5)])
def test_merges_of_all_pairs(runtime, kind, steps):
    file, tensor = builder()
    tensors = [tensor(name, (256,), step) for name, step in zip("abc", steps, strict=True)]
    add_merge(file, kind, tensors[:2], tensors[2])
    file.fix_batch(256)
    codes = np.meshgrid(CODES, CODES)
    arrays = [each.astype(np.int8) for each in codes]
    merged = Merged(kind(name="merged", inputs=("a", "b")), codes, [*map(grid, steps[:2])])
    expected = RUNTIMES[runtime].merged(merged, grid(steps[2]))
    actual = run(file, tensors[:2], tensors[2], arrays, runtime)
    np.testing.assert_array_equal(actual, np.clip(expected, -128, 127))


@EACH_RUNTIME
@pytest.mark.parametrize("step", [0.5, 0.3, 0.0707, 1 / 7])
def test_quotients(runtime, step):
    """Multiples of half a step: one in two is halfway between two codes, or nearly so."""
    values = np.float32(CODES / 2)[None] * np.float32(step)
    file, tensor = builder()
    source, target = file.tensor("values", (256,), np.float32), tensor("codes", (256,), step)
    file.operator("QUANTIZE", [source], target, schema.QuantizeOptionsT())
    file.fix_batch(1)
    expected = RUNTIMES[runtime].quotient(values, grid(step))
    if step == 0.5:
        halves = [1, 1, 2, 2] if runtime == "micro" else [0, 1, 2, 2]
        assert expected[0, 129:133].tolist() == halves
    np.testing.assert_array_equal(run(file, [source], target, [values], runtime), expected)


@EACH_RUNTIME
@pytest.mark.parametrize("highest", [3, 255])
def test_floats_of_all_codes(runtime, highest):
    """Of pixels, whose zero point is -128, and of codes whose zero point is 124."""
    zero_point, of_codes = 127 - highest, ActivationGrid(highest - 255, highest, np.float32(0.3))
    file = FileBuilder()
    source = file.tensor("codes", (256,), np.int8, scale=0.3, zero_point=zero_point)
    target = file.tensor("floats", (256,), np.float32)
    file.operator("DEQUANTIZE", [source], target, schema.DequantizeOptionsT())
    file.fix_batch(1)
    content = flatbuffer.parsed(file.finish([source], [("floats", target)], {}), "the file")
    computed = runner(content, 1, runtime=runtime)([np.int8(CODES)[None]])[0]
    expected = RUNTIMES[runtime].floats(CODES[None] - zero_point, of_codes)
    np.testing.assert_array_equal(computed, expected)


@EACH_RUNTIME
@pytest.mark.parametrize(
    "kind", ["CONV_2D", "int4", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"]
)
def test_products_of_kernels(runtime, kind):
    """Sums from -640 to 635 times each channel's ratio, some of them with halves everywhere."""
    scales = np.float32([1 / 8, 1 / 79, 0.3, 1.5, 1 / 64, 0.011, 2.0, 0.0625])
    file, tensor = builder()
    dense, depthwise = kind == "FULLY_CONNECTED", kind == "DEPTHWISE_CONV_2D"
    inner = () if dense else (1, 1)
    source = tensor("codes", (*inner, 8 if depthwise else 1), 1.0)
    target = tensor("rounded", (*inner, 8), 1.0)
    shape = {True: (8, 1), False: (1, 1, 1, 8) if depthwise else (8, 1, 1, 1)}[dense]
    weights = file.constant(
        "weights",
        np.full(shape, 5, np.int8),
        scale=scales,
        axis=3 if depthwise else 0,
        int4=kind == "int4",
    )
    bias = file.constant("bias", np.zeros(8, np.int32), scale=scales)
    options = {"FULLY_CONNECTED": schema.FullyConnectedOptionsT}.get(kind, schema.Conv2DOptionsT)()
    transposed = kind == "TRANSPOSE_CONV"
    if transposed:
        options = schema.TransposeConvOptionsT()
    if depthwise:
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
    if not dense:
        options.padding = schema.Padding.VALID
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    version = 8 if kind == "int4" else None
    name = "CONV_2D" if kind == "int4" else kind
    inputs = [source, weights, bias]
    if transposed:
        inputs = [file.constant("shape", np.int32([256, 1, 1, 8])), weights, source, bias]
    file.operator(name, inputs, target, options, version=version)
    file.fix_batch(256)
    codes = np.repeat(CODES.reshape(256, *(1 for _ in inner), 1), 8, -1)
    value = Accumulator(5 * codes, scales, grid(1), kind == "int4")
    expected = np.clip(RUNTIMES[runtime].product(value, grid(1)), -128, 127)
    given = (codes if depthwise else codes[..., :1]).astype(np.int8)
    actual = run(file, [source], target, [given], runtime)
    np.testing.assert_array_equal(actual, expected)


@EACH_RUNTIME
@pytest.mark.parametrize(
    "steps",
    [
        (0.5, 0.25 / 127, 0.5),
        (0.3, 0.1 / 127, 0.17),
        (0.2, 0.02, 0.05),
        (0.07, 0.01, 0.9),
        (0.019819258, 0.001, 0.020027881),  # 48 times their ratio is 47.5, in float32
    ],
)
def test_slopes_of_all_pairs(runtime, steps):
    """Each code times each slope's: two roundings, halves away from zero the second time."""
    steps, slopes = np.float32(steps), np.arange(-127, 128)
    file, tensor = builder()
    source, target = tensor("x", (1, 1, 255), steps[0]), tensor("y", (1, 1, 255), steps[2])
    constant = file.constant("slopes", slopes.astype(np.int8)[None, None], scale=steps[1])
    file.operator("PRELU", [source, constant], target)
    file.fix_batch(256)
    codes = np.repeat(CODES.reshape(256, 1, 1, 1), 255, -1)
    expected = RUNTIMES[runtime].sloped(
        Sloped(codes, grid(steps[0]), slopes, steps[1]), grid(steps[2])
    )
    if steps[1] == np.float32(0.25 / 127):
        assert expected[126:131, 0, 0, -1].tolist() == [-1, 0, 0, 1, 2]  # -2 * 0.25 is -0.5
    actual = run(file, [source], target, [codes.astype(np.int8)], runtime)
    np.testing.assert_array_equal(actual, np.clip(expected, -128, 127))
