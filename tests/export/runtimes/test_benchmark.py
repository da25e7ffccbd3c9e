import json
import platform
import runpy
import sys
from pathlib import Path

import larq_compute_engine as lce
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf._host import write_whole
from dlqat_tf._litert import tflite_version
from dlqat_tf.export.runtimes.benchmark import REFERENCE_KERNEL, benchmark
from dlqat_tf.report import check_target

SCRIPT = Path(__file__).parents[3] / "export" / "benchmark.py"


@pytest.fixture
def opened(monkeypatch):
    """Every TFLite interpreter that is opened, with the order of their runs."""

    class Spy(tf.lite.Interpreter):
        all, order = [], []

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.options = options
            Spy.all.append(self)

        def invoke(self):
            Spy.order.append(Spy.all.index(self))
            super().invoke()

    monkeypatch.setattr(tf.lite, "Interpreter", Spy)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)  # which would replace it
    return Spy


def op_names(interpreter):
    return [op["op_name"] for op in interpreter._get_ops_details()]


def test_files_take_turns_and_warm_up_is_not_counted(stock_file, opened):
    report = benchmark([stock_file, stock_file], runs=51, warmup=2)
    assert [len(row.runs_ms) for row in report.files] == [51, 51]
    first, second = opened.order[:2]  # two interpreters before these only verified the files
    assert first != second
    assert opened.order == [first, second] * (2 + 51)


def test_median_and_quartiles_are_of_the_runs(stock_file, monkeypatch):
    # The clock is read twice a run: 1, 2, ..., 51 ms for the first file, twice that for the other.
    ticks = [t for k in range(1, 52) for t in (0.0, 1e-3 * k, 0.0, 2e-3 * k)]
    monkeypatch.setattr(
        "dlqat_tf.export.runtimes.benchmark.time.perf_counter", iter(ticks).__next__
    )
    first, second = benchmark([stock_file, stock_file], runs=51, warmup=0).files
    assert first.runs_ms == pytest.approx(range(1, 52))
    assert (first.median_ms, second.median_ms) == pytest.approx((26, 52))
    assert first.interquartile_range_ms == pytest.approx(38.5 - 13.5)
    assert (first.ratio, second.ratio) == pytest.approx((1, 2))


@pytest.mark.parametrize(
    ("xnnpack", "kernels", "delegated"), [(True, "XNNPACK", True), (False, "built-in", False)]
)
def test_xnnpack_switches_the_kernels(stock_file, opened, xnnpack, kernels, delegated):
    report = benchmark([stock_file], xnnpack=xnnpack)
    assert report.files[0].kernels == kernels
    assert report.xnnpack is xnnpack
    assert ("DELEGATE" in op_names(opened.all[-1])) is delegated


def test_threads_reach_both_interpreters(stock_file, lce_file, opened, monkeypatch):
    received = {}
    real = lce.testing.Interpreter

    def spy(content, **options):
        received.update(options)
        return real(content, **options)

    monkeypatch.setattr(lce.testing, "Interpreter", spy)
    report = benchmark([stock_file, lce_file], threads=2, xnnpack=False)
    assert report.threads == 2
    assert opened.all[-1].options["num_threads"] == 2
    assert received == {"num_threads": 2, "use_xnnpack": False}


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_lce_on_x86_is_no_benchmark(stock_file, lce_file, monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    report = benchmark([stock_file, lce_file])
    stock, binarized = report.files
    assert (stock.note, stock.ratio) == (None, 1)
    assert (binarized.kernels, binarized.note, binarized.ratio) == ("LCE", REFERENCE_KERNEL, None)
    assert REFERENCE_KERNEL in str(report)


def test_no_ratio_against_a_reference_kernel(stock_file, lce_file, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert [row.ratio for row in benchmark([lce_file, stock_file]).files] == [None, None]


def test_lce_on_arm_is_a_benchmark(stock_file, lce_file, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    row = benchmark([stock_file, lce_file]).files[1]
    assert row.note is None
    assert row.ratio > 0


def test_json_holds_everything(stock_file):
    report = benchmark([stock_file], warmup=3)
    read = json.loads(report.to_json())
    assert read["files"][0]["runs_ms"] == list(report.files[0].runs_ms)
    assert read["files"][0]["bytes"] == stock_file.stat().st_size
    assert read["warmup"] == 3
    assert read["cpu"]
    assert read["machine"] == platform.machine()
    assert read["versions"]["tensorflow"] == tf.__version__
    assert read["versions"]["interpreter"] == tflite_version()
    assert read["versions"]["larq-compute-engine"] == lce.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 49}, "Expected runs of at least 50, received runs=49"),
        ({"warmup": -1}, "Expected warmup of at least 0, received warmup=-1"),
        ({"threads": 0}, "Expected threads of at least 1, received threads=0"),
        ({"threads": 100_000}, "Expected threads of at most 256, received threads=100000"),
    ],
)
def test_arguments_out_of_range(stock_file, options, message):
    with pytest.raises(ValueError, match=message):
        benchmark([stock_file], **options)


def test_files_that_cannot_be_run(stock_file, lce_file, tmp_path):
    with pytest.raises(ValueError, match=r"at least one \.tflite file, received none"):
        benchmark([])
    with pytest.raises(FileNotFoundError, match="found none at"):
        benchmark([tmp_path / "absent.tflite"])
    other = tmp_path / "notes.txt"
    other.write_text("no flatbuffer at all")
    with pytest.raises(ValueError, match=r"notes\.txt, which is not one"):
        benchmark([other])
    for whole in (stock_file, lce_file):
        cut = tmp_path / "cut.tflite"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
        with pytest.raises(ValueError, match=r"cut\.tflite, which is damaged or cut short"):
            benchmark([stock_file, cut])


def test_custom_op_of_somebody_else(lce_file, tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(lce_file.read_bytes().replace(b"Lce", b"Xyz"))
    with pytest.raises(ValueError, match=r"that TFLite can run.*unresolved custom op: Xyz"):
        benchmark([other])


def test_integer_inputs_cover_the_range(stock_file, opened):
    converter = tf.lite.TFLiteConverter.from_keras_model(
        tf.keras.Sequential([tf.keras.layers.Input((16, 16, 3)), tf.keras.layers.Conv2D(2, 3)])
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: [[np.random.rand(1, 16, 16, 3).astype("float32")]]
    converter.inference_input_type = tf.uint8
    path = stock_file.parent / "uint8.tflite"
    path.write_bytes(converter.convert())
    benchmark([path])
    images = opened.all[-1].get_tensor(opened.all[-1].get_input_details()[0]["index"])
    assert images.dtype == np.uint8
    assert images.min() < 10
    assert images.max() > 245


def test_target_is_checked_and_written_in_one_step(tmp_path):
    target = tmp_path / "report.json"
    check_target(target, force=False)
    write_whole(target, "one")
    assert target.read_text() == "one"
    with pytest.raises(FileExistsError, match="--force"):
        check_target(target, force=False)
    check_target(target, force=True)
    with pytest.raises(FileNotFoundError, match="folder"):
        check_target(tmp_path / "absent" / "report.json", force=False)
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "two\ud800")
    assert target.read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run the script in this process, which has TensorFlow loaded already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_script_end_to_end(stock_file, lce_file, tmp_path, run_script):
    target = tmp_path / "report.json"
    status, printed, errors = run_script(
        stock_file, lce_file, "--runs", 60, "--warmup", 1, "--json", target
    )
    assert status == 0, errors
    assert "median ms" in printed
    assert len(json.loads(target.read_text())["files"][1]["runs_ms"]) == 60

    status, _, errors = run_script(stock_file, "--json", target)
    assert status == 2
    assert errors.startswith("error: Expected a new file")
    assert errors.count("\n") == 1
