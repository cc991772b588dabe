"""Every row that enters the sampler, on sampled trajectories, against float64 (see `audit`)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from audit import Reference, RowAudit
from requests_mix import generate, mixed_batch, theta_prompts
from vllm import LLM

# Chunks, caching and preemption are spread over the three numbers of drafts.
ENGINES: dict[str, dict[str, Any]] = {
    "K=1, chunks of 64 tokens": {"num_speculative_tokens": 1, "max_num_batched_tokens": 64},
    "K=3, preempted": {"num_speculative_tokens": 3, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 26},
    "K=5, no prefix caching": {"num_speculative_tokens": 5, "enable_prefix_caching": False},
}


@pytest.mark.parametrize("name", ENGINES)
def test_rows_are_those_of_the_models(name: str, engines: Callable[..., LLM], reference: Reference) -> None:
    options = ENGINES[name]
    llm = engines(**options)
    num_drafts = options["num_speculative_tokens"]
    cases = mixed_batch(seed=num_drafts)
    max_tokens = 40 if "preempted" in name else 12
    preempted_before = counter(llm, "vllm:num_preemptions")
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=max_tokens, seed=num_drafts)
    report = audit.check(reference, theta_prompts(cases, outputs))

    assert set(report.by_draft_position) == set(range(num_drafts + 1))
    rows_by_request = Counter(row.request for row in audit.rows)
    assert len(rows_by_request) == len(cases) and min(rows_by_request.values()) >= max_tokens // (num_drafts + 1)
    assert 0 < report.mixed < report.rows  # the opted-out request is audited too
    for case, output in zip(cases, outputs, strict=True):
        # What the rows were audited for is what the user got.
        tokens = case.prompt + list(output.outputs[0].token_ids)
        assert len(tokens) == len(case.prompt) + max_tokens
        assert any(tokens[: len(row.tokens)] == row.tokens for row in audit.rows)
    if "preempted" in name:
        assert counter(llm, "vllm:num_preemptions") > preempted_before
    if options.get("enable_prefix_caching", True):
        with RowAudit(llm) as again:
            hit = generate(llm, cases, max_tokens=4, seed=num_drafts)
        again.check(reference, theta_prompts(cases, hit))
        assert sum(output.num_cached_tokens or 0 for output in hit) > 0


def counter(llm: LLM, name: str) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)  # type: ignore[attr-defined]
