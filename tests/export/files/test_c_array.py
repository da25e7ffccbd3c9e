import re
import shutil
import subprocess
import sys

import pytest

from dlqat_tf.export import ExportError, to_c_array, to_lce, to_tflite
from dlqat_tf.export.files.c_array import _method
from dlqat_tf.export.files.micro import arena_bytes, is_installed
from tests.export.networks import small_network

MAIN = """
#include <cstdio>

#include "7 digits.h"

struct Resolver {
  void AddConv2D() { std::puts("AddConv2D"); }
  void AddAdd() { std::puts("AddAdd"); }
  void AddMean() { std::puts("AddMean"); }
  void AddDequantize() { std::puts("AddDequantize"); }
  void AddQuantize() { std::puts("AddQuantize"); }
  void AddFullyConnected() { std::puts("AddFullyConnected"); }
};

static unsigned char arena[model_7_digits_tflite_arena_bytes];

int main(int arguments, char**) {
  if (arguments > 1) {
    std::fwrite(model_7_digits_tflite, 1, model_7_digits_tflite_len, stdout);
    return reinterpret_cast<unsigned long long>(model_7_digits_tflite) % 16;
  }
  Resolver resolver;
  model_7_digits_tflite_add_operations(resolver);
  std::printf("%zu %u\\n", sizeof(arena), model_7_digits_tflite_operations);
  for (int each : model_7_digits_tflite_input_shape) std::printf("%d ", each);
  std::printf("%d %.9g %d\\n", model_7_digits_tflite_input_size, model_7_digits_tflite_input_scale,
              model_7_digits_tflite_input_zero_point);
  for (int each : model_7_digits_tflite_output_shape) std::printf("%d ", each);
  std::printf("%d\\n", model_7_digits_tflite_output_size);
}
"""


@pytest.mark.skipif(not is_installed(), reason="tflite-micro is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_array_compiles_and_holds_the_file(tmp_path):
    path = tmp_path / "7 digits.tflite"
    to_tflite(small_network(), path, kernels="builtin", input_type="int8", snap=False)
    report = to_c_array(path)
    assert report.warnings == []
    assert report.source == str(tmp_path / "7 digits.cc")
    (tmp_path / "main.cc").write_text(MAIN)
    program = tmp_path / "program"
    flags = ("-std=c++11", "-Wall", "-Wextra", "-Werror")
    command = ["g++", *flags, "-o", program, "main.cc", "7 digits.cc"]
    subprocess.run(command, cwd=tmp_path, check=True)
    held = subprocess.run([program, "file"], capture_output=True, check=True).stdout
    assert held == path.read_bytes()
    said = subprocess.run([program], capture_output=True, check=True, text=True).stdout
    *operations, sizes, taken, given = said.splitlines()
    assert operations == report.operations
    assert sizes == f"{arena_bytes(path.read_bytes())} {len(operations)}"
    assert taken == "1 6 6 3 108 0.00392156886 -128"
    assert given == "1 5 5"


def test_existing_files_are_kept_unless_forced(tmp_path):
    path = tmp_path / "model.tflite"
    to_tflite(small_network(), path, kernels="builtin", snap=False)
    source, header = tmp_path / "other.cpp", tmp_path / "other.h"
    header.write_text("mine")
    with pytest.raises(ExportError, match=r"other\.h exists"):
        to_c_array(path, source)
    assert not source.exists()
    to_c_array(path, source, force=True)
    assert "extern const unsigned char model_tflite[];" in header.read_text()
    assert '#include "other.h"' in source.read_text()
    with pytest.raises(ExportError, match=r"ends in \.cc or \.cpp. Received: .*other\.py"):
        to_c_array(path, tmp_path / "other.py")


def test_a_source_that_cannot_be_replaced_leaves_the_header_as_it_was(tmp_path):
    path = tmp_path / "model.tflite"
    to_tflite(small_network(), path, kernels="builtin", snap=False)
    (tmp_path / "model.cc").mkdir()
    (tmp_path / "model.h").write_text("old")
    with pytest.raises(ExportError, match=r"received .*model\.cc, which is a folder"):
        to_c_array(path, force=True)
    assert (tmp_path / "model.h").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


def test_files_that_no_microcontroller_runs(tmp_path):
    model = small_network(channels=32)
    to_lce(model, tmp_path / "lce.tflite", snap=False)
    to_tflite(model, tmp_path / "any.tflite", batch_size=None, snap=False)
    for name, reason in (("lce", "Larq Compute Engine"), ("any", "batch_size=1")):
        with pytest.raises(ExportError, match=reason):
            to_c_array(tmp_path / f"{name}.tflite")
        assert not (tmp_path / f"{name}.h").exists()


def test_what_the_header_cannot_promise(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    to_tflite(small_network(), path, snap=False)
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    report = to_c_array(path)
    assert report.arena_bytes is None
    without, rounding = report.warnings
    assert re.search(r"no arena_bytes: .* run `pip install 'dlqat_tf\[micro\]'`", without)
    assert 'kernels="builtin"' in rounding
    header = (tmp_path / "model.h").read_text()
    assert "_arena_bytes" not in header
    assert "`pip install 'dlqat_tf[micro]'`" in header


def test_names_in_the_resolver():
    names = ("CONV_2D", "PADV2", "MAX_POOL_2D", "L2_NORMALIZATION", "RELU6")
    assert [_method(name, None) for name in names] == [
        *("AddConv2D", "AddPadV2", "AddMaxPool2D", "AddL2Normalization", "AddRelu6")
    ]
    with pytest.raises(ExportError, match=r"no operation Mine, which mine\.tflite has"):
        _method("Mine", "mine.tflite")
