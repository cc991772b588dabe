"""Small engines with optimal sampling: their options, starting and stopping them, and what is inside one."""

from __future__ import annotations

import gc
from typing import Any

from vllm import LLM

from support.gpu import GPU_OPTIONS, ON_GPU
from vllm_optimal_sampling.worker.processor import OptimalSamplingLogitsProcessor

RUN_MODES: dict[str, dict[str, Any]] = {"eager": {"enforce_eager": True}} | (
    {"graphs": {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}}
    if ON_GPU
    else {}
)
"""How an engine runs its models; async scheduling, which vLLM's CPU build has not, is on with both where there is a GPU."""


def engine_options(teacher: str, theta: str, num_speculative_tokens: int = 3, **options: Any) -> dict[str, Any]:
    """Arguments of a small engine with optimal sampling, as a user gives them."""
    speculative_config = {
        "model": theta,
        "num_speculative_tokens": num_speculative_tokens,
        **options.pop("speculative_config", {}),
    }
    return _small(teacher, speculative_config=speculative_config, **options)


def scoring_options(teacher: str, theta: str = "self", drafts: int = 0, **options: Any) -> dict[str, Any]:
    """Arguments of a small engine in which theta scores, with so many n-gram drafts a step."""
    settings: dict[str, Any] = {"theta": theta}
    settings |= {key: options.pop(key) for key in ("theta_lora", "theta_prompt_graphs") if key in options}
    if drafts:
        options["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": drafts,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        }
    return _small(teacher, additional_config={"optimal_sampling": settings}, **options)


def _small(teacher: str, **options: Any) -> dict[str, Any]:
    return {
        "model": teacher,
        "logits_processors": ["optimal_sampling"],
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "kv_cache_memory_bytes": 1 << 26,
        "block_size": 32,
        "disable_log_stats": False,
        **GPU_OPTIONS,
        **options,
    }


def start_engine(teacher: str, theta: str, num_speculative_tokens: int = 3, **options: Any) -> LLM:
    """The same engine started, in this process unless VLLM_ENABLE_V1_MULTIPROCESSING says otherwise."""
    return LLM(**engine_options(teacher, theta, num_speculative_tokens, **options))


def stop_engine(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def find_processor(llm: LLM) -> OptimalSamplingLogitsProcessor:
    return find_runner(llm).sampler.logits_processors[0]


def find_runner(llm: LLM) -> Any:
    """The model runner of an engine that lives in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0)."""
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner
