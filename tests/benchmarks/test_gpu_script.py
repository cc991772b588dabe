"""benchmarks/gpu.sh as it is called on a GPU, with tiny shapes on a CPU: every kind of part runs, and leaves its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import table

SCRIPT = table.HERE / "gpu.sh"


def call(folder: Path, number: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"SMALL": "1", "PYTHON": sys.executable, "STATE": str(folder), "RESULTS": str(folder / "results")}
    return subprocess.run(
        [SCRIPT, number],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_first_call(tmp_path: Path) -> None:
    """Checks beside the start of engines, then the kernel, then the engines; the table at the end."""
    done = call(tmp_path, "1")
    assert done.returncode == 0, done.stdout + done.stderr
    order = [done.stdout.index(said) for said in ("started:", "is quiet", "kernel: done", "heavy-random-tiny: done")]
    assert order == sorted(order)
    assert "GPU" in (tmp_path / "gpu-tests.log").read_text() or "skipped" in (tmp_path / "gpu-tests.log").read_text()
    result = read(tmp_path / "results" / "heavy-random-tiny.json")
    (line,) = result["configurations"]
    assert set(line["methods"]) == {"teacher", "optimal at 0.9"}
    assert "drafts accepted at 0.9 (set)" in done.stdout


def test_second_call(tmp_path: Path) -> None:
    done = call(tmp_path, "2")
    assert done.returncode == 0, done.stdout + done.stderr
    speed = read(tmp_path / "results" / "speed-random-tiny.json")
    assert [line["engine"] for line in speed["lines"]] == ["teacher", "optimal, 1 drafts"]
    assert all(line["steps"] > 1 and line["seconds"] > 0 for line in speed["lines"])
    assert {one["method"] for one in speed["profiles"]} == {"teacher", "optimal"}
    own = read(tmp_path / "results" / "speed-random-tiny-self.json")
    ran = {(line["engine"], line["batch"]) for line in own["lines"]}
    assert ran == {(engine, batch) for engine in ("teacher", "self", "scored") for batch in (1, 2)}
    pair = read(tmp_path / "results" / "example-pair.json")
    assert {name: one["problems"] for name, one in pair["sampled"].items()} == {"theta": 2, "teacher": 2, "q*": 2}
    assert pair["sampled"]["theta"]["mean_alpha"] == 0 and pair["sampled"]["teacher"]["mean_alpha"] == 1


@pytest.mark.full
def test_a_part_that_fails_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    done = call(tmp_path, "1", PAIR="no-such-pair")
    assert done.returncode == 1
    assert "heavy-no-such-pair: failed with 2" in done.stdout
    assert "invalid choice: 'no-such-pair'" in done.stdout
    assert "kernel: done" in done.stdout
    assert "failed: heavy-no-such-pair" in done.stdout


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    assert "benchmarks/gpu.sh 1" in call(tmp_path, "3").stdout
    done = call(tmp_path, "1", PYTHON="/bin/false")
    assert done.returncode == 1 and "cannot import vllm" in done.stderr
