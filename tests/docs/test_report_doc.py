"""The blocks of report.md, one after the other in one folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from blocks import blocks

from vllm_optimal_sampling import cli


def run_command(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "optimal-sampling"
    assert cli.main(arguments) == 0, line


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("report.md", "bash", "python"):
        if block.language == "python":
            exec(compile(block.text, block.name, "exec"), names)
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                run_command(line)
    assert "Where the models disagree most" in (tmp_path / "rows.jsonl.report.html").read_text()
    kept = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("rows", "right", "kept", "said")
    }
    assert [len(rows) for rows in kept.values()] == [40, 30, 40, 40]
    assert all(row["answer"] != "unknown" for row in kept["right"])
