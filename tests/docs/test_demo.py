"""`make demo` prints the demo and nothing around it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples/demo.py"


@pytest.mark.full
def test_the_demo_prints_its_own_lines_alone(tmp_path: Path) -> None:
    command = [sys.executable, DEMO, "--problems", "2", "--output", tmp_path / "results.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not [line for line in done.stdout.splitlines() if " INFO " in line or " WARNING " in line]
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 6
    for source in ("theta alone", "teacher", "q*"):
        right, sound = (sum(one[word] for one in results if one["source"] == source) for word in ("right", "sound"))
        assert sound <= right
        assert f"{source:<14}{f'{right} of 2':>10}{f'{sound} of 2':>10}" in done.stdout
