"""Engines of several ranks: greedy tokens against brute force, since the rows live in other processes."""

from __future__ import annotations

import pytest
from audit import Reference, greedy_tokens
from conftest import start_engine, stop_engine
from requests_mix import generate, mixed_batch

RANKS = {
    "tensor parallel": {"tensor_parallel_size": 2},
}


@pytest.mark.parametrize("name", RANKS)
def test_greedy(name: str, pair: tuple[str, str], reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = start_engine(*pair, **RANKS[name])
    try:
        cases = mixed_batch(seed=71, long=70)
        outputs = generate(llm, cases, max_tokens=12, temperature=0.0)
        for case, output in zip(cases, outputs, strict=True):
            assert list(output.outputs[0].token_ids) == greedy_tokens(reference, case, 12), case
    finally:
        stop_engine(llm)
