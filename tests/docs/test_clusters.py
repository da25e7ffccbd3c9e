"""The scripts for clusters in the documentation name the workers as training expects it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from dlqat_tf.training.distribution import _own_address
from tests.docs.test_snippets import ROOT, blocks

PAGE = ROOT / "docs" / "guides" / "devices.md"
# In place of what only a cluster has, and of the training.
PROGRAMS = {
    "dlqat": 'echo "$TF_CONFIG" | tr -d "\\n"; echo',
    "scontrol": "printf 'node7\\nnode8\\n'",
    "srun": 'for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; done',
}


def configurations(script: str, folder: Path, **environment) -> list[dict]:
    """Run a script beside stand-ins and return the TF_CONFIG of each ``dlqat`` in it."""
    for name, line in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    output = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": path, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [json.loads(line) for line in output.splitlines()]


def code_of(language: str) -> str:
    (code,) = [code for each, code, _ in blocks(PAGE) if each == language]
    return code


def check(found: list[dict], workers: list[str], monkeypatch):
    assert [each["cluster"]["worker"] for each in found] == [workers] * 2
    assert [each["task"]["index"] for each in found] == [0, 1]
    for each, worker in zip(found, workers, strict=True):
        monkeypatch.setenv("TF_CONFIG", json.dumps(each))
        assert _own_address() == worker  # raises what training would


def test_slurm(tmp_path, monkeypatch):
    found = configurations(code_of("bash"), tmp_path, SLURM_JOB_NODELIST="node[7-8]")
    check(found, ["node7:2222", "node8:2222"], monkeypatch)


def test_kubernetes(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with .[docs]")
    service, job = yaml.safe_load_all(code_of("yaml"))
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == 2
    assert service["spec"]["selector"] == {"job-name": name}
    (script,) = pod["containers"][0]["args"]
    found = [
        each
        for index in range(2)
        for each in configurations(script, tmp_path, JOB_COMPLETION_INDEX=str(index))
    ]
    hosts = [f"{name}-{index}.{service['metadata']['name']}:2222" for index in range(2)]
    assert pod["subdomain"] == service["metadata"]["name"]
    check(found, hosts, monkeypatch)


def test_two_machines(monkeypatch, tmp_path):
    found = [
        each
        for language, code, _ in blocks(PAGE)
        if language == "sh" and "TF_CONFIG" in code
        for each in configurations(code, tmp_path)
    ]
    check(found, ["host1:2222", "host2:2222"], monkeypatch)
