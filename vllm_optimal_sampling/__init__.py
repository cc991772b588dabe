"""Optimal sampling for vLLM: every token from q* ∝ π_θ^(1-α) π_t^α, with theta as vLLM's draft model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_optimal_sampling.offline import OptimalSampler, OptimalSamplingOutput, OptimalSamplingV1
    from vllm_optimal_sampling.params import ArgumentError, OptimalSamplingParams

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "OptimalSampler",
    "OptimalSamplingOutput",
    "OptimalSamplingParams",
    "OptimalSamplingV1",
    "__version__",
]

# vLLM imports this package in every process of every engine: a name is loaded when it is first used.
_HOMES = {
    "ArgumentError": "vllm_optimal_sampling.params",
    "OptimalSampler": "vllm_optimal_sampling.offline",
    "OptimalSamplingOutput": "vllm_optimal_sampling.offline",
    "OptimalSamplingParams": "vllm_optimal_sampling.params",
    "OptimalSamplingV1": "vllm_optimal_sampling.offline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
