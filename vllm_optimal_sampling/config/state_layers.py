"""Layers that keep a state in place of keys and values: state-space models and linear attention.

A model that has some beside attention is a *hybrid* (Qwen3.5, Granite 4, Falcon-H1). The state of a request takes one block
of the cache, however long its text is, and theta's lies in the same block of theta's layers. It is not shifted as theta's
tokens are (see `engine_core.layout`), and blocks of states have no part in that arithmetic.

What a state cannot do is go back: it is written over with each token. So what vLLM caches of a prompt's state is of the
teacher's prompt alone, and drafts that theta reads and that are rejected would stay in theta's state, unless vLLM keeps one for
every draft, as it does where theta reads along (`worker.theta.states`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.theta import scores

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

EXACT_STATES = ("MAMBA2", "GDN_ATTN")
"""Kinds of layers, by the names of vLLM's backends, that were shown exact: Mamba-2 and gated delta nets."""

EXACT_DRAFTED_STATES = ("GDN_ATTN",)
"""Those of them where drafts are verified too."""


def has_states(model: ModelConfig) -> bool:
    """Whether some of a model's layers keep a state."""
    return bool(model.is_hybrid or model.has_inner_state)


def caches_states(config: VllmConfig) -> bool:
    """Whether vLLM's prefix caching is on for a model that keeps states, as it is by default for some."""
    return config.cache_config.enable_prefix_caching and has_states(config.model_config)


def state_problems(config: VllmConfig, theta: ModelConfig) -> Iterator[str]:
    """The sentences for which an engine with such a model is refused; none where neither model is one."""
    teacher_has, theta_has = has_states(config.model_config), has_states(theta)
    if not teacher_has and not theta_has:
        return
    if theta_has and not teacher_has:
        yield (
            "theta has layers that keep a state and the teacher has none, by which vLLM lays out the cache; use two models of "
            "one family"
        )
    elif theta_has and not scores(config):
        yield (
            "theta has layers that keep a state, which cannot go back where its drafts are rejected; let it score: drop "
            """speculative_config, and add --additional-config '{"optimal_sampling": {"theta": "THE MODEL"}}'"""
        )
    cache = config.cache_config
    if cache.enable_prefix_caching:
        yield (
            "prefix caching would restore the state of the teacher's prompt and not of theta's, where layers keep a state; "
            "drop --enable-prefix-caching"
        )
    if cache.use_replayssm:
        yield "replayed states (ReplaySSM) were not run with theta; drop --use-replayssm"


def unsupported_state(spec: Any, num_speculative_tokens: int) -> str | None:
    """Why layers with a state of this kind (vLLM's `MambaSpec`) are refused, None if they are not."""
    if spec.mamba_cache_mode != "none":
        return f"keep states for prefix caching (mamba_cache_mode={spec.mamba_cache_mode!r}); drop --mamba-cache-mode"
    kind = spec.mamba_type.name
    if kind not in EXACT_STATES:
        return (
            f"keep states of the kind {kind}, and only {' and '.join(EXACT_STATES)} are shown exact; use another family"
        )
    if num_speculative_tokens and kind not in EXACT_DRAFTED_STATES:
        return (
            f"keep states of the kind {kind}, which are not shown exact where drafts are verified; drop speculative_config, "
            "and let theta score"
        )
    return None


def layout_block_size(config: VllmConfig, kv_cache_config: KVCacheConfig) -> int:
    """The block size by which theta's tokens are laid out, in tokens: the scheduler's, but for blocks that hold states.

    Where vLLM caches no states, a block of one spans `max_model_len` tokens, and so would the scheduler's.
    """
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.kv_cache_interface import MambaSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    of_tokens = [spec.block_size for spec in specs if not isinstance(spec, MambaSpec)]
    if len(of_tokens) == len(specs):
        return resolve_kv_cache_block_sizes(kv_cache_config, config)[0]
    return math.lcm(*of_tokens)
