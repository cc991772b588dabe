"""What is finished is a file: an interrupted run goes on behind the last one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recording

DIGITS = 8


def piece(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A JSON file's content. Where there is none it is computed, and written whole with the seconds it took."""
    if not path.exists():
        started, cpu = time.monotonic(), time.process_time()
        found = compute()
        found["seconds"] = round(time.monotonic() - started, 1)
        found["cpu_seconds"] = round(time.process_time() - cpu, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(recording.rounded(found, DIGITS)))
        part.replace(path)
    return read(path)


def read(path: Path) -> dict[str, Any]:
    """A piece that is finished."""
    return json.loads(path.read_text())
