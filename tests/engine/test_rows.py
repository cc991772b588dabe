"""Everything the engine does to a batch, crossed: sampled rows by the audit, greedy tokens by brute force.

Twelve engines cover each pair of {prefix caching} x {chunks of 16, 64 tokens, whole prompts} x {preempted or not} x
{K = 1, 3, 5, by batch size}; each runs every pair of {length of theta's prompt} x {alpha} x {one, four samples}, with
neighbours on the same prompts. `make test` takes four of the engines, `make test-full` all, on every supported vLLM.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from vllm import LLM

from support.cases import KL_SYMMETRY, OPTED_OUT, TEACHER_ALONE, THETA_ALONE, Case, generate, theta_prompts, token_ids
from support.reference_models import Reference, greedy_tokens
from support.row_audit import RowAudit

BLOCK_SIZE = 32
PROMPT_LEN = 70
WHOLE = 512
BY_BATCH_SIZE = 0


@dataclass(frozen=True)
class Engine:
    num_drafts: int
    chunk: int
    caching: bool
    preempted: bool

    @property
    def name(self) -> str:
        drafts = f"K={self.num_drafts}" if self.num_drafts else "K by batch size"
        chunk = "whole prompts" if self.chunk == WHOLE else f"chunks of {self.chunk}"
        return f"{drafts}, {chunk}{', caching' * self.caching}{', preempted' * self.preempted}"

    @property
    def most_drafts(self) -> int:
        return self.num_drafts or 4

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_speculative_tokens": self.most_drafts,
            "max_num_batched_tokens": self.chunk,
            "max_num_seqs": min(8, self.chunk // (self.most_drafts + 1)),
            "enable_prefix_caching": self.caching,
            "max_model_len": 192,
        }
        if self.num_drafts == BY_BATCH_SIZE:
            options["speculative_config"] = {"num_speculative_tokens_per_batch_size": [(1, 1, 4), (2, 2, 1), (3, 8, 0)]}
        if self.preempted:
            # One request of the model's length just fits, so two that grow do not.
            options["num_gpu_blocks_override"] = 2 + (192 + 2 * BLOCK_SIZE) // BLOCK_SIZE
        return options


ENGINES = [
    Engine(num_drafts, chunk, caching=(i + j) % 2 == 0, preempted=(i // 2 + j) % 2 == 0)
    for i, num_drafts in enumerate((1, 3, 5, BY_BATCH_SIZE))
    for j, chunk in enumerate((16, 64, WHOLE))
]
CHOSEN = [ENGINES[0], ENGINES[4], ENGINES[8], ENGINES[9]]

ALPHAS = (THETA_ALONE, TEACHER_ALONE, KL_SYMMETRY)
LENGTHS = (20, PROMPT_LEN, 85, 2 * PROMPT_LEN)


def requests(first: int) -> tuple[list[Case], list[int]]:
    """Cases on one prompt of the teacher, and the number of samples of each; `first` of the first, then alternating."""
    rng = random.Random(first)
    prompt, longest = token_ids(rng, PROMPT_LEN), token_ids(rng, 2 * PROMPT_LEN)
    cases = [Case(prompt, longest[:length], alpha) for length in LENGTHS for alpha in ALPHAS]
    cases[4] = replace(cases[4], theta_prompt=None)  # the teacher's own
    cases.insert(5, Case(prompt, None, OPTED_OUT))  # among others: vLLM calls no processor for a batch of opt-outs
    return cases, [first if i % 2 == 0 else 5 - first for i in range(len(cases))]


@pytest.mark.parametrize(
    "engine",
    [pytest.param(engine, id=engine.name, marks=() if engine in CHOSEN else pytest.mark.full) for engine in ENGINES],
)
def test_sampled_rows_and_greedy_tokens(engine: Engine, engines: Callable[..., LLM], reference: Reference) -> None:
    llm = engines(**engine.options())
    max_tokens = 14 if engine.preempted else 8
    preempted_before = counter(llm, "vllm:num_preemptions")

    cases, samples = requests(first=1)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=max_tokens, samples=samples)
    report = audit.check(reference, theta_prompts(cases, outputs))
    assert report.mixed < report.rows  # the opted-out request is audited too
    if engine.num_drafts:
        assert set(report.by_draft_position) == set(range(engine.num_drafts + 1))
    for output, count in zip(outputs, samples, strict=True):
        assert [len(sample.token_ids) for sample in output.outputs] == [max_tokens] * count
        assert output.prompt_token_ids is not None
        # What the rows were audited for is what the user got.
        for sample in output.outputs:
            tokens = [*output.prompt_token_ids, *sample.token_ids]
            assert any(tokens[: len(row.tokens)] == row.tokens for row in audit.rows)

    # The other way round; several samples of what top_k=1 leaves of a distribution are the greedy one.
    cases, samples = requests(first=4)
    outputs = generate(llm, cases, max_tokens=max_tokens, samples=samples, top_k=1)
    found = [output.outputs[0].token_ids for output in outputs]
    expected = [
        greedy_tokens(reference, case, max_tokens, supposed=tokens) for case, tokens in zip(cases, found, strict=True)
    ]
    for case, output, tokens in zip(cases, outputs, expected, strict=True):
        assert [list(sample.token_ids) for sample in output.outputs] == [tokens] * len(output.outputs), case
    hits = generate(llm, cases[-2:], max_tokens=4, temperature=0.0)
    assert [list(hit.outputs[0].token_ids) for hit in hits] == [tokens[:4] for tokens in expected[-2:]]
    assert [(hit.num_cached_tokens or 0) > 0 for hit in hits] == [engine.caching] * 2

    assert (counter(llm, "vllm:num_preemptions") > preempted_before) is engine.preempted


def test_the_engines_cover_every_pair() -> None:
    names = ("num_drafts", "chunk", "caching", "preempted")
    for first, second in itertools.combinations(names, 2):
        levels = [{getattr(engine, name) for engine in ENGINES} for name in (first, second)]
        seen = {(getattr(engine, first), getattr(engine, second)) for engine in ENGINES}
        assert seen == set(itertools.product(*levels)), (first, second)
    for name in names:
        assert {getattr(engine, name) for engine in CHOSEN} == {getattr(engine, name) for engine in ENGINES}, name


def counter(llm: LLM, name: str) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)  # type: ignore[attr-defined]
