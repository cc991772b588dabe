"""The engine core in a process of its own, and several ranks: greedy tokens against brute force.

vLLM loads the plugin there while it is building the engine core, not before, which a test in one process cannot see.
"""

from __future__ import annotations

import pytest
from audit import Reference, greedy_tokens
from conftest import start_engine, stop_engine
from requests_mix import generate, mixed_batch

RANKS: dict[str, dict[str, int]] = {
    "one rank": {},
    "tensor parallel": {"tensor_parallel_size": 2},
}


@pytest.mark.parametrize("name", RANKS)
def test_greedy(name: str, pair: tuple[str, str], reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = start_engine(*pair, **RANKS[name])
    try:
        cases = mixed_batch(seed=71, long=70)
        outputs = generate(llm, cases, max_tokens=8, temperature=0.0)
        for case, output in zip(cases, outputs, strict=True):
            assert list(output.outputs[0].token_ids) == greedy_tokens(reference, case, 8), case
    finally:
        stop_engine(llm)
