"""The whole script as it is called, with 2 rows a source and the example pair's theta in SmolLM2's place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from real_model import HERE
from real_model.protocol import LEARNING_RATES, SMALL, SOURCES
from real_model.tasks import TASKS

PAIR = HERE.parent / "pair"


def call(state: Path, *arguments: str) -> str:
    command = [sys.executable, HERE / "run.py", "--small", "--model", PAIR / "theta", "--state", state, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(state: Path) -> None:
    """A finished trial has every source's rows and students, drawn by the alpha that each is named for."""
    result = json.loads((state / "results" / "draw-0.json").read_text())
    assert set(result["data"]) == set(result["students"]) == set(SOURCES)
    assert result["versions"]["vllm"] and result["machine"]["device"] and result["commit"]
    for name, data in result["data"].items():
        student = result["students"][name]
        if data["rows"] == 0:
            assert SOURCES[name].kept == "right" and student["tasks"] is None
            continue
        alphas = {"theta": 0.0, "teacher": 1.0, "q*": data["alpha"]}
        assert data["alpha"] == alphas[SOURCES[name].family]
        assert data["rows"] <= SMALL.rows and 0 < data["tokens"] <= data["rows"] * SMALL.max_tokens
        assert {task: one["problems"] for task, one in student["tasks"].items()} == dict.fromkeys(TASKS, SMALL.held_out)
        assert student["learning_rate"] in LEARNING_RATES
    data = result["data"]
    assert data["fixed_0.5"]["alpha"] == 0.5
    assert 0 < data["kl_symmetry"]["alpha"] < 1
    assert data["theta_cold"]["kl"] == 0 < data["fixed_0.5"]["kl"] < data["teacher"]["kl"]
    assert result["fixed"]["epsilon"] > 0


def test_every_part_runs_once_and_is_kept(tmp_path: Path) -> None:
    assert "draws finished: none; not reached: [0]" in call(tmp_path, "--seconds", "0")
    assert "draws finished: [0]; not reached: none" in call(tmp_path, "--seconds", "1100")
    check(tmp_path)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert "draws finished: [0]" in call(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == parts
