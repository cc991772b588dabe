"""The audit finds each fault in a theta that scores, planted in a running engine, one at a time."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm import LLM

from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, theta_prompts, token_ids
from support.engines import scoring_options, stop_engine
from support.reference_models import Reference
from support.row_audit import AuditError, RowAudit
from vllm_optimal_sampling import kernels
from vllm_optimal_sampling.engine_core.layout import ThetaLayout
from vllm_optimal_sampling.worker.theta import scoring_pass
from vllm_optimal_sampling.worker.theta.one_model import OneModelScorer
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer


def swap_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of two requests change places."""
    keep = ThetaScorer._keep
    monkeypatch.setattr(ThetaScorer, "_keep", lambda self, logits, *where: keep(self, logits.flip(0), *where))


def shift_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta's rows of a fused step run one position too far."""
    inputs = scoring_pass.scoring_inputs

    def shifted(*args: Any) -> None:
        *before, delta, all_token_ids, input_ids, positions, seq_lens, padded, first_theta_row, length, vocab = args
        delta = delta + 1 if first_theta_row else delta
        inputs(*before, delta, all_token_ids, input_ids, positions, seq_lens, padded, first_theta_row, length, vocab)

    monkeypatch.setattr(scoring_pass, "scoring_inputs", shifted)


def read_teachers_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta gets the teacher's prompt in place of its own."""
    add = ThetaRequests.add
    monkeypatch.setattr(ThetaRequests, "add", lambda self, slot, params, prompt: add(self, slot, params, None))


def keep_stale_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay what the slot's last request left, in steps with prompt chunks."""
    monkeypatch.setattr(ThetaScorer, "_run_apart", lambda self, runner, batch: None)


def read_the_teachers_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta's rows of a fused step find the teacher's keys and values: their blocks are not moved."""
    forward = OneModelScorer.forward_fused

    def unmoved(self: OneModelScorer, *args: Any) -> Any:
        tables = self.scoring.block_tables
        offset, tables.block_offset = tables.block_offset, 0
        try:
            return forward(self, *args)
        finally:
            tables.block_offset = offset

    monkeypatch.setattr(OneModelScorer, "forward_fused", unmoved)


def forget_theta_in_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached blocks are shared by requests with the same teacher prompt and another theta."""
    from vllm_optimal_sampling.engine_core import block_hashes

    monkeypatch.setattr(block_hashes, "extra_keys", lambda keys, *_: keys)


def share_blocks_with_opt_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request finds the blocks of one that opted out, which hold nothing of theta."""
    monkeypatch.setattr(ThetaLayout, "without_theta", classmethod(lambda cls, block_size: cls(None, 0, block_size)))


def mix_with_wrong_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha is fixed at 0.9 on the device, whatever was asked for."""
    mix_ = kernels.mix_

    def wrong(teacher: Any, theta: Any, slots: Any, drafts: Any, positions: Any, settings: Any, *rest: Any) -> None:
        method, alpha = torch.full_like(settings.method, kernels.Method.FIXED), torch.full_like(settings.alpha, 0.9)
        mix_(teacher, theta, slots, drafts, positions, replace(settings, method=method, alpha=alpha), *rest)

    monkeypatch.setattr(kernels, "mix_", wrong)


def poison_cached_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What theta has cached is spoilt before a request reads it: here the first of those run together."""
    run = OneModelScorer._run_apart

    def poisoned(self: OneModelScorer, runner: Any, batch: Any) -> None:
        slots = batch.idx_mapping_np
        if ((batch.num_computed_tokens_np > 0) & (self.requests.num_computed[slots] < 0)).any():
            for twin in self.twins.values():
                self.layers[twin].kv_cache.mul_(0.5)
        run(self, runner, batch)

    monkeypatch.setattr(OneModelScorer, "_run_apart", poisoned)


FAULTS = {
    poison_cached_blocks: "theta's row",
    swap_rows: "theta's row",
    shift_positions: "theta's row",
    read_teachers_prompt: "theta's row",
    read_the_teachers_cache: "theta's row",
    keep_stale_rows: "theta's row",
    forget_theta_in_hashes: "theta's row",
    share_blocks_with_opt_outs: "theta's row",
    mix_with_wrong_alpha: "log q",
}


@pytest.fixture(scope="module")
def llm(pair: tuple[str, str]) -> Iterator[LLM]:
    engine = LLM(**scoring_options(pair[0], drafts=2, enable_prefix_caching=True))
    yield engine
    stop_engine(engine)


@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda f: f.__name__ if f else "none")
def test_the_audit_finds(
    fault: Callable[[pytest.MonkeyPatch], None] | None,
    llm: LLM,
    pair: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(17)
    shared, other = token_ids(rng, 70), token_ids(rng, 70)
    cases = [
        Case(shared, token_ids(rng, 40), KL_SYMMETRY),
        Case(shared, token_ids(rng, 45), KL_SYMMETRY),
        Case(token_ids(rng, 12), token_ids(rng, 8), KL_SYMMETRY),
        Case(other, None, OPTED_OUT),
        Case(other, None, KL_SYMMETRY),
    ]
    llm.reset_prefix_cache()
    if fault is not None:
        fault(monkeypatch)
    with RowAudit(llm) as audit:
        # One after another, so that the second can hit what the first has cached.
        outputs = [generate(llm, [case], max_tokens=2)[0] for case in cases] + generate(llm, cases, max_tokens=6)
    prompts = theta_prompts([*cases, *cases], outputs)
    reference = Reference(pair[0], pair[0])
    if fault is None:
        audit.check(reference, prompts)
    else:
        with pytest.raises(AuditError, match=FAULTS[fault]):
            audit.check(reference, prompts)
    llm.reset_prefix_cache()
