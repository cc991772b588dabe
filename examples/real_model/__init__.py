"""Does data drawn from q* teach a real model better? SmolLM2-135M on reasoning-gym, by the rule of PROTOCOL.md."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PROBLEMS = HERE / "problems.jsonl"
"""A few problems of each task, for the gate, trials and tests; `tasks.py` makes as many as wanted."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an engine is in its job's process, and takes a student's tensors from it
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",  # several engines start side by side
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
}
"""Of a machine with a GPU and without internet; what is set stays."""

sys.path += [str(HERE.parent)]  # `distillation`, which finds `measure` of the pair and `recording` of the benchmarks

import distillation  # noqa: E402, F401
import recording  # noqa: E402

IS_CPU_BUILD = recording.set_cpu_environment()
if not IS_CPU_BUILD:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
