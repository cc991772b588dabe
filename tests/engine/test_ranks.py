"""The engine core in a process of its own, and several ranks: greedy tokens against brute force.

vLLM loads the plugin there while it is building the engine core, not before, which a test in one process cannot see.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from support.cases import Case, generate, mixed_batch
from support.engines import engine_options, scoring_options, start_engine, stop_engine
from support.reference_models import Reference, greedy_tokens

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


@pytest.mark.parametrize("name", RANKS)
def test_greedy_where_the_teacher_is_theta(name: str, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = LLM(**scoring_options(pair[0], drafts=2, **RANKS[name]))
    try:
        cases = mixed_batch(seed=76, long=70)
        outputs = generate(llm, cases, max_tokens=8, temperature=0.0)
        reference = Reference(pair[0], pair[0])
        for case, output in zip(cases, outputs, strict=True):
            assert list(output.outputs[0].token_ids) == greedy_tokens(reference, case, 8), case
    finally:
        stop_engine(llm)


def test_async_engine_with_data_parallel_ranks_and_aborts(
    pair: tuple[str, str], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many requests as fit, on two engine cores; every third is given up after a few tokens."""
    # On CPUs vLLM 0.33 wants a memory node for each engine core, unless this is set, to whatever; "1" binds cores too.
    monkeypatch.setenv("VLLM_CPU_SIM_MULTI_NUMA", "0")
    cases = [case for seed in (72, 73, 74) for case in mixed_batch(seed=seed, long=70)]
    expected = [greedy_tokens(reference, case, 8) for case in cases]
    outcomes = asyncio.run(_run(pair, cases))
    for i, (tokens, wanted) in enumerate(zip(outcomes, expected, strict=True)):
        assert tokens == wanted[: len(tokens)], cases[i]
        assert len(tokens) == 8 or (i % 3 == 0 and tokens)


async def _run(pair: tuple[str, str], cases: list[Case]) -> list[list[int]]:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_options(*pair, data_parallel_size=2)))
    rng = random.Random(75)

    async def ask(i: int, case: Case) -> list[int]:
        await asyncio.sleep(rng.random() * 2)
        params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, extra_args=case.extra_args())
        tokens: list[int] = []
        async for output in engine.generate({"prompt_token_ids": case.prompt}, params, request_id=str(i)):
            tokens = list(output.outputs[0].token_ids)
            if i % 3 == 0:
                break  # vLLM aborts a request whose generator is closed
        return tokens

    try:
        return list(await asyncio.gather(*(ask(i, case) for i, case in enumerate(cases))))
    finally:
        engine.shutdown()
