import re
import sys

import pytest
import tensorflow as tf

from dlqat_tf.export import ExportError, census, to_lce, to_tflite
from dlqat_tf.export.files.micro import MicroInterpreter, arena_bytes, is_installed
from tests.export.networks import small_network
from tests.export.runtimes.test_host import mobile_network

needs_micro = pytest.mark.skipif(not is_installed(), reason="tflite-micro is not installed")


@needs_micro
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_arena_is_the_least_that_will_do(tmp_path, weights, capfd):
    from tflite_micro.python.tflite_micro import runtime

    path = tmp_path / "model.tflite"
    report = to_tflite(mobile_network(), path, kernels="builtin", weights=weights, snap=False)
    data = path.read_bytes()
    least = arena_bytes(data)
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=least)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(data, arena_size=least - 16)
    capfd.readouterr()
    interpreter.print_allocations()
    taken = int(re.search(r"Arena allocation total (\d+)", capfd.readouterr().err).group(1))
    # Planning the memory takes some more than what is taken in the end.
    assert taken < least < 1.1 * taken
    assert report.census.arena_bytes == census(path).arena_bytes == least
    assert f"flash {len(data):,} bytes, the file; RAM {least:,} bytes" in lines(report.census)


def lines(report):
    return " ".join(each for each in report.tables() if isinstance(each, str))


@needs_micro
def test_files_that_no_microcontroller_runs(tmp_path):
    model = small_network(channels=32)
    to_lce(model, tmp_path / "lce.tflite", snap=False)
    to_tflite(model, tmp_path / "any.tflite", batch_size=None, snap=False)
    reasons = {
        tmp_path / "lce.tflite": r"lce\.tflite has operations of Larq Compute Engine, .* to_tflite",
        tmp_path / "any.tflite": r"any\.tflite takes any number of images .* batch_size=1",
    }
    for path, reason in reasons.items():
        counted = census(path)
        assert counted.arena_bytes is None
        assert re.search(f"RAM not known: .*{reason}", lines(counted))
        with pytest.raises(ExportError, match=reason):
            MicroInterpreter(path.read_bytes(), path)


@needs_micro
def test_operations_that_tflite_micro_lacks_are_named(tmp_path):
    def sums(x):
        return tf.math.segment_sum(x, [0, 1, 1])

    function = tf.function(sums).get_concrete_function(tf.TensorSpec((3,)))
    data = tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()
    with pytest.raises(ExportError, match=r"Micro refuses sums\.tflite: Didn't find .*SEGMENT_SUM"):
        arena_bytes(data, "sums.tflite")


def test_without_tflite_micro_census_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    report = to_tflite(small_network(), tmp_path / "model.tflite", kernels="builtin", snap=False)
    assert report.census.arena_bytes is None
    report.print()
    shown = " ".join(capsys.readouterr().out.split())
    assert "run `pip install 'dlqat_tf[micro]'`" in shown


def test_other_files_are_not_counted_for_microcontrollers(tmp_path):
    report = to_tflite(small_network(), tmp_path / "model.tflite", snap=False)
    assert report.census.arena_bytes is report.census.without_arena is None
    assert "microcontroller" not in lines(report.census)
