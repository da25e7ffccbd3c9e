import random

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export import ExportError, census, parity, to_lce, to_tflite
from dlqat_tf.export.files import flatbuffer
from dlqat_tf.export.runtimes.benchmark import benchmark
from tests.export.networks import images_for, small_network


@pytest.fixture(scope="module")
def model():
    return small_network(1, 2, channels=32)


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    to_tflite(model, folder / "int8.tflite", snap=False)
    to_tflite(model, folder / "int4.tflite", snap=False, weights="int4")
    to_lce(model, folder / "lce.tflite", snap=False)
    return {name: folder / f"{name}.tflite" for name in ("int8", "int4", "lce")}


def first(content, kind):
    """Return the first operation whose options are of a type."""
    operators = content.subgraphs[0].operators
    return next(each for each in operators if isinstance(each.builtinOptions, kind))


def read(content, tensor):
    operator = first(content, schema.Conv2DOptionsT)
    operator.inputs = np.array([tensor, *operator.inputs[1:]], np.int32)


def quantization(content):
    """Return that of the input's int8 codes, whose scale and zero point are one number each."""
    graph = content.subgraphs[0]
    return graph.tensors[int(graph.operators[0].outputs[0])].quantization


def set_stride(content):
    first(content, schema.Conv2DOptionsT).builtinOptions.strideW = 0


def set_long_stride(content):
    first(content, schema.Conv2DOptionsT).builtinOptions.strideW = 257


def set_batch(content):
    """What kernels would take 20 GB for."""
    graph = content.subgraphs[0]
    for index in (graph.inputs[0], graph.operators[0].outputs[0]):
        graph.tensors[index].shape = np.array([2**24, 6, 6, 3], np.int32)


def set_padding(content):
    first(content, schema.Conv2DOptionsT).builtinOptions.padding = 17


def set_options(content):
    operator = first(content, schema.Conv2DOptionsT)
    operator.builtinOptions, operator.builtinOptionsType = None, 0


def set_input(content):
    read(content, 1000)


def set_cycle(content):
    read(content, content.subgraphs[0].outputs[0])


def set_twice(content):
    operators = content.subgraphs[0].operators
    operators[1].outputs = operators[0].outputs


def set_zero_point(content):
    quantization(content).zeroPoint = np.array([2**29], np.int64)


def set_scale(content):
    quantization(content).scale = np.array([np.nan], np.float32)


def set_bytes(content):
    graph = content.subgraphs[0]
    weights = graph.tensors[int(first(content, schema.Conv2DOptionsT).inputs[1])]
    weights.shape = np.array([*weights.shape[:-1], 2 * weights.shape[-1] // 3], np.int32)


def set_no_scale(content):
    """What makes a kernel of TFLite end the process."""
    graph = content.subgraphs[0]
    graph.tensors[int(first(content, schema.AddOptionsT).outputs[0])].quantization = None


def set_name(content):
    content.subgraphs[0].tensors[0].name = b"\xff"


def set_nothing(content):
    content.subgraphs[0].operators = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_nothing, "its graph computes nothing"),
        (set_stride, "operation 1 has a strideW of 0"),
        (set_long_stride, r"operation 1 makes \[6, 6\] of \[6, 6\]"),
        (set_batch, r"operation 1 has the shapes \[16777216, 6, 6, 3\] and \[1, 6, 6, 32\]"),
        (set_padding, "operation 1 has a padding of 17"),
        (set_options, "operation 1 has options of another operation"),
        (set_input, "a tensor that does not exist"),
        (set_cycle, "operation 1 reads a tensor before it is written"),
        (set_twice, "operation 1 writes a tensor for the second time"),
        (set_zero_point, "has zero points from 536870912 to 536870912"),
        (set_scale, "has a scale of nan"),
        (set_bytes, "has 864 bytes where its shape needs 576"),
        (set_no_scale, r"operation \d+ adds codes of tensor \d+, which has no scale"),
        (set_name, "tensor 0 has a name that is no text"),
    ],
)
def test_what_kernels_would_trust_is_checked_by_all_readers(
    model, paths, tmp_path, change, message
):
    content = flatbuffer.read(paths["int8"])
    change(content)
    path = tmp_path / "changed.tflite"
    path.write_bytes(flatbuffer.packed(content))
    for reader in (census, lambda path: parity(model, path, None), lambda path: benchmark([path])):
        with pytest.raises(ExportError, match=rf"changed\.tflite, which is damaged.*{message}"):
            reader(path)


def test_what_larq_compute_engine_refuses_is_one_sentence(paths, tmp_path):
    content = flatbuffer.read(paths["lce"])
    added = first(content, schema.AddOptionsT)
    added.inputs = np.repeat(added.inputs, 2)
    path = tmp_path / "changed.tflite"
    path.write_bytes(flatbuffer.packed(content))
    with pytest.raises(ExportError, match=r"^[^\n]+ refuses \S+changed\.tflite: [^\n]+\Z"):
        benchmark([path])


def test_files_of_other_makers_pass(stock_file, lce_file):
    assert census(stock_file).operators == {"CONV_2D": 1}
    assert census(lce_file).operators["LceBconv2d"] == 1


def test_inputs_may_lack_what_a_file_need_not_say(paths, tmp_path):
    content = flatbuffer.read(paths["int8"])
    tensor = content.subgraphs[0].tensors[int(content.subgraphs[0].inputs[0])]
    tensor.quantization.scale = tensor.quantization.zeroPoint = None
    tensor.shape = tensor.shapeSignature = None
    (tmp_path / "changed.tflite").write_bytes(flatbuffer.packed(content))
    (found,) = census(tmp_path / "changed.tflite").inputs
    assert (found.shape, found.scale, found.zero_point) == ((), None, None)


def test_another_graph_is_not_compared(model, paths, tmp_path):
    content = flatbuffer.read(paths["int8"])
    first(content, schema.Conv2DOptionsT).builtinOptions.padding = schema.Padding.VALID
    path = tmp_path / "changed.tflite"
    path.write_bytes(flatbuffer.packed(content))
    with pytest.raises(ExportError, match="its operations are not those that the model has"):
        parity(model, path, images_for(model))


def test_a_changed_record_is_noticed(model, paths, tmp_path):
    path = tmp_path / "changed.tflite"
    data = paths["lce"].read_bytes()
    assert data.count(b'"plane_limit": 9') == 1
    path.write_bytes(data.replace(b'"plane_limit": 9', b'"plane_limit": 8'))
    for read in (census, lambda path: parity(model, path, images_for(model))):
        with pytest.raises(ExportError, match=r"record in .*changed\.tflite is damaged"):
            read(path)


def flipped(data: bytes, seed: int) -> bytes:
    """Return a file with one bit of another value."""
    draw = random.Random(seed)
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, seed: int) -> bytes:
    """Return the start of a file."""
    return data[: random.Random(seed).randrange(len(data))]


def refusals(model, data, damage, count, path, monkeypatch) -> int:
    """Return how many of three readings of each damaged file end in a sentence, the others well."""
    monkeypatch.setattr("dlqat_tf.export.runtimes.benchmark.MINIMUM_RUNS", 1)
    images = images_for(model, 2)
    readers = (
        census,
        lambda path: parity(model, path, images, layer_images=2),
        lambda path: benchmark([path], runs=1, warmup=0),
    )
    sentences = []
    for seed in range(count):
        path.write_bytes(damage(data, seed))
        for read in readers:
            try:
                read(path)
            except ValueError as error:  # ExportError, or what benchmark raises
                sentences.append(str(error))
    assert all(str(path) in each and "\n" not in each for each in sentences)
    return len(sentences)


@pytest.mark.parametrize("name", ["int8", "int4", "lce"])
def test_a_damaged_file_ends_in_a_result_or_one_sentence(model, paths, tmp_path, monkeypatch, name):
    data, path = paths[name].read_bytes(), tmp_path / "damaged.tflite"
    assert refusals(model, data, cut, 2, path, monkeypatch) == 3 * 2
    assert 0 < refusals(model, data, flipped, 20, path, monkeypatch) < 3 * 20


@pytest.mark.long
@pytest.mark.parametrize("name", ["int8", "int4", "lce"])
def test_a_thousand_flips_and_a_hundred_cuts(model, paths, tmp_path, monkeypatch, name):
    data, path = paths[name].read_bytes(), tmp_path / "damaged.tflite"
    assert refusals(model, data, cut, 100, path, monkeypatch) == 3 * 100
    assert 0 < refusals(model, data, flipped, 1000, path, monkeypatch) < 3 * 1000
