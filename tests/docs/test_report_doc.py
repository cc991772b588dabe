"""The blocks of report.md, one after the other in one folder; commands go through the parsers of their modules."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest
from blocks import blocks

from vllm_optimal_sampling import filter as filter_
from vllm_optimal_sampling import report


def run_command(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "optimal-sampling"
    parser = argparse.ArgumentParser(prog=program)
    commands = parser.add_subparsers(required=True)
    report.add_parser(commands)
    filter_.add_parser(commands)
    options = parser.parse_args(arguments)
    assert options.handler(options) == 0, line


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
