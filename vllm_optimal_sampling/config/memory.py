"""The share of the memory that an engine takes where nobody said one."""

from __future__ import annotations

CPU_SHARE = 0.5
"""On a machine without a GPU. vLLM's default, 0.92 of all memory, leaves no room for anything else, and vLLM does not start
where so much is not free."""


def default_memory_share(on_gpu: float) -> float:
    """`gpu_memory_utilization` for this machine: `on_gpu`, or `CPU_SHARE` of the machine's memory where vLLM has no GPU."""
    from vllm.platforms import current_platform

    return min(on_gpu, CPU_SHARE) if current_platform.is_cpu() else on_gpu
