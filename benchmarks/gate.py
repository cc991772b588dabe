"""Waiting for a quiet machine: engines start side by side, and are timed one program after the other."""

from __future__ import annotations

import time
from pathlib import Path


def wait_at(gate: Path | None) -> None:
    """Say that everything is started, by a file GATE.ready, and wait until the file GATE is there; None: go on at once."""
    if gate is None:
        return
    gate.with_name(f"{gate.name}.ready").touch()
    while not gate.exists():
        time.sleep(0.2)
