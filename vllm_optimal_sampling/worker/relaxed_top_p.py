"""Works around a fault of vLLM's top-p, in engines with theta alone (see `relaxed_top_p_kernel.py`).

What vLLM calls where a token is drawn or verified are functions, which know of no engine: whether one with theta is drawing
is a matter of context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_drawing: ContextVar[bool] = ContextVar("drawing_with_theta", default=False)


@contextmanager
def drawing_with_theta() -> Iterator[None]:
    """While an engine with theta draws, or verifies drafts."""
    token = _drawing.set(True)
    try:
        yield
    finally:
        _drawing.reset(token)


def relax_if_drawing_with_theta(logits: Any, k: Any, p: Any) -> None:
    """Switch top-p off, in place, in the rows of which it needs every token.

    Args:
        logits: `[rows, vocab]`, after temperature and min-p.
        k: `[rows]`, top-k of each row, or None.
        p: `[rows]`, gathered for this call; None where no request asks for top-p.
    """
    if p is None or not _drawing.get():
        return
    from vllm_optimal_sampling.worker.relaxed_top_p_kernel import relax_top_p_

    relax_top_p_(logits, k, p)
