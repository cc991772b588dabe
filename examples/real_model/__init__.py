"""Does data drawn from q* teach a real model better? SmolLM2-135M on reasoning-gym, by the rule of PROTOCOL.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PROBLEMS = HERE / "problems.jsonl"
"""A few problems of each task, for the gate, trials and tests; `tasks.py` makes as many as wanted."""

sys.path += [str(HERE.parent)]  # `distillation`, which finds `measure` of the pair and `recording` of the benchmarks

import distillation  # noqa: E402, F401
