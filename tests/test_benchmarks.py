"""Benchmarks that start processes of their own: how they end."""

import runpy
import subprocess
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
