"""What an engine says at start about the number of drafts: a function of its timings, and the warm-up steps behind them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import LLM

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import find_runner
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling.worker.draft_advice import (
    BATCHES,
    MOST_DRAFTS,
    REPEATS,
    DraftTimes,
    TimedStep,
    advice,
    time_steps,
    tokens_per_round,
)


def h200_steps(drafts: int) -> list[TimedStep]:
    """Qwen2.5 3B with 1.5B on one H200 at 8 requests: see benchmarks/results/profile-h200.json."""
    return [TimedStep(8, 8 * (drafts + 1), 3.1, 1.85 * (drafts + 1)), TimedStep(1, drafts + 1, 3.0, 1.8 * (drafts + 1))]


def test_choices_are_those_that_were_measured_best() -> None:
    """Measured: two drafts beat four and seven at 0.8, and lose to four at 0.9."""
    times = DraftTimes(h200_steps(4), 4)
    assert times.best(8, 0.8).drafts in (2, 3)
    assert times.best(8, 0.9).drafts in (3, 4, 5)
    assert times.best(8, 0.7).drafts < times.best(8, 0.9).drafts
    # Of the teacher alone in the middle of a batch: 0.93 was measured with four drafts at 0.9 (8 x 2048 tokens).
    ratio = tokens_per_round(0.9, 4) * times.teacher(8) / times.round(8, 4)
    assert ratio == pytest.approx(0.93, rel=0.1)


def test_a_theta_that_costs_nothing_drafts_most_and_a_dear_one_never() -> None:
    free = DraftTimes([TimedStep(1, 5, 10.0, 0.005), TimedStep(8, 40, 10.0, 0.005)], 4)
    assert free.best(8, 0.9).drafts == MOST_DRAFTS
    assert free.best(8, 0.9).of_teacher == pytest.approx(tokens_per_round(0.9, MOST_DRAFTS), rel=0.01)
    dear = DraftTimes([TimedStep(8, 40, 1.0, 50.0)], 4)
    assert dear.best(8, 0.9).drafts == 0


def test_the_teacher_is_a_line_between_what_was_timed() -> None:
    times = DraftTimes([TimedStep(1, 4, 3.0, 4.0), TimedStep(8, 32, 4.0, 6.0), TimedStep(8, 32, 9.0, 60.0)], 3)
    assert times.theta_ms == {1: 1.0, 8: pytest.approx(33 / 4)}
    assert times.teacher(1) == times.teacher(4) == 3.0
    assert times.teacher(18) == pytest.approx(3.0 + 0.5 * (6.5 - 3.0))
    noisy = DraftTimes([TimedStep(1, 4, 3.0, 4.0), TimedStep(8, 32, 2.5, 6.0)], 3)
    assert noisy.teacher(32) == 3.0


def test_advice_names_each_batch_and_choice() -> None:
    said = advice(DraftTimes(h200_steps(4), 4), 4)
    assert "with 4 drafts" in said and "0.7, 0.8, 0.9" in said
    assert "8 requests: theta's decode 1.85 ms, the teacher's verification 3.10 ms: 2 (" in said


def test_only_replayed_graphs_are_timed() -> None:
    """A step that ran without its graph has another cost."""
    asked: list[tuple[int, dict[str, Any]]] = []

    class Clock:
        def collect(self) -> Any:
            return self

        def __enter__(self) -> list[Any]:
            self.samples: list[Any] = []
            return self.samples

        def __exit__(self, *_: Any) -> None:
            for tokens, _ in asked[-REPEATS:]:
                self.samples.append(
                    SimpleNamespace(
                        num_reqs=tokens // 5,
                        num_target_tokens=tokens,
                        forward_ms=3.0,
                        drafter_ms=9.0,
                        full_cudagraph=tokens < 100,
                    )
                )

    runner = SimpleNamespace(
        max_num_reqs=64,
        max_num_tokens=512,
        step_timing=Clock(),
        _dummy_run=lambda tokens, **options: asked.append((tokens, options)),
    )
    steps = time_steps(runner, 4)
    assert [tokens for tokens, _ in asked] == [batch * 5 for batch in BATCHES[:3] for _ in range(REPEATS)]
    assert all(options == {"uniform_decode": True, "skip_eplb": True} for _, options in asked)
    assert {step.requests for step in steps} == {1, 8}
    assert len(steps) == 2 * (REPEATS - 1)


def test_warm_up_steps_leave_no_trace(engines: Callable[..., LLM], reference: Reference) -> None:
    """Dummy steps between two batches, in the same engine: rows of theta stay, and the next batch is audited."""
    llm = engines()
    runner = find_runner(llm)
    cases = mixed_batch(seed=3, long=70)
    generate(llm, cases, max_tokens=4)
    rows = runner.speculator.draft_logits.clone()
    drafts = runner.speculator.num_speculative_steps
    for requests in (1, 8):
        runner._dummy_run(requests * (drafts + 1), uniform_decode=True, skip_eplb=True)
    assert torch.equal(runner.speculator.draft_logits, rows)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=8)
    audit.check(reference, theta_prompts(cases, outputs))
