"""Faults that the row audit must find, planted in a running engine one at a time.

Each is undone by the `MonkeyPatch` that it was planted with. `FAULTS` has those of a theta that drafts and those of one that
is the teacher itself and scores, with the row that is wrong then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vllm_optimal_sampling import kernels
from vllm_optimal_sampling.engine_core import block_hashes
from vllm_optimal_sampling.engine_core.layout import ThetaLayout
from vllm_optimal_sampling.worker.theta import drafting_round, scoring_pass
from vllm_optimal_sampling.worker.theta.one_model import OneModelScorer
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer
from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

# In every theta


def read_teachers_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta gets the teacher's prompt in place of its own."""
    add = ThetaRequests.add
    monkeypatch.setattr(ThetaRequests, "add", lambda self, slot, params, prompt: add(self, slot, params, None))


def hash_blocks_as_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached blocks are shared by requests with the same teacher prompt and another theta: our patch is gone."""
    from vllm.v1.core import kv_cache_utils

    original = kv_cache_utils.generate_block_hash_extra_keys.__wrapped__
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", original)


def forget_theta_in_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with a patch that adds nothing."""
    monkeypatch.setattr(block_hashes, "extra_keys", lambda keys, *_: keys)


def mix_with_wrong_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha is fixed at 0.9 on the device, whatever was asked for."""
    mix_ = kernels.mix_

    def wrong(teacher: Any, theta: Any, slots: Any, drafts: Any, positions: Any, settings: Any, *rest: Any) -> None:
        method, alpha = torch.full_like(settings.method, kernels.Method.FIXED), torch.full_like(settings.alpha, 0.9)
        mix_(teacher, theta, slots, drafts, positions, replace(settings, method=method, alpha=alpha), *rest)

    monkeypatch.setattr(kernels, "mix_", wrong)


def _finds_cached_blocks(requests: ThetaRequests, batch: Any) -> bool:
    """Whether a request of this step begins behind blocks that were found in the cache."""
    slots = batch.idx_mapping_np
    return bool(((batch.num_computed_tokens_np > 0) & (requests.num_computed[slots] < 0)).any())


# In a theta that drafts


def swap_drafted_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of two requests change places after theta's round."""
    propose = ThetaSpeculator.propose

    def swapped(self: ThetaSpeculator, input_batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        drafts = propose(self, input_batch, *args, **kwargs)
        slots = input_batch.idx_mapping
        self.rows[slots] = self.rows[slots.flip(0)]
        return drafts

    monkeypatch.setattr(ThetaSpeculator, "propose", swapped)


def shift_positions_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta's round runs one position too far."""
    round_inputs = drafting_round.round_inputs

    def shifted(idx_mapping: Any, num_sampled: Any, last_sampled: Any, total_len: Any, delta: Any, *args: Any) -> Any:
        return round_inputs(idx_mapping, num_sampled, last_sampled, total_len, delta + 1, *args)

    monkeypatch.setattr(drafting_round, "round_inputs", shifted)


def leave_out_prompt_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 stays what the slot's last request left."""
    monkeypatch.setattr(ThetaSpeculator, "prefill", lambda self, input_batch: None)


def poison_drafters_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What theta has cached is spoilt before a request reads it: here the first of those run together."""
    prefill = ThetaSpeculator.prefill

    def poisoned(self: ThetaSpeculator, input_batch: Any) -> None:
        if _finds_cached_blocks(self.requests, input_batch):
            layers = self.vllm_config.compilation_config.static_forward_context
            for name in self.draft_attn_layer_names:
                layers[name].kv_cache.mul_(0.5)
        prefill(self, input_batch)

    monkeypatch.setattr(ThetaSpeculator, "prefill", poisoned)


# In a theta that is the teacher itself


def swap_scored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of two requests change places."""
    keep = ThetaScorer._keep
    monkeypatch.setattr(ThetaScorer, "_keep", lambda self, logits, *where: keep(self, logits.flip(0), *where))


def shift_positions_of_fused_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theta's rows of a fused step run one position too far."""
    inputs = scoring_pass.scoring_inputs

    def shifted(*args: Any) -> Any:
        call = inspect.signature(inputs).bind(*args)
        if call.arguments["first_theta_row"]:
            call.arguments["delta"] = call.arguments["delta"] + 1
        return inputs(*call.args)

    monkeypatch.setattr(scoring_pass, "scoring_inputs", shifted)


def leave_out_forwards_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
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


def share_blocks_with_opt_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request finds the blocks of one that opted out, which hold nothing of theta."""
    monkeypatch.setattr(ThetaLayout, "without_theta", classmethod(lambda cls, block_size: cls(None, 0, block_size)))


def poison_twins_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What theta has cached is spoilt before a request reads it: here the first of those run together."""
    run = OneModelScorer._run_apart

    def poisoned(self: OneModelScorer, runner: Any, batch: Any) -> None:
        if _finds_cached_blocks(self.requests, batch):
            for twin in self.twins.values():
                self.layers[twin].kv_cache.mul_(0.5)
        run(self, runner, batch)

    monkeypatch.setattr(OneModelScorer, "_run_apart", poisoned)


Fault = Callable[[pytest.MonkeyPatch], None]

IN_EVERY_THETA: dict[Fault, str] = {read_teachers_prompt: "theta's row", mix_with_wrong_alpha: "log q"}

FAULTS: dict[str, dict[Fault, str]] = {
    "drafts": {
        poison_drafters_blocks: "theta's row",
        swap_drafted_rows: "theta's row",
        shift_positions_of_the_round: "theta's row",
        leave_out_prompt_chunks: "theta's row",
        hash_blocks_as_vllm_does: "theta's row",
        **IN_EVERY_THETA,
    },
    "scores": {
        poison_twins_blocks: "theta's row",
        swap_scored_rows: "theta's row",
        shift_positions_of_fused_steps: "theta's row",
        read_the_teachers_cache: "theta's row",
        leave_out_forwards_of_its_own: "theta's row",
        forget_theta_in_hashes: "theta's row",
        share_blocks_with_opt_outs: "theta's row",
        **IN_EVERY_THETA,
    },
}
