"""`optimal-sampling generate` as a child process, over the example pair."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.example_pair import PAIR, TEACHER, THETA
from support.servers import SMALL_OPTIONS

COMMAND = [sys.executable, "-m", "vllm_optimal_sampling", "generate"]

THETA_TEMPLATE = "{{ problem }}"
TEACHER_TEMPLATE = "{{ problem }}\nAnswer: {{ answer }}."
TEMPLATES = ["--theta-template", THETA_TEMPLATE, "--teacher-template", TEACHER_TEMPLATE]
MODELS = ["--teacher", TEACHER, "--theta", THETA, "--num-speculative-tokens", "3"]
SMALL = SMALL_OPTIONS
"""vLLM's own options, which the command passes on."""

RUN_SECONDS = 600  # 60 s on two idle cores; CI shares them


def problems(number: int) -> list[dict[str, Any]]:
    """The first held-out problems of the example pair."""
    with (PAIR / "problems.jsonl").open() as file:
        return [json.loads(line) for line, _ in zip(file, range(number), strict=False)]


def write_rows(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    """JSON lines, and lines as they are where they are bytes."""
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The output, every line of which has to be whole."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


@dataclass
class Running:
    """The command while it runs, and the processes that it starts: one process group."""

    process: subprocess.Popen
    output: Path
    log: Path

    def lines(self) -> int:
        """Whole lines in the output."""
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def wait_for_lines(self, number: int) -> None:
        """Wait until the output has so many lines, or the command has ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while self.process.poll() is None and self.lines() < number:
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.05)

    def children(self) -> list[int]:
        """The processes that the command itself has started: its engine, if it is up."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def engine(self) -> int:
        """The process of its engine, by the name that vLLM gives it."""
        (engine,) = [one for one in self.children() if "EngineCore" in Path(f"/proc/{one}/cmdline").read_text()]
        return engine

    def end(self, number: signal.Signals) -> int:
        """Send the command alone a signal, wait for it and for its children, and return its exit code."""
        children = self.children()
        self.process.send_signal(number)
        code = self.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline, f"{children} outlived the command"
            time.sleep(0.05)
        return code

    def wait(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(RUN_SECONDS)
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """End what a killed command leaves behind. Its engine, in a group of its own, has to end by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def start(output: Path, *options: str) -> Running:
    """Start the command; what it says goes to a file beside the output."""
    log = output.with_suffix(".log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*COMMAND, "--output", str(output), "--log-interval", "2", *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(process, output, log)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end where no engine is started."""
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
