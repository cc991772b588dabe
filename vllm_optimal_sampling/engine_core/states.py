"""Blocks for the states of requests, in an engine in which theta's slots lie behind the teacher's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import MambaManager


def give_one_state(manager: MambaManager) -> None:
    """Let a request's state take one block, and one for each draft, however far theta's slots reach beyond the teacher's.

    vLLM counts the blocks by tokens, `max_model_len` to one, and has room for no more in its block tables; theta's slots may
    lie a block of tokens beyond that.
    """
    within: Any = manager  # methods are replaced
    within.get_num_blocks_to_allocate = _within_a_block(manager, manager.get_num_blocks_to_allocate)
    within.allocate_new_blocks = _within_a_block(manager, manager.allocate_new_blocks)


def _within_a_block(manager: MambaManager, count: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(count)
    def count_within_a_block(request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        return count(request_id, min(num_tokens, manager.block_size), *args, **kwargs)

    return count_within_a_block
