"""The row audit where theta is the teacher itself, on other architectures: what they need of theta is a cache, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import find_runner, scoring_options, stop_engine
from support.random_models import save_model
from support.reference_models import Reference
from support.row_audit import RowAudit

# vLLM deals out the layers of a kind to the groups of the cache in turns. Where their number does not come out even, a
# layer's twin is in another group, and theta takes a forward of its own.
WINDOWS = {"architecture": "gemma3_text", "sliding_window": 48, "query_pre_attn_scalar": 32}
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "Llama": ({"architecture": "llama"}, True),
    "Qwen3": ({"architecture": "qwen3"}, True),
    "a mixture of experts": (
        {
            "architecture": "qwen3_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
        True,
    ),
    "sliding windows": ({**WINDOWS, "layer_types": ["sliding_attention"] * 2}, True),
    "sliding windows and full attention": (
        {**WINDOWS, "layer_types": [*(["sliding_attention"] * 3), "full_attention"], "num_layers": 4},
        True,
    ),
    "twins in other groups of the cache": (
        {**WINDOWS, "layer_types": [*(["sliding_attention"] * 3), *(["full_attention"] * 2)], "num_layers": 5},
        False,
    ),
}


# Llama's classes and a mixture of experts run in test_scoring_drafters.py, and Gemma 3 has all that Qwen3's attention has.
ON_ONE_RELEASE = ("Llama", "Qwen3", "a mixture of experts", "sliding windows")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.one_release if name in ON_ONE_RELEASE else ()) for name in MODELS]
)
def test_rows(name: str, tmp_path: Path) -> None:
    options, fuses = MODELS[name]
    model = save_model(tmp_path / "model", **{"hidden_size": 64, "num_layers": 2, "seed": 2, **options})
    llm = LLM(**scoring_options(model, drafts=2, max_num_batched_tokens=64))
    try:
        theta = find_runner(llm).theta
        cases = mixed_batch(seed=41, long=100)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=10)
        with RowAudit(llm) as again:
            hit = generate(llm, cases[:4], max_tokens=3)
        assert sum(output.num_cached_tokens or 0 for output in hit) > 0
        reference = Reference(model, model)
        report = audit.check(reference, theta_prompts(cases, outputs))
        again.check(reference, theta_prompts(cases[:4], hit))
    finally:
        stop_engine(llm)
    assert set(report.by_draft_position) == {0, 1, 2}
    assert bool(theta.steps.fused) == fuses
