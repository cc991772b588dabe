"""Patches in the engine core's process: block hashes that know theta's tokens. The rest is `engine_core/scheduler.py`."""

from __future__ import annotations

import functools
from typing import Any

from vllm_optimal_sampling.config.settings import is_enabled
from vllm_optimal_sampling.config.theta import scores
from vllm_optimal_sampling.hooks.registry import patch, register


@register(
    "vllm.config.vllm",
    "VllmConfig.num_lookahead_tokens",
    None,
    "theta's round feeds its last draft too, one token more than vLLM's own draft model",
)
def num_lookahead_tokens(original: property) -> property:
    assert original.fget is not None
    get = original.fget

    @functools.wraps(get)
    def num_lookahead_tokens(self: Any) -> int:
        return get(self) + (1 if is_enabled(self) and not scores(self) else 0)

    return property(num_lookahead_tokens)


@patch(
    "vllm.config.scheduler",
    "SchedulerConfig.get_scheduler_cls",
    "self",
    "vLLM warns that any class but its own is slow, which is not so of a subclass of its asynchronous scheduler",
)
def get_scheduler_cls(original: Any, self: Any) -> Any:
    from vllm_optimal_sampling.subclasses import is_subclass_name, resolve

    return resolve(self.scheduler_cls) if is_subclass_name(self.scheduler_cls) else original(self)


# Not `EngineCore.__init__`: in a process of its own that is what loads this plugin, and it is running by then.
@patch(
    "vllm.v1.engine.core",
    "EngineCore.preprocess_add_request",
    "self request",
    "a request is hashed when it is made, and theta's slots depend on the scheduler's block size",
)
def preprocess_add_request(original: Any, self: Any, request: Any) -> Any:
    if hasattr(self.scheduler, "hash_with_theta"):
        self.request_block_hasher = self.scheduler.hash_with_theta(self.request_block_hasher)
    return original(self, request)


# The function is looked up where it is defined for hashing, and under its own name by the pool, for KV events.
@patch(
    ("vllm.v1.core.kv_cache_utils", "vllm.v1.core.block_pool"),
    "generate_block_hash_extra_keys",
    "request start_token_idx end_token_idx start_mm_idx",
    "a cached block holds theta's keys and values beside the teacher's, so a hit must be valid for both",
)
def generate_block_hash_extra_keys(
    original: Any, request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> Any:
    keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
    if hasattr(request, "theta_layout"):
        from vllm_optimal_sampling.engine_core.block_hashes import extra_keys

        keys = extra_keys(keys, request, start_token_idx, end_token_idx)
    return keys, next_mm_idx
