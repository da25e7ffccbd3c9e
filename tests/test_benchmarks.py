"""Benchmarks that start processes of their own: how they end."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["scaling.py", "step_time.py"])
def test_interrupted(monkeypatch, capsys, name):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tyro.cli", interrupt)
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert ending.value.code == 130
    assert capsys.readouterr().err == "error: interrupted, nothing was written\n"


def test_memory_needs_two_sizes_of_batches():
    command = [sys.executable, BENCHMARKS / "step_time.py", "--batch-size", "3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: Expected --batch-size of at least 4")


def test_memory_of_an_image_is_what_three_quarters_of_a_batch_add(monkeypatch):
    step_time = runpy.run_path(str(BENCHMARKS / "step_time.py"))
    memory_of = step_time["memory_of"]

    def peaks(function, settings, name):  # of the process and the network, 100 MB without images
        return 150 + 2 * settings.batch_size, 100 + 2 * settings.batch_size

    monkeypatch.setitem(memory_of.__globals__, "apart", peaks)
    assert memory_of(step_time["Settings"](batch_size=8), "float") == (166, 116, 2.0)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit])
def test_no_worker_is_left(monkeypatch, reason):
    scaling = runpy.run_path(str(BENCHMARKS / "scaling.py"))
    calls = []

    class Worker:
        returncode = 1  # which ends the benchmark

        def __init__(self, *_, start_new_session, **__):
            assert start_new_session  # a terminal's Ctrl-C does not reach it

        def communicate(self):
            if reason is KeyboardInterrupt:
                raise KeyboardInterrupt
            return "", None

        def kill(self):
            calls.append("kill")

        def wait(self):
            calls.append("wait")

    monkeypatch.setattr(subprocess, "Popen", Worker)
    with pytest.raises(reason):
        scaling["measure"](scaling["Settings"](), 2, together=True)
    assert calls == ["kill", "wait"] * 2
