"""The row audit on other pairs of models and other engines: architectures, vocabularies, drafts by batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import start_engine, stop_engine
from support.random_models import VOCAB_SIZE, save_model
from support.reference_models import Reference
from support.row_audit import RowAudit

GEMMA = {
    "architecture": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 48,
    "query_pre_attn_scalar": 32,
}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Llama": ({"architecture": "llama"}, {"architecture": "llama"}, {}),
    "Qwen3": ({"architecture": "qwen3"}, {"architecture": "qwen3"}, {}),
    "sliding windows": (GEMMA, GEMMA, {}),
    "the teacher's vocabulary padded further": ({"vocab_size": VOCAB_SIZE + 32}, {}, {}),
    "theta's vocabulary padded further": ({}, {"vocab_size": VOCAB_SIZE + 32}, {}),
    "drafts by batch size": (
        {},
        {},
        {
            "num_speculative_tokens": 4,
            "speculative_config": {"num_speculative_tokens_per_batch_size": [(1, 2, 4), (3, 5, 1), (6, 8, 0)]},
        },
    ),
}


# Llama's classes run in test_scoring_drafters.py, and Gemma 3 has all that Qwen3's attention has.
ON_ONE_RELEASE = ("Llama", "Qwen3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.one_release if name in ON_ONE_RELEASE else ()) for name in PAIRS]
)
def test_rows(name: str, tmp_path: Path) -> None:
    teacher_options, theta_options, engine_options = PAIRS[name]
    teacher = save_model(tmp_path / "teacher", **{"hidden_size": 64, "num_layers": 2, "seed": 2, **teacher_options})
    theta = save_model(tmp_path / "theta", **{"hidden_size": 64, "num_layers": 2, "seed": 3, **theta_options})
    llm = start_engine(teacher, theta, **engine_options)
    try:
        cases = mixed_batch(seed=41, long=100)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=10)
        prompts = theta_prompts(cases, outputs)
        with RowAudit(llm) as again:
            hit = generate(llm, cases[:4], max_tokens=3)
        assert sum(output.num_cached_tokens or 0 for output in hit) > 0
        reference = Reference(teacher, theta)
        report = audit.check(reference, prompts)
        again.check(reference, theta_prompts(cases[:4], hit))
    finally:
        stop_engine(llm)
    num_drafts = engine_options.get("num_speculative_tokens", 3)
    assert set(report.by_draft_position) == set(range(num_drafts + 1))
