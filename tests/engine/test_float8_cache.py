"""A KV cache of float8: rows of both models are those of keys and values rounded as the engine rounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vllm import LLM

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import engine_options, scoring_options, stop_engine
from support.gpu import ON_GPU
from support.planted_faults import swap_drafted_rows, swap_scored_rows
from support.reference_models import Reference
from support.row_audit import AuditError, Report, RowAudit
from support.tolerances import CPU_FLOAT32

pytestmark = pytest.mark.skipif(ON_GPU, reason="needs a CPU: no tolerances were measured with a GPU's float8 caches")

SHARE_EXACT = 0.75
"""Of rows that no rounding to another step of float8 touches: 0.90 and 0.92 were seen."""


def check(llm: LLM, reference: Reference, seed: int) -> Report:
    cases = mixed_batch(seed=seed, long=70)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=12, allowed_token_ids=[5, 6, 7])
    return audit.check(reference, theta_prompts(cases, outputs))


@pytest.mark.parametrize(
    ("options", "swap"),
    [(scoring_options, swap_scored_rows), (engine_options, swap_drafted_rows)],
    ids=["self", "drafts"],
)
def test_rows(
    options: Callable[..., dict[str, Any]],
    swap: Callable[..., None],
    pair: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, drafts = (
        ((pair[0],), {"drafts": 2}) if options is scoring_options else (pair, {"num_speculative_tokens": 2})
    )
    llm = LLM(
        **options(*models, **drafts, kv_cache_dtype="fp8", max_num_batched_tokens=128, enable_prefix_caching=True)
    )
    try:
        reference = Reference(pair[0], models[-1], float8_cache=True)
        report = check(llm, reference, seed=71)
        assert set(report.by_draft_position) == {0, 1, 2}
        exact = sum(error <= CPU_FLOAT32.theta_nats for error in report.errors)
        assert exact > SHARE_EXACT * report.rows
        swap(monkeypatch)
        with pytest.raises(AuditError, match="theta's row"):
            check(llm, reference, seed=72)
    finally:
        stop_engine(llm)
