"""A theta that scores, checked: its rows, its greedy tokens, and which way its steps went."""

from __future__ import annotations

from typing import Any

from vllm import LLM

from support.cases import Case, generate, theta_prompts
from support.engines import find_runner
from support.reference_models import Reference, greedy_tokens
from support.row_audit import Report, RowAudit
from vllm_optimal_sampling.worker.theta.scorer import ScorerSteps

# Few tokens to draw from, so that n-grams draft what is then drawn. The audit's rows are those before that.
FEW_TOKENS: dict[str, Any] = {"allowed_token_ids": [5, 6, 7]}


def audited(llm: LLM, reference: Reference, cases: list[Case], **options: Any) -> tuple[Report, ScorerSteps]:
    """Generate, check every row, and say how the steps were taken."""
    steps = find_runner(llm).theta.steps
    before = ScorerSteps(**vars(steps))
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, **options)
    taken = ScorerSteps(**{name: count - getattr(before, name) for name, count in vars(steps).items()})
    return audit.check(reference, theta_prompts(cases, outputs)), taken


def check_greedy(llm: LLM, reference: Reference, cases: list[Case], max_tokens: int = 16, **options: Any) -> None:
    outputs = generate(llm, cases, max_tokens=max_tokens, temperature=0.0, **options)
    for case, output in zip(cases, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert tokens == greedy_tokens(reference, case, max_tokens, supposed=tokens)


def counts(llm: LLM) -> dict[str, float]:
    return {metric.name.removeprefix("vllm:"): getattr(metric, "value", 0) for metric in llm.get_metrics()}
