"""A job's state and result in one JSON file: with what, on what machine and at which commit it was made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def circumstances() -> dict[str, Any]:
    """Date, versions, machine, its load and the commit."""
    return {
        "date": str(date.today()),
        "versions": {name: version(name) for name in ("vllm", "torch", "transformers", "triton", "hypothesis")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": [round(load, 1) for load in os.getloadavg()],
        "commit": _git("rev-parse", "HEAD"),
        "changed files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }


class Record:
    """A JSON file that is read at the start and replaced whole at every `save`.

    Attributes:
        data: what is kept, under the names of the job.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path = path
        self.data: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())
        self.data.pop("circumstances", None)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"circumstances": circumstances(), **self.data}, indent=1) + "\n")
        part.replace(self.path)
