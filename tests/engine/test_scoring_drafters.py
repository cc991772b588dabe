"""Drafts of heads and modules on the teacher's hidden states: rows audited, greedy tokens compared, drafts accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from support.cases import mixed_batch
from support.engines import find_runner
from support.random_models import add_mtp_module, save_eagle3_head, save_eagle_head, save_model
from support.reference_models import Reference
from support.scored_steps import audited, check_greedy, counts

GLM: dict[str, Any] = {
    "architecture": "glm4_moe",
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
}


def with_eagle(folder: Path) -> tuple[str, dict[str, Any]]:
    model = save_model(folder / "model", architecture="llama", seed=7)
    return model, {"method": "eagle", "model": save_eagle_head(folder / "head", model, seed=8)}


def with_eagle3(folder: Path) -> tuple[str, dict[str, Any]]:
    model = save_model(folder / "model", architecture="llama", num_layers=4, seed=7)
    return model, {"method": "eagle3", "model": save_eagle3_head(folder / "head", model, seed=8)}


def with_mtp(folder: Path) -> tuple[str, dict[str, Any]]:
    model = save_model(folder / "model", seed=7)
    add_mtp_module(model, seed=8)
    return model, {"method": "mtp"}


def with_mtp_of_experts(folder: Path) -> tuple[str, dict[str, Any]]:
    model = save_model(folder / "model", seed=7, **GLM)
    add_mtp_module(model, seed=8)
    return model, {"method": "mtp"}


@pytest.mark.parametrize(
    "drafter", [with_eagle, with_eagle3, with_mtp, with_mtp_of_experts], ids=lambda drafter: drafter.__name__
)
def test_one_model_with_a_drafter(
    drafter: Callable[[Path], tuple[str, dict[str, Any]]], scoring_engines: Callable[..., LLM], tmp_path: Path
) -> None:
    """The drafter has layers and caches of its own, beside the twins."""
    model, speculative = drafter(tmp_path)
    options = {"num_speculative_tokens": 2, "draft_sample_method": "probabilistic"}
    llm = scoring_engines(model, speculative_config=speculative | options)
    assert not any(name.startswith("theta.") for name in find_runner(llm).speculator.draft_attn_layer_names)
    reference = Reference(model, model)
    # Hot enough for two random distributions to have much in common; the audit's rows are those before temperature.
    report, steps = audited(llm, reference, mixed_batch(seed=44, long=70), max_tokens=20, temperature=2.0)
    assert steps.fused > 0.5 * (steps.fused + steps.apart)
    assert min(report.by_draft_position[j] for j in range(3)) > 50
    found = counts(llm)
    assert 0 < found["spec_decode_num_accepted_tokens"] < found["spec_decode_num_draft_tokens"]
    check_greedy(llm, reference, mixed_batch(seed=45, long=70)[:6], max_tokens=8)
