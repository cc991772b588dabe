"""Drafts of heads on the teacher's hidden states beside a theta that is the teacher: rows audited, greedy tokens compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vllm import LLM

from support.cases import mixed_batch
from support.engines import find_runner
from support.random_models import save_eagle_head, save_model
from support.reference_models import Reference
from support.scored_steps import audited, check_greedy, counts


def test_one_model_with_an_eagle_head(scoring_engines: Callable[..., LLM], tmp_path: Path) -> None:
    """Drafts of a head on the teacher's hidden states, with a layer and a cache of its own beside the twins."""
    model = save_model(tmp_path / "llama", architecture="llama", hidden_size=64, seed=7)
    head = save_eagle_head(tmp_path / "head", model, seed=8)
    eagle = {"method": "eagle", "model": head, "num_speculative_tokens": 2, "draft_sample_method": "probabilistic"}
    llm = scoring_engines(model, speculative_config=eagle)
    assert not any(name.startswith("theta.") for name in find_runner(llm).speculator.draft_attn_layer_names)
    reference = Reference(model, model)
    # Hot enough for two random distributions to have much in common; the audit's rows are those before temperature.
    report, steps = audited(llm, reference, mixed_batch(seed=44, long=70), max_tokens=20, temperature=2.0)
    assert steps.fused > 0.5 * (steps.fused + steps.apart)
    assert min(report.by_draft_position[j] for j in range(3)) > 50
    found = counts(llm)
    assert 0 < found["spec_decode_num_accepted_tokens"] < found["spec_decode_num_draft_tokens"]
    check_greedy(llm, reference, mixed_batch(seed=45, long=70)[:6], max_tokens=8)
