"""What a prefix-cache hit saves theta: counted tokens, with the same answer as without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from vllm import LLM

from support.cases import KL_SYMMETRY, Case, generate, token_ids
from vllm_optimal_sampling.worker.theta.rows import Rows
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass

BLOCK_SIZE = 32
PROMPT_LEN = 130


@pytest.mark.parametrize("theta_len", [1, 40, 98, 99, PROMPT_LEN, 140, 300])
def test_theta_recomputes_at_most_a_block_more(
    theta_len: int, engines: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines()
    computed = 0
    run = ScoringPass.run

    def counting(self: ScoringPass, model: Any, rows: Rows, *args: Any) -> Any:
        nonlocal computed
        computed += rows.num_tokens
        return run(self, model, rows, *args)

    monkeypatch.setattr(ScoringPass, "run", counting)  # not of the engine's own steps at its start
    rng = random.Random(theta_len)
    case = Case(token_ids(rng, PROMPT_LEN), token_ids(rng, theta_len), KL_SYMMETRY)
    (first,) = generate(llm, [case], max_tokens=8, temperature=0.0)
    assert computed == theta_len

    computed = 0
    (second,) = generate(llm, [case], max_tokens=8, temperature=0.0)
    assert second.outputs[0].token_ids == first.outputs[0].token_ids
    assert (second.num_cached_tokens or 0) >= BLOCK_SIZE
    by_teacher = PROMPT_LEN - (second.num_cached_tokens or 0)
    # What lies behind the teacher's last block is theta's own: no hit of the teacher's can cover it.
    assert computed <= by_teacher + BLOCK_SIZE + max(theta_len - PROMPT_LEN, 0)
