"""The engine core in a process of its own, and several ranks: greedy tokens against brute force, sampled rows by the audit.

vLLM loads the plugin there while it is building the engine core, not before, which a test in one process cannot see.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from support.cases import KL_SYMMETRY, OPTED_OUT, THETA_ALONE, Case, generate, mixed_batch, theta_prompts
from support.engines import engine_options, scoring_options, start_engine, stop_engine
from support.gpu import ON_GPU
from support.random_models import save_model
from support.rank_audit import RankAudit
from support.reference_models import Reference, greedy_tokens
from support.row_audit import Report
from support.special_pairs import Pair, prompts, start_pair
from support.special_tokens import CHATTY, OTHER

TWO_RANKS = pytest.mark.skipif(
    ON_GPU and torch.cuda.device_count() < 2, reason="two ranks need a GPU each, and torch sees one here"
)
RANKS = [
    pytest.param({}, id="one rank"),
    pytest.param({"tensor_parallel_size": 2}, id="tensor parallel", marks=TWO_RANKS),
]

# Few tokens to draw from, so that n-grams draft what is then drawn. The audit's rows are those before that.
FEW_TOKENS: dict[str, Any] = {"allowed_token_ids": [5, 6, 7]}


@pytest.fixture(scope="module")
def uneven_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A random teacher and theta whose vocabularies are padded, each by another number, before ranks share them out."""
    folder = tmp_path_factory.mktemp("uneven")
    return (
        save_model(folder / "teacher", hidden_size=128, num_layers=3, seed=0, vocab_size=515),
        save_model(folder / "theta", hidden_size=64, num_layers=2, seed=1, vocab_size=449),
    )


@pytest.fixture(scope="module")
def uneven_reference(uneven_pair: tuple[str, str]) -> Reference:
    return Reference(*uneven_pair)


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # the audit goes to the workers as functions


def check(llm: LLM, reference: Reference, cases: list[Case], **options: Any) -> Report:
    """Greedy tokens by brute force, and the rows of sampled ones on every rank."""
    outputs = generate(llm, cases, max_tokens=8, temperature=0.0)
    for case, output in zip(cases, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert tokens == greedy_tokens(reference, case, 8, supposed=tokens), case
    with RankAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=8, samples=[1, 2] * 6, **options)
    return audit.check(reference, theta_prompts(cases, outputs))


@pytest.mark.usefixtures("in_processes")
@pytest.mark.parametrize("ranks", RANKS)
def test_theta_drafts(ranks: dict[str, int], uneven_pair: tuple[str, str], uneven_reference: Reference) -> None:
    llm = start_engine(*uneven_pair, **ranks)
    try:
        report = check(llm, uneven_reference, mixed_batch(seed=71, long=70))
        assert report.mixed < report.rows and report.by_draft_position[3] > 20
    finally:
        stop_engine(llm)


@pytest.mark.usefixtures("in_processes")
@pytest.mark.parametrize("ranks", RANKS)
def test_the_teacher_is_theta(ranks: dict[str, int], pair: tuple[str, str]) -> None:
    llm = LLM(**scoring_options(pair[0], drafts=2, **ranks))
    try:
        report = check(llm, Reference(pair[0], pair[0]), mixed_batch(seed=76, long=70), **FEW_TOKENS)
        assert report.mixed < report.rows and report.by_draft_position[2] > 20
    finally:
        stop_engine(llm)


@TWO_RANKS
@pytest.mark.usefixtures("in_processes")
def test_theta_scores_with_other_special_tokens(tmp_path: Path) -> None:
    """Two models, n-gram drafts, and vocabularies that agree but for special tokens, on two ranks."""
    pair = Pair(CHATTY, OTHER, (6, 3), scores=True)
    running = start_pair(pair, tmp_path, tensor_parallel_size=2)
    try:
        rng = random.Random(77)
        shared = prompts(running, rng, 70)
        cases = [
            Case(shared, prompts(running, rng, length, of_theta=True), arguments)
            for length in (20, 70, 90)
            for arguments in (KL_SYMMETRY, THETA_ALONE)
        ] + [Case(shared, None, KL_SYMMETRY), Case(shared, None, OPTED_OUT)]
        few = {"allowed_token_ids": [running.teacher.eos_token_id, *running.ids("the", "<user>")]}
        with RankAudit(running.llm) as audit:
            outputs = generate(running.llm, cases, max_tokens=8, samples=[1, 2] * 4, **few)
        report = audit.check(running.reference, theta_prompts(cases, outputs), running.vocabularies)
        assert report.mixed < report.rows and report.by_draft_position[2] > 20
    finally:
        stop_engine(running.llm)


@TWO_RANKS
def test_async_engine_with_data_parallel_ranks_and_aborts(
    pair: tuple[str, str], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many requests as fit, on two engine cores; every third is given up after a few tokens."""
    # On CPUs vLLM 0.33 wants a memory node for each engine core, unless this is set, to whatever; "1" binds cores too.
    monkeypatch.setenv("VLLM_CPU_SIM_MULTI_NUMA", "0")
    cases = [case for seed in (72, 73, 74) for case in mixed_batch(seed=seed, long=70)]
    outcomes = asyncio.run(_run(pair, cases))
    expected = [greedy_tokens(reference, case, 8, supposed=found) for case, found in zip(cases, outcomes, strict=True)]
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
