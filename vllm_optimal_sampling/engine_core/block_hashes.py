"""What the hash of a cached block knows of theta."""

from __future__ import annotations

from typing import Any

from vllm_optimal_sampling.engine_core.layout import ThetaLayout


def extra_keys(keys: tuple | None, request: Any, start: int, end: int) -> tuple | None:
    """vLLM's extra keys of a block, and theta's version and its tokens in the slots: a hit must be valid for both models.

    Args:
        keys: vLLM's own.
        request: with its `theta_layout`.
        start, end: the block's slots [start, end), counted in the request's own block table.
    """
    layout: ThetaLayout = request.theta_layout
    if not layout.reads:
        return (*(keys or ()), ("theta", None))  # no other request finds keys and values of theta in this block
    if layout.version:
        keys = (*(keys or ()), ("theta's version", layout.version))
    if layout.prompt is None:
        return keys
    # A block before theta's first token says so too: one where theta read the teacher's tokens is another block.
    tokens = layout.tokens_in_slots(start, end, request.all_token_ids, request.num_prompt_tokens)
    return (*(keys or ()), ("theta", tokens))
