"""How far rows of an engine may lie from float64, by dtype and attention backend: twice what was seen, or a CPU's own limit.

What was seen on one H200 (vLLM 0.33, sampled trajectories of the random pair, 11,600 rows in bfloat16 and 9,800 in float32):
theta's rows in bfloat16 with FlashAttention 3 median 0.055 nats, 99 % below 0.13, largest 0.19; the teacher's 0.15, 0.35,
0.57; in float32 with Triton's attention, which multiplies in TF32, theta's median 0.005, largest 0.018. The mix of the rows it
was given differed from float64 by at most 5e-5 in total variation everywhere. On a CPU in bfloat16: theta's largest 0.12, the
teacher's 0.40.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllm.v1.kv_cache_interface import MambaSpec

from vllm_optimal_sampling.worker.theta.one_model import OneModelScorer


@dataclass(frozen=True)
class Tolerances:
    theta_nats: float
    """Largest error of a log-probability of theta's row, where it is likely enough to count."""
    teacher_nats: float
    """The same of the teacher's row."""
    total_variation: float
    """Of log q* from the one that float64 computes of both models; 1 where the models' own rounding rules it."""
    mix_total_variation: float = 2e-4
    """Of log q* from the one that float64 computes of the very rows that were mixed."""


CPU_FLOAT32 = Tolerances(theta_nats=5e-4, teacher_nats=5e-4, total_variation=2e-4)
"""Observed up to 3e-5 nats on log-probabilities above 1e-6. A wrong token, position or block moves rows by 0.1 and more."""

CPU_FLOAT8_CACHE = Tolerances(theta_nats=0.4, teacher_nats=0.4, total_variation=0.2)
"""Where float32 and float64 lie on two sides of a step of float8, a key or a value differs by a sixteenth: observed up to
0.07 nats in 822 rows. Most rows have no such step, and lie within CPU_FLOAT32."""

BFLOAT16 = Tolerances(theta_nats=0.4, teacher_nats=1.2, total_variation=1.0)

TOLERANCES: dict[tuple[str, str], Tolerances] = {
    ("float32", "CPU_ATTN"): CPU_FLOAT32,
    ("float32", "CPU_MLA"): CPU_FLOAT32,
    ("float32 with a float8 cache", "CPU_ATTN"): CPU_FLOAT8_CACHE,
    ("bfloat16", "CPU_ATTN"): BFLOAT16,
    ("float32", "TRITON_ATTN"): Tolerances(theta_nats=0.05, teacher_nats=0.15, total_variation=1.0),
    ("bfloat16", "TRITON_ATTN"): BFLOAT16,
    ("bfloat16", "FLASH_ATTN"): BFLOAT16,
}
"""By dtype and attention backend."""


def tolerances_of(runner: Any) -> Tolerances:
    """Those of an engine's model runner; where theta is the teacher, its rows may be as far off as the teacher's.

    Raises:
        KeyError: nothing was measured with its dtype and backend.
    """
    dtype = str(runner.vllm_config.model_config.dtype).removeprefix("torch.")
    if str(runner.vllm_config.cache_config.cache_dtype).startswith("fp8"):
        dtype += " with a float8 cache"
    groups = [
        group for groups in runner.attn_groups for group in groups if not isinstance(group.kv_cache_spec, MambaSpec)
    ]
    (backend,) = {group.backend.get_name() for group in groups}
    if (dtype, backend) not in TOLERANCES:
        raise KeyError(f"no tolerances for {dtype} with {backend}: measure rows against float64, and add them")
    found = TOLERANCES[dtype, backend]
    is_teacher = isinstance(runner.theta, OneModelScorer) or getattr(runner.theta, "shares_weights", False)
    return replace(found, theta_nats=found.teacher_nats) if is_teacher else found
